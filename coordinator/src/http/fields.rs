//! Reads fields out of a JSON body so that every error names the field by its path.
//!
//! The body is never turned into a tree of values. A field is the slice of the body that holds its
//! value, found in one pass that checks the syntax and skips what nobody asks for; what a field
//! says is read when it is asked for, and a list entry by entry, so that the first bad entry ends
//! the reading. So a body costs its own bytes and what its reader keeps.
//!
//! `null` counts as absent everywhere, because clients serialise unset options as `null`. Of a name
//! that stands twice in an object the last one counts.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde_json::Value;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::json_slices::{self, Kind, kind_of};

/// A JSON object and its path in the body.
#[derive(Clone, Debug)]
pub(super) struct Object<'a> {
    fields: Vec<(&'static str, &'a RawValue)>,
    path: String,
}

/// A value that is present and not null.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    raw: &'a RawValue,
    pub(super) path: String,
}

impl<'a> Object<'a> {
    /// The body itself.
    pub(super) fn root(body: &'a str) -> Result<Self, ApiError> {
        json_slices::check_depth(body)?;
        let raw: &RawValue = serde_json::from_str(body).map_err(|error| malformed(&error))?;
        match kind_of(raw) {
            Kind::Object => Object::read(raw, String::new()),
            other => Err(ApiError::invalid(format!(
                "the body must be a JSON object, not {}",
                other.name()
            ))),
        }
    }

    fn read(raw: &'a RawValue, path: String) -> Result<Self, ApiError> {
        let fields = json_slices::known_fields(raw).map_err(|error| malformed(&error))?;
        Ok(Object { fields, path })
    }

    /// The path of this object's field `key`.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The field `key`, which must be one of [`json_slices::KNOWN`].
    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        debug_assert!(json_slices::KNOWN.contains(&key), "{key} is not known");
        let (_, raw) = self.fields.iter().find(|(name, _)| *name == key)?;
        let path = || self.path_of(key);
        (kind_of(raw) != Kind::Null).then(|| Field { raw, path: path() })
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

    pub(super) fn str(&self, key: &str) -> Result<Option<Cow<'a, str>>, ApiError> {
        self.get(key).map(|field| field.str()).transpose()
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ApiError> {
        self.get(key).map(|field| field.bool()).transpose()
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Object<'a>>, ApiError> {
        self.get(key).map(Field::object).transpose()
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
            json_slices::describe(self.raw)
        );
        ApiError::invalid_field(self.path.clone(), message)
    }

    pub(super) fn kind(&self) -> Kind {
        kind_of(self.raw)
    }

    /// The value as it stands in the body.
    pub(super) fn json(&self) -> &'a str {
        self.raw.get()
    }

    /// Whether it is a list or an object without entries.
    pub(super) fn is_empty(&self) -> bool {
        json_slices::is_empty(self.raw)
    }

    pub(super) fn str(&self) -> Result<Cow<'a, str>, ApiError> {
        if self.kind() != Kind::String {
            return Err(self.wrong("a string"));
        }
        json_slices::decode(self.raw).map_err(|error| {
            let message = match json_slices::lone_surrogate(self.json()) {
                Some((at, escape)) => format!(
                    "the field `{}` has a lone surrogate, `{escape}`, {at} bytes into its string: \
                     surrogates stand for a character only in pairs",
                    self.path
                ),
                None => format!("the field `{}` is not a valid string: {error}", self.path),
            };
            ApiError::invalid_field(self.path.clone(), message)
        })
    }

    pub(super) fn bool(&self) -> Result<bool, ApiError> {
        match self.json() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.wrong("true or false")),
        }
    }

    pub(super) fn object(self) -> Result<Object<'a>, ApiError> {
        match self.kind() {
            Kind::Object => Object::read(self.raw, self.path),
            _ => Err(self.wrong("an object")),
        }
    }

    /// The entries of a list of at most `most`, read one after the other.
    pub(super) fn list<T>(
        &self,
        most: usize,
        mut read: impl FnMut(Field<'a>) -> Result<T, ApiError>,
    ) -> Result<Vec<T>, ApiError> {
        let mut entries = Vec::new();
        self.each(|entry| {
            if entries.len() == most {
                let message = format!("the field `{}` has more than {most} entries", self.path);
                return Err(ApiError::invalid_field(self.path.clone(), message));
            }
            entries.push(read(entry.field())?);
            Ok(())
        })?;
        Ok(entries)
    }

    /// Calls `read` with the entries of a list, one after the other, until it fails.
    pub(super) fn each(
        &self,
        mut read: impl FnMut(Entry<'a, '_>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        if self.kind() != Kind::List {
            return Err(self.wrong("a list"));
        }
        let mut index = 0;
        let mut failure = None;
        let read = |raw| {
            let list = self;
            failure = read(Entry { raw, list, index }).err();
            index += 1;
            failure.is_none()
        };
        let outcome = json_slices::entries(self.raw, read);
        match failure {
            Some(error) => Err(error),
            None => outcome.map_err(|error| malformed(&error)),
        }
    }

    /// The number, if it is one.
    pub(super) fn as_number(&self) -> Option<f64> {
        match self.kind() {
            Kind::Number => self.json().parse().ok(),
            _ => None,
        }
    }

    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Result<f64, ApiError> {
        match self.as_number() {
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
        let integer = match self.kind() {
            Kind::Number => self.json().parse().ok(),
            _ => None,
        };
        match integer.or_else(|| self.as_number().and_then(whole)) {
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

    /// The whole value as a tree, for what has no fixed form. Values in it are taken off `room`.
    pub(super) fn free_form(&self, room: &mut usize) -> Result<Value, ApiError> {
        self.take_values(self.json(), room)?;
        serde_json::from_str(self.json()).map_err(|error| {
            let message = format!("the field `{}` cannot be read: {error}", self.path);
            ApiError::invalid_field(self.path.clone(), message)
        })
    }

    /// Takes the values that `json`, a text of this field, has off `room`.
    pub(super) fn take_values(&self, json: &str, room: &mut usize) -> Result<(), ApiError> {
        *room = room
            .checked_sub(json_slices::count_values(json))
            .ok_or_else(|| {
                let message = format!("the field `{}` has too many values", self.path);
                ApiError::invalid_field(self.path.clone(), message)
            })?;
        Ok(())
    }
}

/// An entry of a list, whose path is made only when it is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a, 'f> {
    raw: &'a RawValue,
    list: &'f Field<'a>,
    index: usize,
}

impl<'a> Entry<'a, '_> {
    /// The value as it stands in the body.
    pub(super) fn json(&self) -> &'a str {
        self.raw.get()
    }

    pub(super) fn field(&self) -> Field<'a> {
        Field {
            raw: self.raw,
            path: format!("{}[{}]", self.list.path, self.index),
        }
    }
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError {
        code: Some("malformed_json"),
        ..ApiError::invalid(format!("the body is not valid JSON: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(body: &str) -> Object<'_> {
        Object::root(body).unwrap()
    }

    #[test]
    fn errors_name_the_path_and_the_value_found() {
        let body = r#"{"messages": [{"content": "a"}, {"content": 5}], "top_p": 1.5}"#;
        let list = root(body).get("messages").unwrap();
        let error = list
            .list(9, |entry| entry.object()?.require("content")?.str())
            .unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[1].content"));
        assert!(
            error.message.ends_with("must be a string, not 5"),
            "{}",
            error.message
        );
        let error = root(body).number("top_p", 0.0..=1.0).unwrap_err();
        assert!(
            error.message.contains("a number from 0 to 1, not 1.5"),
            "{}",
            error.message
        );
        assert_eq!(
            root(body).require("model").unwrap_err().param.as_deref(),
            Some("model")
        );
    }

    #[test]
    fn null_is_absent_and_whole_floats_are_integers() {
        let body = r#"{"stop": null, "max_tokens": 64.0, "seed": 1.5, "top_k": 1e400}"#;
        let root = root(body);
        assert_eq!(root.str("stop").unwrap(), None);
        assert_eq!(root.integer("max_tokens", 1..=i64::MAX).unwrap(), Some(64));
        assert!(root.integer("seed", i64::MIN..=i64::MAX).is_err());
        assert!(root.integer("top_k", i64::MIN..=i64::MAX).is_err());
        assert!(root.number("top_k", 0.0..=1.0).is_err());
    }

    #[test]
    fn a_list_is_left_at_its_first_bad_entry_and_at_its_limit() {
        let body = format!(r#"{{"messages": [{}0]}}"#, "0,".repeat(100_000));
        let list = root(&body).get("messages").unwrap();
        let mut seen = 0;
        let error = list
            .list(10, |entry| {
                seen += 1;
                entry.integer(1..=2)
            })
            .unwrap_err();
        assert_eq!((seen, error.param.as_deref()), (1, Some("messages[0]")));
        let error = list.list(10, |entry| entry.integer(0..=2)).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages"));
        assert!(error.message.ends_with("more than 10 entries"));
    }

    #[test]
    fn a_lone_surrogate_is_named_with_its_place() {
        let body = r#"{"model": "ab\n\ud83d\ude00\ud800x"}"#;
        let error = root(body).str("model").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("model"));
        assert!(
            error
                .message
                .contains(r"lone surrogate, `\ud800`, 16 bytes"),
            "{}",
            error.message
        );
        let whole = r#"{"model": "\ud83d\ude00 \u00e9"}"#;
        assert_eq!(root(whole).str("model").unwrap().as_deref(), Some("😀 é"));
    }

    #[test]
    fn trees_are_bounded_in_their_values() {
        let body = r#"{"function": {"name": "a, [b", "parameters": {"x": [1, 2, {}]}}}"#;
        let field = root(body).get("function").unwrap();
        let mut room = 20;
        let value = field.free_form(&mut room).unwrap();
        assert_eq!(value["parameters"]["x"][1], 2);
        let taken = 20 - room;
        // Seven values and three names.
        assert!((7..=11).contains(&taken), "{taken}");
        let error = field.free_form(&mut 6).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("function"));
    }
}
