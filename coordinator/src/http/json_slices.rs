//! JSON text in slices: the values of an object's fields and of a list's entries as the parts of the
//! text that hold them, without copies.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{ApiError, shortened};

/// The names that any reader of a body asks for. All others are skipped.
pub(super) const KNOWN: &[&str] = &[
    "arguments",
    "best_of",
    "chat_template_kwargs",
    "content",
    "continuous_usage_stats",
    "echo",
    "enable_thinking",
    "frequency_penalty",
    "function",
    "functions",
    "id",
    "ignore_eos",
    "include_usage",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "min_p",
    "model",
    "n",
    "name",
    "prefix",
    "presence_penalty",
    "prompt",
    "reasoning",
    "reasoning_content",
    "reasoning_effort",
    "repetition_penalty",
    "response_format",
    "role",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "text",
    "think",
    "thinking",
    "tool_call_id",
    "tool_calls",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "type",
];

/// Lists and objects that may stand inside each other.
const MAX_DEPTH: usize = 128;

/// The type of a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Number,
    String,
    List,
    Object,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::Bool => "a boolean",
            Kind::Number => "a number",
            Kind::String => "a string",
            Kind::List => "a list",
            Kind::Object => "an object",
        }
    }
}

/// The type of a value, which its first byte tells.
pub(super) fn kind_of(raw: &RawValue) -> Kind {
    match raw.get().as_bytes().first() {
        Some(b'n') => Kind::Null,
        Some(b't' | b'f') => Kind::Bool,
        Some(b'"') => Kind::String,
        Some(b'[') => Kind::List,
        Some(b'{') => Kind::Object,
        _ => Kind::Number,
    }
}

/// Whether a list or an object has no entries.
pub(super) fn is_empty(raw: &RawValue) -> bool {
    let inside = raw.get().get(1..raw.get().len() - 1).unwrap_or_default();
    matches!(kind_of(raw), Kind::List | Kind::Object) && inside.trim_start().is_empty()
}

/// The value itself where it is short, otherwise its type.
pub(super) fn describe(raw: &RawValue) -> String {
    match kind_of(raw) {
        Kind::Bool | Kind::Number => shortened(raw.get()),
        // Escapes lengthen the text of a string at most twelvefold.
        Kind::String if raw.get().len() <= 12 * 32 => match decode(raw) {
            Ok(text) if text.chars().count() <= 32 => format!("{text:?}"),
            _ => Kind::String.name().to_owned(),
        },
        Kind::List if is_empty(raw) => "an empty list".to_owned(),
        other => other.name().to_owned(),
    }
}

/// The text of a string: a slice of the body unless it has escapes.
pub(super) fn decode(raw: &RawValue) -> Result<Cow<'_, str>, serde_json::Error> {
    let json = raw.get();
    if json.len() >= 2 && !json.contains('\\') {
        return Ok(Cow::Borrowed(&json[1..json.len() - 1]));
    }
    serde_json::from_str(json).map(Cow::Owned)
}

/// Finds a `\u` escape of half a pair in the JSON text of a string: its offset and itself.
pub(super) fn lone_surrogate(json: &str) -> Option<(usize, &str)> {
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = json.get(at..)?.find('\\') {
        at += found;
        match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => at += 12,
            (Some(0xd800..=0xdfff), _) => return Some((at - 1, json.get(at..at + 6)?)),
            (Some(_), _) => at += 6,
            (None, _) => at += 2,
        }
    }
    None
}

/// Refuses a text that is nested too deeply, before anything is read from it.
pub(super) fn check_depth(json: &str) -> Result<(), ApiError> {
    let mut depth = 0usize;
    for byte in outside_strings(json) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            let message = format!("the body is nested more than {MAX_DEPTH} levels deep");
            return Err(ApiError {
                code: Some("malformed_json"),
                ..ApiError::invalid(message)
            });
        }
    }
    Ok(())
}

/// At least the number of values in a JSON text, names of fields included.
pub(super) fn count_values(json: &str) -> usize {
    let separates = |byte: &u8| matches!(byte, b',' | b':' | b'[' | b'{');
    1 + outside_strings(json).filter(separates).count()
}

/// The bytes of a JSON text that are in no string, without most of the others.
fn outside_strings(json: &str) -> impl Iterator<Item = u8> {
    let (mut inside, mut escaped) = (false, false);
    json.bytes().filter(move |&byte| {
        if !inside {
            inside = byte == b'"';
            return !inside;
        }
        inside = escaped || byte != b'"';
        escaped = !escaped && byte == b'\\';
        false
    })
}

/// The known fields of an object, the last of each name.
pub(super) fn known_fields(
    raw: &RawValue,
) -> Result<Vec<(&'static str, &RawValue)>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    deserializer.deserialize_map(FieldsVisitor)
}

/// Calls `read` with every entry of a list until it returns false.
pub(super) fn entries<'a>(
    raw: &'a RawValue,
    read: impl FnMut(&'a RawValue) -> bool,
) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    deserializer.deserialize_seq(EntriesVisitor(read))
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Vec<(&'static str, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Self::Value = Vec::new();
        while let Some(name) = map.next_key_seed(KnownName)? {
            let Some(name) = name else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value()?;
            match fields.iter_mut().find(|(known, _)| *known == name) {
                Some((_, earlier)) => *earlier = value,
                None => fields.push((name, value)),
            }
        }
        Ok(fields)
    }
}

/// Reads a name; `None` if it is not known.
struct KnownName;

impl<'de> DeserializeSeed<'de> for KnownName {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KnownName {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(KNOWN.iter().copied().find(|known| *known == name))
    }
}

struct EntriesVisitor<R>(R);

impl<'de, R: FnMut(&'de RawValue) -> bool> Visitor<'de> for EntriesVisitor<R> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element()? {
            if !(self.0)(entry) {
                return Err(A::Error::custom("the rest is not wanted"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> &RawValue {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn known_fields_are_slices_and_the_last_of_a_name_counts() {
        let json = r#"{"model": 1, "other": [{"model": 2}], "m\u006fdel": "x", "n": [ 1 ]}"#;
        let fields = known_fields(raw(json)).unwrap();
        let texts: Vec<_> = fields
            .iter()
            .map(|(name, raw)| (*name, raw.get()))
            .collect();
        assert_eq!(texts, [("model", "\"x\""), ("n", "[ 1 ]")]);
    }

    #[test]
    fn brackets_in_strings_have_no_depth() {
        let text = format!(r#"{{"a": "{}\\\"["}}"#, "[".repeat(1000));
        assert_eq!(check_depth(&text), Ok(()));
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(check_depth(&nested(128)), Ok(()));
        assert!(check_depth(&nested(129)).is_err());
        assert_eq!(check_depth(&"[]".repeat(1000)), Ok(()));
    }

    #[test]
    fn values_are_described_in_short() {
        for (json, description) in [
            ("true", "true"),
            ("-1.5e3", "-1.5e3"),
            (r#""\u0041 b""#, r#""A b""#),
            ("[ ]", "an empty list"),
            ("[0]", "a list"),
            ("{ }", "an object"),
        ] {
            assert_eq!(describe(raw(json)), description);
        }
        let long = format!("\"{}\"", "x".repeat(33));
        assert_eq!(describe(raw(&long)), "a string");
        assert!(describe(raw(&"9".repeat(400))).chars().count() < 70);
    }

    #[test]
    fn the_list_of_names_is_sorted() {
        assert!(KNOWN.is_sorted());
    }
}
