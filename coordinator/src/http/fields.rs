//! Reads fields out of a JSON body so that every error names the field by its path.
//!
//! `null` counts as absent everywhere, because clients serialise unset options as `null`.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// A JSON object and its path in the body.
#[derive(Clone, Debug)]
pub(super) struct Object<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// A value that is present and not null.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub(super) value: &'a Value,
    pub(super) path: String,
}

impl<'a> Object<'a> {
    /// The body itself.
    pub(super) fn root(body: &'a Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Object {
                map,
                path: String::new(),
            }),
            other => Err(ApiError::invalid(format!(
                "the body must be a JSON object, not {}",
                kind_of(other)
            ))),
        }
    }

    /// The path of this object's field `key`.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        match self.map.get(key) {
            None | Some(Value::Null) => None,
            Some(value) => Some(Field {
                value,
                path: self.path_of(key),
            }),
        }
    }

    pub(super) fn require(&self, key: &str) -> Result<Field<'a>, ApiError> {
        self.get(key).ok_or_else(|| {
            let path = self.path_of(key);
            let message = format!("the field `{path}` is missing");
            ApiError {
                code: Some("missing_field"),
                ..ApiError::invalid_field(path, message)
            }
        })
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(key).map(|field| field.str()).transpose()
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ApiError> {
        self.get(key).map(|field| field.bool()).transpose()
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Object<'a>>, ApiError> {
        self.get(key).map(Field::object).transpose()
    }

    pub(super) fn array(&self, key: &str) -> Result<Option<Vec<Field<'a>>>, ApiError> {
        self.get(key).map(|field| field.array()).transpose()
    }

    pub(super) fn number(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        self.get(key).map(|field| field.number(range)).transpose()
    }

    pub(super) fn integer(
        &self,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        self.get(key).map(|field| field.integer(range)).transpose()
    }
}

impl<'a> Field<'a> {
    /// The error for a field that is not what it must be.
    pub(super) fn wrong(&self, expected: &str) -> ApiError {
        let message = format!(
            "the field `{}` must be {expected}, not {}",
            self.path,
            describe(self.value)
        );
        ApiError::invalid_field(self.path.clone(), message)
    }

    pub(super) fn str(&self) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub(super) fn bool(&self) -> Result<bool, ApiError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong("true or false"))
    }

    pub(super) fn object(self) -> Result<Object<'a>, ApiError> {
        match self.value {
            Value::Object(map) => Ok(Object {
                map,
                path: self.path,
            }),
            _ => Err(self.wrong("an object")),
        }
    }

    pub(super) fn array(&self) -> Result<Vec<Field<'a>>, ApiError> {
        let Value::Array(values) = self.value else {
            return Err(self.wrong("a list"));
        };
        let entry = |(i, value)| Field {
            value,
            path: format!("{}[{i}]", self.path),
        };
        Ok(values.iter().enumerate().map(entry).collect())
    }

    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Result<f64, ApiError> {
        match self.value.as_f64() {
            Some(number) if range.contains(&number) => Ok(number),
            _ => Err(self.wrong(&format!(
                "a number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
        // Some clients write integers as 64.0.
        let whole = |x: f64| (x.fract() == 0.0 && x.abs() < 9.0e15).then_some(x as i64);
        let integer = self
            .value
            .as_i64()
            .or_else(|| self.value.as_f64().and_then(whole));
        match integer {
            Some(integer) if range.contains(&integer) => Ok(integer),
            _ if *range.end() == i64::MAX => {
                Err(self.wrong(&format!("an integer of at least {}", range.start())))
            }
            _ => Err(self.wrong(&format!(
                "an integer from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(values) if values.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value itself where it is short, otherwise its type.
fn describe(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.chars().count() <= 32 => format!("{text:?}"),
        Value::Array(list) if list.is_empty() => "an empty list".to_owned(),
        other => kind_of(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_name_the_path_and_the_value_found() {
        let body = json!({"messages": [{"content": "a"}, {"content": 5}], "top_p": 1.5});
        let root = Object::root(&body).unwrap();
        let second = root
            .array("messages")
            .unwrap()
            .unwrap()
            .remove(1)
            .object()
            .unwrap();
        let error = second.str("content").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[1].content"));
        assert!(
            error.message.ends_with("must be a string, not 5"),
            "{}",
            error.message
        );
        let error = root.number("top_p", 0.0..=1.0).unwrap_err();
        assert!(
            error.message.contains("a number from 0 to 1, not 1.5"),
            "{}",
            error.message
        );
        assert_eq!(
            root.require("model").unwrap_err().param.as_deref(),
            Some("model")
        );
    }

    #[test]
    fn null_is_absent_and_whole_floats_are_integers() {
        let body = json!({"stop": null, "max_tokens": 64.0, "seed": 1.5});
        let root = Object::root(&body).unwrap();
        assert_eq!(root.str("stop").unwrap(), None);
        assert_eq!(root.integer("max_tokens", 1..=i64::MAX).unwrap(), Some(64));
        assert!(root.integer("seed", i64::MIN..=i64::MAX).is_err());
    }
}
