//! JSON text with a space after each comma and colon, as in the models' training data.
//!
//! This is the layout of Python's `json.dumps(..., ensure_ascii=False)`; numbers keep the form
//! that `serde_json` gives them (`1e-7`, `2.5`).

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

/// Writes `value` as one line of spaced JSON.
pub(super) fn to_string<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut bytes, Spaced,
    ))?;
    String::from_utf8(bytes).map_err(|e| serde::ser::Error::custom(e.utf8_error()))
}

struct Spaced;

fn separator<W: ?Sized + Write>(writer: &mut W, first: bool) -> io::Result<()> {
    if first {
        Ok(())
    } else {
        writer.write_all(b", ")
    }
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        separator(w, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        separator(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::to_string;

    #[test]
    fn spaces_follow_commas_and_colons_only_outside_strings() {
        let value: serde_json::Value = serde_json::from_str(
            r#"{"a":[1,2.50,null,true,[]],"b":{"k":"é,:\n","e":{}},"c":1e-7}"#,
        )
        .unwrap();
        assert_eq!(
            to_string(&value).unwrap(),
            r#"{"a": [1, 2.5, null, true, []], "b": {"k": "é,:\n", "e": {}}, "c": 1e-7}"#
        );
    }
}
