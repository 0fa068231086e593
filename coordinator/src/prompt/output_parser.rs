//! Splits an answer's text into reasoning, content and tool calls, delta by delta.
//!
//! Markers are recognised by their text, as in DeepSeek's own parser: a model that spells
//! `</think>` in ordinary tokens means the marker. Special tokens therefore arrive here as their
//! names. How the text is cut into deltas makes no difference to the concatenated events. No text
//! is lost: what looked like a block of calls and is not comes out as content, and so does stray
//! text inside a call. Only markers and the newlines around them disappear.

use serde::de::IgnoredAny;

use super::markers::END_THINK;
use super::output::{AnswerStart, Continuation, Ended, FinishReason, OutputEvent};
use super::stop_filter::{StopFilter, overlap};
use super::tags::{Found, Spelling, Tag, ValueEnd, literal};

/// What the text that comes next is part of.
#[derive(Clone, Debug)]
enum Section {
    /// Content in which no marker means anything.
    Plain,
    Reasoning,
    Content,
    /// A block of calls, before or after a call.
    Between(Spelling),
    /// A call, before or after an argument.
    Call(Spelling),
    /// An argument that is text.
    Text(Spelling),
    /// An argument that is JSON, and what has come of it.
    Json(Spelling, String),
}

/// How much of the text at hand was consumed.
enum Consumed {
    /// So many bytes; 0 if only the section changed.
    Bytes(usize),
    /// Nothing can be said before more text has come.
    NeedMore,
}

/// Parses one answer.
#[derive(Clone, Debug)]
pub struct OutputParser {
    section: Section,
    tools_offered: bool,
    stops: StopFilter,
    /// Text that was not consumed yet.
    unread: String,
    /// Blanks that are dropped if a marker follows.
    gap: String,
    /// Whether blanks are dropped whatever follows: newlines at the beginning of a text, any blanks
    /// after a tag inside a call.
    drop_blanks: bool,
    calls_started: usize,
    calls_complete: usize,
    /// Number of arguments of the current call so far.
    arguments: usize,
}

impl OutputParser {
    /// A parser at the beginning of an answer. Calls are recognised only if tools were offered. The
    /// strings in `stops` end the content; reasoning and calls may contain them.
    pub fn new(start: AnswerStart, tools_offered: bool, stops: Vec<String>) -> Self {
        let section = match start {
            AnswerStart::Plain => Section::Plain,
            AnswerStart::Reasoning | AnswerStart::ReasoningContinued => Section::Reasoning,
            AnswerStart::Content | AnswerStart::ContentContinued => Section::Content,
            AnswerStart::ToolCalls => Section::Between(Spelling::Dsml),
        };
        Self {
            section,
            tools_offered,
            stops: StopFilter::new(stops),
            unread: String::new(),
            gap: String::new(),
            drop_blanks: matches!(start, AnswerStart::Reasoning | AnswerStart::Content),
            calls_started: 0,
            calls_complete: 0,
            arguments: 0,
        }
    }

    /// Takes more text and appends the events that are certain to `out`.
    pub fn push(&mut self, delta: &str, out: &mut Vec<OutputEvent>) -> Continuation {
        let mut text = std::mem::take(&mut self.unread);
        text.push_str(delta);
        let mut done = 0;
        while done < text.len() && !self.stops.stopped() {
            match self.read(&text[done..], out) {
                Consumed::Bytes(bytes) => done += bytes,
                Consumed::NeedMore => break,
            }
        }
        if self.stops.stopped() {
            return Continuation::Stopped;
        }
        text.drain(..done);
        self.unread = text;
        Continuation::Continue
    }

    /// Ends the answer and appends what was held back to `out`.
    pub fn finish(&mut self, ended: Ended, out: &mut Vec<OutputEvent>) -> FinishReason {
        let unread = std::mem::take(&mut self.unread);
        if !self.stops.stopped() {
            match self.section {
                Section::Plain | Section::Reasoning | Section::Content => {
                    self.flush_gap(out);
                    self.emit(&unread, out);
                }
                Section::Text(spelling) if !unread.starts_with(spelling.value_end()) => {
                    self.emit_escaped(&unread, out);
                }
                // What is left are blanks or the beginning of a tag, which are dropped.
                _ => {}
            }
        }
        let held = self.stops.finish();
        push_content(held, out);
        match ended {
            _ if self.stops.stopped() => FinishReason::Stop,
            Ended::Length => FinishReason::Length,
            Ended::Stop if self.calls_complete > 0 && !self.call_is_open() => {
                FinishReason::ToolCalls
            }
            Ended::Stop => FinishReason::Stop,
        }
    }

    /// Whether the next token belongs to the tags of a call rather than to free text. Such tokens
    /// are best chosen greedily, since any other choice breaks the tag.
    pub fn in_markup(&self) -> bool {
        match &self.section {
            Section::Plain => false,
            Section::Reasoning | Section::Content => {
                self.tools_offered
                    && matches!(literal(&self.unread, &["<｜DSML｜"]), Found::Tag(..))
            }
            Section::Between(_) | Section::Call(_) => true,
            Section::Text(spelling) | Section::Json(spelling, _) => {
                self.unread.starts_with(spelling.value_end())
            }
        }
    }

    fn call_is_open(&self) -> bool {
        self.calls_started > self.calls_complete
    }

    fn read(&mut self, text: &str, out: &mut Vec<OutputEvent>) -> Consumed {
        match self.section {
            Section::Plain => {
                self.emit(text, out);
                Consumed::Bytes(text.len())
            }
            Section::Reasoning | Section::Content => self.read_text(text, out),
            Section::Between(spelling) => self.read_between(spelling, text, out),
            Section::Call(spelling) => self.read_call(spelling, text, out),
            Section::Text(spelling) | Section::Json(spelling, _) => {
                self.read_value(spelling, text, out)
            }
        }
    }

    fn read_text(&mut self, text: &str, out: &mut Vec<OutputEvent>) -> Consumed {
        let newlines = text.len() - text.trim_start_matches('\n').len();
        if newlines > 0 {
            if !self.drop_blanks {
                self.gap.push_str(&text[..newlines]);
                // A stop string may contain the newlines, even if a marker follows them.
                if matches!(self.section, Section::Content)
                    && self.stops.would_stop(&self.gap, newlines)
                {
                    self.flush_gap(out);
                }
            }
            return Consumed::Bytes(newlines);
        }
        if text.starts_with('<') {
            return self.read_marker(text, out);
        }
        let words = text.find(['\n', '<']).unwrap_or(text.len());
        self.emit_words(&text[..words], out);
        Consumed::Bytes(words)
    }

    fn read_marker(&mut self, text: &str, out: &mut Vec<OutputEvent>) -> Consumed {
        let in_reasoning = matches!(self.section, Section::Reasoning);
        let mut partial = false;
        match literal(text, &[END_THINK]) {
            Found::Tag((), length) => {
                if in_reasoning {
                    self.gap.clear();
                    self.drop_blanks = true;
                    self.section = Section::Content;
                }
                return Consumed::Bytes(length);
            }
            Found::Partial => partial = true,
            Found::Nothing => {}
        }
        // Reasoning may mention plain tags without meaning a call.
        let spellings: &[Spelling] = match (self.tools_offered, in_reasoning) {
            (false, _) => &[],
            (true, true) => &[Spelling::Dsml],
            (true, false) => &[Spelling::Dsml, Spelling::Plain],
        };
        for &spelling in spellings {
            match spelling.opening(text) {
                Found::Tag(name, length) => {
                    self.gap.clear();
                    self.start_call(spelling, name, out);
                    return Consumed::Bytes(length);
                }
                Found::Partial => partial = true,
                Found::Nothing => {}
            }
        }
        if partial {
            return Consumed::NeedMore;
        }
        self.emit_words("<", out);
        Consumed::Bytes(1)
    }

    fn read_between(
        &mut self,
        spelling: Spelling,
        text: &str,
        out: &mut Vec<OutputEvent>,
    ) -> Consumed {
        let blanks = text.len() - text.trim_ascii_start().len();
        if blanks > 0 {
            self.gap.push_str(&text[..blanks]);
            return Consumed::Bytes(blanks);
        }
        let (tag, length) = match spelling.tag(text) {
            Found::Tag(tag, length) => (Some(tag), length),
            Found::Partial => return Consumed::NeedMore,
            Found::Nothing => (None, 0),
        };
        match tag {
            Some(Tag::Invoke { name }) => {
                self.gap.clear();
                self.start_call(spelling, name, out);
                Consumed::Bytes(length)
            }
            Some(Tag::EndCalls) => {
                self.gap.clear();
                self.end_block();
                Consumed::Bytes(length)
            }
            // Not a call, so the block has ended without its end tag.
            _ => {
                self.end_block();
                let gap = std::mem::take(&mut self.gap);
                self.gap.push_str(gap.trim_start_matches('\n'));
                Consumed::Bytes(0)
            }
        }
    }

    fn read_call(
        &mut self,
        spelling: Spelling,
        text: &str,
        out: &mut Vec<OutputEvent>,
    ) -> Consumed {
        let blanks = text.len() - text.trim_ascii_start().len();
        if blanks > 0 {
            if !self.drop_blanks {
                self.gap.push_str(&text[..blanks]);
            }
            return Consumed::Bytes(blanks);
        }
        if !text.starts_with('<') {
            let is_border = |c: char| c == '<' || c.is_ascii_whitespace();
            let words = text.find(is_border).unwrap_or(text.len());
            self.emit_words(&text[..words], out);
            return Consumed::Bytes(words);
        }
        match spelling.tag(text) {
            Found::Partial => Consumed::NeedMore,
            Found::Nothing => {
                self.emit_words("<", out);
                Consumed::Bytes(1)
            }
            Found::Tag(tag, length) => {
                self.gap.clear();
                match tag {
                    Tag::Parameter { name, is_string } => {
                        self.start_argument(spelling, &name, is_string, out);
                    }
                    Tag::EndInvoke => self.end_call(spelling, out),
                    Tag::EndCalls => {
                        self.end_call(spelling, out);
                        self.end_block();
                    }
                    Tag::Invoke { name } => {
                        self.end_call(spelling, out);
                        self.start_call(spelling, name, out);
                    }
                }
                Consumed::Bytes(length)
            }
        }
    }

    fn read_value(
        &mut self,
        spelling: Spelling,
        text: &str,
        out: &mut Vec<OutputEvent>,
    ) -> Consumed {
        let end = spelling.value_end();
        let value = text
            .find(end)
            .unwrap_or_else(|| text.len() - overlap(text, end));
        if value > 0 {
            match &mut self.section {
                Section::Json(_, json) => json.push_str(&text[..value]),
                _ => self.emit_escaped(&text[..value], out),
            }
            return Consumed::Bytes(value);
        }
        if !text.starts_with(end) {
            return Consumed::NeedMore;
        }
        let Found::Tag(meaning, length) = spelling.end_of_value(text) else {
            return Consumed::NeedMore;
        };
        self.end_argument(spelling, out);
        if meaning != ValueEnd::Parameter {
            self.end_call(spelling, out);
        }
        if meaning == ValueEnd::Calls {
            self.end_block();
        }
        Consumed::Bytes(length)
    }

    fn start_call(&mut self, spelling: Spelling, name: String, out: &mut Vec<OutputEvent>) {
        // A stop string does not reach across a call.
        let held = self.stops.finish();
        push_content(held, out);
        out.push(OutputEvent::CallStart {
            index: self.calls_started,
            name,
        });
        self.calls_started += 1;
        self.arguments = 0;
        self.section = Section::Call(spelling);
        self.drop_blanks = true;
    }

    fn start_argument(
        &mut self,
        spelling: Spelling,
        name: &str,
        is_string: bool,
        out: &mut Vec<OutputEvent>,
    ) {
        let separator = if self.arguments == 0 { "{" } else { ", " };
        let quote = if is_string { "\"" } else { "" };
        self.emit_json(&format!("{separator}\"{}\": {quote}", escape(name)), out);
        self.arguments += 1;
        self.section = if is_string {
            Section::Text(spelling)
        } else {
            Section::Json(spelling, String::new())
        };
    }

    fn end_argument(&mut self, spelling: Spelling, out: &mut Vec<OutputEvent>) {
        match std::mem::replace(&mut self.section, Section::Call(spelling)) {
            Section::Json(_, json) if serde_json::from_str::<IgnoredAny>(&json).is_ok() => {
                self.emit_json(&json, out);
            }
            // Not valid JSON. As a string it keeps the arguments parseable.
            Section::Json(_, text) => self.emit_json(&format!("\"{}\"", escape(&text)), out),
            _ => self.emit_json("\"", out),
        }
        self.drop_blanks = true;
    }

    fn end_call(&mut self, spelling: Spelling, out: &mut Vec<OutputEvent>) {
        self.emit_json(if self.arguments == 0 { "{}" } else { "}" }, out);
        out.push(OutputEvent::CallEnd {
            index: self.calls_complete,
        });
        self.calls_complete += 1;
        self.section = Section::Between(spelling);
    }

    fn end_block(&mut self) {
        self.section = Section::Content;
        self.drop_blanks = true;
    }

    /// Passes on text that is not a marker, and the blanks before it.
    fn emit_words(&mut self, text: &str, out: &mut Vec<OutputEvent>) {
        self.drop_blanks = false;
        self.flush_gap(out);
        self.emit(text, out);
    }

    fn flush_gap(&mut self, out: &mut Vec<OutputEvent>) {
        let gap = std::mem::take(&mut self.gap);
        self.emit(&gap, out);
    }

    /// Passes on reasoning or content.
    fn emit(&mut self, text: &str, out: &mut Vec<OutputEvent>) {
        if !matches!(self.section, Section::Reasoning) {
            let certain = self.stops.push(text);
            return push_content(certain, out);
        }
        match out.last_mut() {
            Some(OutputEvent::Reasoning(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => out.push(OutputEvent::Reasoning(text.to_owned())),
        }
    }

    fn emit_escaped(&mut self, text: &str, out: &mut Vec<OutputEvent>) {
        self.emit_json(&escape(text), out);
    }

    /// Appends to the arguments of the call that started last.
    fn emit_json(&mut self, json: &str, out: &mut Vec<OutputEvent>) {
        match out.last_mut() {
            Some(OutputEvent::CallArguments { json: last, .. }) => last.push_str(json),
            _ if json.is_empty() => {}
            _ => out.push(OutputEvent::CallArguments {
                index: self.calls_started.saturating_sub(1),
                json: json.to_owned(),
            }),
        }
    }
}

fn push_content(text: String, out: &mut Vec<OutputEvent>) {
    match out.last_mut() {
        Some(OutputEvent::Content(last)) => last.push_str(&text),
        _ if text.is_empty() => {}
        _ => out.push(OutputEvent::Content(text)),
    }
}

/// `text` escaped for a place between the quotes of a JSON string.
fn escape(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests;
