//! Prompt text in segments that carry their author, so that users cannot forge special tokens.

/// Who wrote a segment of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The prompt format: the only text in which special tokens are recognised.
    Template,
    /// Anyone else: the user, a tool, an earlier answer. The name of a special token is ordinary
    /// text here.
    Guest,
}

/// A run of prompt text by one author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The text, UTF-8.
    pub text: String,
    /// Its author, which decides whether special tokens are recognised in it.
    pub author: Author,
}

impl Segment {
    /// A segment of the prompt format.
    pub fn template(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            author: Author::Template,
        }
    }

    /// A segment of any other author.
    pub fn guest(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            author: Author::Guest,
        }
    }

    /// Whether special tokens are recognised in it.
    pub fn is_template(&self) -> bool {
        self.author == Author::Template
    }
}

/// Collects segments and joins successive ones of the same author.
#[derive(Debug, Default)]
pub(super) struct SegmentWriter {
    segments: Vec<Segment>,
}

impl SegmentWriter {
    pub(super) fn template(&mut self, text: &str) {
        self.push(text, Author::Template);
    }

    pub(super) fn guest(&mut self, text: &str) {
        self.push(text, Author::Guest);
    }

    pub(super) fn finish(self) -> Vec<Segment> {
        self.segments
    }

    fn push(&mut self, text: &str, author: Author) {
        if text.is_empty() {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.author == author => last.text.push_str(text),
            _ => self.segments.push(Segment {
                text: text.to_owned(),
                author,
            }),
        }
    }
}
