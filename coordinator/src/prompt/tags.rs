//! Recognises the tags of tool calls at the beginning of text that may be incomplete.

/// The most bytes of a header, from its `<` to its `>`; anything longer is ordinary text. This
/// bounds what the parser holds back and examines again with each delta.
const HEADER_BYTES_MAX: usize = 4096;

/// A spelling of the tags. Models sometimes omit the special token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `<｜DSML｜invoke …>`
    Dsml,
    /// `<invoke …>`
    Plain,
}

/// What text that starts with `<` turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found<T> {
    /// A tag, and how many bytes of the text belong to it.
    Tag(T, usize),
    /// Possibly the beginning of a tag: more text is needed.
    Partial,
    /// Something else.
    Nothing,
}

/// A tag inside a block of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// Opens a call.
    Invoke {
        /// Name of the tool.
        name: String,
    },
    /// Ends a call.
    EndInvoke,
    /// Opens an argument.
    Parameter {
        /// Name of the argument.
        name: String,
        /// Whether the value is text; otherwise it is JSON.
        is_string: bool,
    },
    /// Ends the block.
    EndCalls,
}

/// What the end of an argument's value ends as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueEnd {
    /// Only the argument.
    Parameter,
    /// The call.
    Invoke,
    /// The block of calls.
    Calls,
}

impl Spelling {
    const fn open(self) -> &'static str {
        match self {
            Self::Dsml => "<｜DSML｜",
            Self::Plain => "<",
        }
    }

    /// The text that ends a value, and that a value therefore cannot contain.
    pub(super) const fn value_end(self) -> &'static str {
        match self {
            Self::Dsml => "</｜DSML｜",
            Self::Plain => "</parameter>",
        }
    }

    /// Recognises the beginning of a block: its tag and the header of the first call, or the header
    /// alone. The plain spelling needs both, because its tags are common in other text.
    pub(super) fn opening(self, text: &str) -> Found<String> {
        let text = clipped(text);
        let after_tag = match literal(text, &[self.open(), "tool_calls>"]) {
            Found::Tag((), length) => length,
            Found::Partial => return Found::Partial,
            Found::Nothing if self == Self::Dsml => 0,
            Found::Nothing => return Found::Nothing,
        };
        let header = text[after_tag..].trim_ascii_start();
        let start = text.len() - header.len();
        let found = match self.invoke(header) {
            Found::Tag(name, length) => Found::Tag(name, start + length),
            Found::Partial => Found::Partial,
            Found::Nothing => Found::Nothing,
        };
        bounded(found, text)
    }

    /// Recognises a tag inside a block.
    pub(super) fn tag(self, text: &str) -> Found<Tag> {
        let text = clipped(text);
        let end = |name| match self {
            Self::Dsml => literal(text, &["</｜DSML｜", name]),
            Self::Plain => literal(text, &["</", name]),
        };
        let choices = [
            self.invoke(text).map(|name| Tag::Invoke { name }),
            self.parameter(text),
            end("invoke>").map(|()| Tag::EndInvoke),
            end("tool_calls>").map(|()| Tag::EndCalls),
        ];
        let partial = choices.contains(&Found::Partial);
        let found = choices
            .into_iter()
            .find(|choice| matches!(choice, Found::Tag(..)));
        let unknown = if partial {
            Found::Partial
        } else {
            Found::Nothing
        };
        bounded(found.unwrap_or(unknown), text)
    }

    /// Recognises the end of a value, in text that starts with [`Self::value_end`]. A malformed end
    /// tag ends the value as well.
    pub(super) fn end_of_value(self, text: &str) -> Found<ValueEnd> {
        let mark = self.value_end().len();
        if self == Self::Plain {
            return Found::Tag(ValueEnd::Parameter, mark);
        }
        let name = &text[mark..];
        let ends = [
            ("parameter>", ValueEnd::Parameter),
            ("invoke>", ValueEnd::Invoke),
            ("tool_calls>", ValueEnd::Calls),
        ];
        for (end, meaning) in ends {
            if name.starts_with(end) {
                return Found::Tag(meaning, mark + end.len());
            }
        }
        if ends.iter().any(|(end, _)| end.starts_with(name)) {
            return Found::Partial;
        }
        Found::Tag(ValueEnd::Parameter, mark)
    }

    fn invoke(self, text: &str) -> Found<String> {
        self.named(text, "invoke name=\"")
            .map(|(name, _)| name.to_owned())
    }

    fn parameter(self, text: &str) -> Found<Tag> {
        self.named(text, "parameter name=\"")
            .map(|(name, attributes)| Tag::Parameter {
                name: name.to_owned(),
                is_string: !attributes.contains("string=\"false\""),
            })
    }

    /// Recognises a header with a name in quotes; returns the name and the attributes after it.
    fn named<'a>(self, text: &'a str, opening: &str) -> Found<(&'a str, &'a str)> {
        let start = match literal(text, &[self.open(), opening]) {
            Found::Tag((), length) => length,
            Found::Partial => return Found::Partial,
            Found::Nothing => return Found::Nothing,
        };
        let Some((name, behind)) = text[start..].split_once('"') else {
            return if text[start..].contains('\n') {
                Found::Nothing
            } else {
                Found::Partial
            };
        };
        if name.is_empty() || name.contains('\n') {
            return Found::Nothing;
        }
        match behind.find(['>', '<', '\n']) {
            None => Found::Partial,
            Some(at) if behind[at..].starts_with('>') => {
                Found::Tag((name, &behind[..at]), text.len() - behind.len() + at + 1)
            }
            Some(_) => Found::Nothing,
        }
    }
}

impl<T> Found<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Self::Tag(tag, length) => Found::Tag(change(tag), length),
            Self::Partial => Found::Partial,
            Self::Nothing => Found::Nothing,
        }
    }
}

/// Recognises the concatenation of `parts` at the beginning of `text`.
pub(super) fn literal(text: &str, parts: &[&str]) -> Found<()> {
    let mut rest = text;
    for part in parts {
        match rest.strip_prefix(part) {
            Some(after) => rest = after,
            None if part.starts_with(rest) => return Found::Partial,
            None => return Found::Nothing,
        }
    }
    Found::Tag((), text.len() - rest.len())
}

/// The beginning of `text`, as far as a header can reach, so that a long text is not searched to
/// its end.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(text.len().min(HEADER_BYTES_MAX + 8))]
}

/// Rejects what is too long. This depends only on where the tag ends, not on how much of the text
/// has come.
fn bounded<T>(found: Found<T>, text: &str) -> Found<T> {
    match found {
        Found::Tag(_, length) if length > HEADER_BYTES_MAX => Found::Nothing,
        Found::Partial if text.len() > HEADER_BYTES_MAX => Found::Nothing,
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Spelling, Tag, ValueEnd};

    #[test]
    fn openings() {
        let block = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">rest";
        assert_eq!(
            Spelling::Dsml.opening(block),
            Found::Tag("f".into(), block.len() - 4)
        );
        let short = "<｜DSML｜invoke name=\"f\">rest";
        assert_eq!(
            Spelling::Dsml.opening(short),
            Found::Tag("f".into(), short.len() - 4)
        );
        let plain = "<tool_calls><invoke name=\"f\">";
        assert_eq!(
            Spelling::Plain.opening(plain),
            Found::Tag("f".into(), plain.len())
        );
        assert_eq!(
            Spelling::Plain.opening("<invoke name=\"f\">"),
            Found::Nothing
        );
        assert_eq!(
            Spelling::Dsml.opening("<｜DSML｜tool_calls>\nno"),
            Found::Nothing
        );
        assert_eq!(
            Spelling::Dsml.opening("<｜DSML｜invoke name=\"\">"),
            Found::Nothing
        );
    }

    #[test]
    fn every_start_of_an_opening_is_partial() {
        let block = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">";
        for (end, _) in block.char_indices().skip(1) {
            assert_eq!(
                Spelling::Dsml.opening(&block[..end]),
                Found::Partial,
                "{}",
                &block[..end]
            );
        }
    }

    #[test]
    fn an_endless_header_is_given_up() {
        let long = format!("<｜DSML｜invoke name=\"{}", "x".repeat(5000));
        assert_eq!(Spelling::Dsml.opening(&long), Found::Nothing);
        assert_eq!(Spelling::Dsml.opening(&(long + "\">")), Found::Nothing);
    }

    #[test]
    fn parameters_are_text_unless_they_say_otherwise() {
        let tag = |text| match Spelling::Dsml.tag(text) {
            Found::Tag(Tag::Parameter { is_string, .. }, _) => is_string,
            other => panic!("{other:?}"),
        };
        assert!(tag("<｜DSML｜parameter name=\"k\" string=\"true\">"));
        assert!(tag("<｜DSML｜parameter name=\"k\">"));
        assert!(!tag("<｜DSML｜parameter name=\"k\" string=\"false\">"));
    }

    #[test]
    fn ends_of_values() {
        let end = |text| Spelling::Dsml.end_of_value(text);
        assert_eq!(
            end("</｜DSML｜parameter>x"),
            Found::Tag(ValueEnd::Parameter, 22)
        );
        assert_eq!(end("</｜DSML｜invoke>"), Found::Tag(ValueEnd::Invoke, 19));
        assert_eq!(end("</｜DSML｜para"), Found::Partial);
        assert_eq!(end("</｜DSML｜ x"), Found::Tag(ValueEnd::Parameter, 12));
    }
}
