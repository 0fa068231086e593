//! The keys of a model's files, read by type.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::value::{Array, Value};

/// The key-value pairs of a model, with getters whose errors name file, key and types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    source: PathBuf,
    entries: BTreeMap<String, Value>,
}

/// A key that is missing, or whose value is not what the reader needs.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{}: metadata key {key} {problem}", file.display())]
pub struct MetadataError {
    /// File that the message names.
    pub file: PathBuf,
    /// The metadata key.
    pub key: String,
    /// What is wrong with it.
    pub problem: MetadataProblem,
}

/// Why the value of a key cannot be read; completes a sentence that begins with the key.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum MetadataProblem {
    /// There is no such key.
    #[error("is missing")]
    Missing,
    /// The value has another type.
    #[error("must be {expected}, but is {found}")]
    Type {
        /// Type that was read for.
        expected: &'static str,
        /// Type of the value.
        found: String,
    },
    /// The number does not fit the type.
    #[error("is {found}, which does not fit {expected}")]
    Range {
        /// Type that was read for.
        expected: &'static str,
        /// The number.
        found: String,
    },
    /// The value has the right type, but no model can have it.
    #[error("holds {found}: {reason}")]
    Invalid {
        /// The value.
        found: String,
        /// Why it is refused.
        reason: String,
    },
}

impl Metadata {
    /// No entries yet; `source` is the file that errors will name.
    #[must_use]
    pub fn new(source: PathBuf) -> Self {
        Self {
            source,
            entries: BTreeMap::new(),
        }
    }

    /// The file that the entries came from (the first one of a model of several files).
    #[must_use]
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The value of a key, of whatever type.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Whether there is a value for a key.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Adds an entry; returns the old value if there was one.
    pub fn insert(&mut self, key: impl Into<String>, value: Value) -> Option<Value> {
        self.entries.insert(key.into(), value)
    }

    /// All entries, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// An error about `key` that names this metadata's file.
    #[must_use]
    pub fn error(&self, key: &str, problem: MetadataProblem) -> MetadataError {
        MetadataError {
            file: self.source.clone(),
            key: key.to_owned(),
            problem,
        }
    }

    /// An error that says why the value found at `key` cannot be right.
    #[must_use]
    pub fn invalid(&self, key: &str, found: impl ToString, reason: &str) -> MetadataError {
        let problem = MetadataProblem::Invalid {
            found: found.to_string(),
            reason: reason.to_owned(),
        };
        self.error(key, problem)
    }

    fn wrong_type(&self, key: &str, expected: &'static str, found: &Value) -> MetadataError {
        self.error(
            key,
            MetadataProblem::Type {
                expected,
                found: found.type_name(),
            },
        )
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, MetadataError> {
        value.ok_or_else(|| self.error(key, MetadataProblem::Missing))
    }

    fn integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, MetadataError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wide = value
            .integer()
            .ok_or_else(|| self.wrong_type(key, expected, value))?;
        let narrow = T::try_from(wide).map_err(|_| {
            self.error(
                key,
                MetadataProblem::Range {
                    expected,
                    found: wide.to_string(),
                },
            )
        })?;
        Ok(Some(narrow))
    }

    fn array<'a, T: ?Sized>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl FnOnce(&'a Array) -> Option<&'a T>,
    ) -> Result<Option<&'a T>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(value @ Value::Array(array)) => pick(array)
                .map(Some)
                .ok_or_else(|| self.wrong_type(key, expected, value)),
            Some(other) => Err(self.wrong_type(key, expected, other)),
        }
    }

    /// An integer of any stored width that fits u32; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not an integer, or does not fit.
    pub fn optional_u32(&self, key: &str) -> Result<Option<u32>, MetadataError> {
        self.integer(key, "u32")
    }

    /// As [`Self::optional_u32`], but a missing key is an error.
    ///
    /// # Errors
    /// The key is missing, the value is not an integer, or does not fit.
    pub fn u32(&self, key: &str) -> Result<u32, MetadataError> {
        self.required(key, self.optional_u32(key)?)
    }

    /// An integer of any stored width that fits u64; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not an integer, or does not fit.
    pub fn optional_u64(&self, key: &str) -> Result<Option<u64>, MetadataError> {
        self.integer(key, "u64")
    }

    /// As [`Self::optional_u64`], but a missing key is an error.
    ///
    /// # Errors
    /// The key is missing, the value is not an integer, or does not fit.
    pub fn u64(&self, key: &str) -> Result<u64, MetadataError> {
        self.required(key, self.optional_u64(key)?)
    }

    /// A float, stored as f32 or f64; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not a float, or is beyond f32's range.
    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::F32(v)) => Ok(Some(v)),
            #[allow(clippy::cast_possible_truncation)]
            Some(&Value::F64(v)) if v.is_nan() || v.is_infinite() || (v as f32).is_finite() => {
                Ok(Some(v as f32))
            }
            Some(&Value::F64(v)) => {
                let found = v.to_string();
                Err(self.error(
                    key,
                    MetadataProblem::Range {
                        expected: "f32",
                        found,
                    },
                ))
            }
            Some(other) => Err(self.wrong_type(key, "f32", other)),
        }
    }

    /// As [`Self::optional_f32`], but a missing key is an error.
    ///
    /// # Errors
    /// The key is missing, the value is not a float, or is beyond f32's range.
    pub fn f32(&self, key: &str) -> Result<f32, MetadataError> {
        self.required(key, self.optional_f32(key)?)
    }

    /// A boolean; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not a boolean.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong_type(key, "bool", other)),
        }
    }

    /// As [`Self::optional_bool`], but a missing key is an error.
    ///
    /// # Errors
    /// The key is missing, or the value is not a boolean.
    pub fn bool(&self, key: &str) -> Result<bool, MetadataError> {
        self.required(key, self.optional_bool(key)?)
    }

    /// A text; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not a string.
    pub fn optional_str(&self, key: &str) -> Result<Option<&str>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong_type(key, "string", other)),
        }
    }

    /// As [`Self::optional_str`], but a missing key is an error.
    ///
    /// # Errors
    /// The key is missing, or the value is not a string.
    pub fn str(&self, key: &str) -> Result<&str, MetadataError> {
        self.required(key, self.optional_str(key)?)
    }

    /// An array of texts; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not an array of strings.
    pub fn optional_strings(&self, key: &str) -> Result<Option<&[String]>, MetadataError> {
        self.array(key, "array of string", |array| match array {
            Array::String(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// As [`Self::optional_strings`], but a missing key is an error.
    ///
    /// # Errors
    /// The key is missing, or the value is not an array of strings.
    pub fn strings(&self, key: &str) -> Result<&[String], MetadataError> {
        self.required(key, self.optional_strings(key)?)
    }

    /// An array of f32; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not an array of f32.
    pub fn optional_f32s(&self, key: &str) -> Result<Option<&[f32]>, MetadataError> {
        self.array(key, "array of f32", |array| match array {
            Array::F32(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any stored width that all fit u32; `None` if the key is missing.
    ///
    /// # Errors
    /// The value is not an array of integers, or one does not fit.
    pub fn optional_u32s(&self, key: &str) -> Result<Option<Vec<u32>>, MetadataError> {
        const EXPECTED: &str = "array of u32";
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let Value::Array(array) = value else {
            return Err(self.wrong_type(key, EXPECTED, value));
        };
        let wide = array
            .integers()
            .ok_or_else(|| self.wrong_type(key, EXPECTED, value))?;
        let narrow = |v: i128| {
            u32::try_from(v).map_err(|_| {
                let found = v.to_string();
                self.error(
                    key,
                    MetadataProblem::Range {
                        expected: "u32",
                        found,
                    },
                )
            })
        };
        wide.into_iter()
            .map(narrow)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// As [`Self::optional_u32s`], but a missing key is an error.
    ///
    /// # Errors
    /// The key is missing, the value is not an array of integers, or one does not fit.
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>, MetadataError> {
        self.required(key, self.optional_u32s(key)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut m = Metadata::new(PathBuf::from("m.gguf"));
        m.insert("u64", Value::U64(7));
        m.insert("negative", Value::I32(-1));
        m.insert("big", Value::U64(1 << 40));
        m.insert("f64", Value::F64(0.5));
        m.insert("huge", Value::F64(1e300));
        m.insert("text", Value::String("t".into()));
        m.insert("flag", Value::Bool(true));
        m.insert("i32s", Value::Array(Array::I32(vec![0, 4])));
        m.insert("bad", Value::Array(Array::I32(vec![0, -4])));
        m.insert("words", Value::Array(Array::String(vec!["a".into()])));
        m
    }

    #[test]
    fn any_integer_width_reads_as_u32_if_it_fits() {
        let m = sample();
        assert_eq!(m.u32("u64"), Ok(7));
        assert_eq!(m.optional_u32("none"), Ok(None));
        assert_eq!(m.u32s("i32s"), Ok(vec![0, 4]));
        assert_eq!(m.f32("f64"), Ok(0.5));
        assert_eq!(m.u64("big"), Ok(1 << 40));
        assert_eq!(m.strings("words").map(<[String]>::len), Ok(1));
        for (result, want) in [
            (m.u32("negative"), "is -1, which does not fit u32"),
            (m.u32("big"), "is 1099511627776, which does not fit u32"),
            (m.u32("text"), "must be u32, but is string"),
            (m.u32("i32s"), "must be u32, but is array of i32"),
            (m.u32("none"), "is missing"),
        ] {
            let text = result.unwrap_err().to_string();
            assert!(
                text.starts_with("m.gguf: metadata key ") && text.ends_with(want),
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_types_name_both_types() {
        let m = sample();
        assert!(
            m.bool("u64")
                .unwrap_err()
                .to_string()
                .contains("must be bool, but is u64")
        );
        assert!(
            m.str("flag")
                .unwrap_err()
                .to_string()
                .contains("must be string, but is bool")
        );
        assert!(
            m.f32("u64")
                .unwrap_err()
                .to_string()
                .contains("must be f32, but is u64")
        );
        assert!(
            m.f32("huge")
                .unwrap_err()
                .to_string()
                .contains("does not fit f32")
        );
        assert!(
            m.u32s("bad")
                .unwrap_err()
                .to_string()
                .contains("is -4, which")
        );
        assert!(
            m.strings("i32s")
                .unwrap_err()
                .to_string()
                .contains("but is array of i32")
        );
        assert!(
            m.optional_f32s("text")
                .unwrap_err()
                .to_string()
                .contains("but is string")
        );
    }
}
