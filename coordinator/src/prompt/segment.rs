//! Prompt text in pieces that remember who wrote them.

/// Who wrote a piece of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The prompt format: the only text in which special tokens are recognised.
    Template,
    /// Anybody else: the user, a tool, an earlier answer. A special token's name in it is
    /// ordinary text.
    Guest,
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Who wrote it.
    pub author: Author,
}

impl Segment {
    /// Text of the prompt format.
    pub fn template(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            author: Author::Template,
        }
    }

    /// Text of anybody else.
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

/// Collects segments, joining neighbours of the same author.
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
