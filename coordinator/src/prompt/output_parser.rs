//! An answer's text to reasoning, content and tool calls, delta by delta.
//!
//! Markers are recognised by their text. The reference does the same, and a model that spells
//! `</think>` in ordinary tokens means it; so special tokens are decoded to their names before
//! they come here. How the text is cut into deltas makes no difference to the concatenated
//! events. Text is never lost: what looked like a block of calls and is none comes back as text,
//! and stray text inside a call is passed on as content. Only markers and the newlines around
//! them disappear.

use serde::de::IgnoredAny;

use super::markers::END_THINK;
use super::stop_filter::{StopFilter, overlap};
use super::tags::{Found, Spelling, Tag, ValueEnd, literal};

/// What the model writes first; the prompt decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Text without any structure: all of it is content.
    Plain,
    /// Reasoning; newlines at its beginning are dropped.
    Reasoning,
    /// The rest of a reasoning that the prompt began.
    ReasoningContinued,
    /// The answer; newlines at its beginning are dropped.
    Content,
    /// The rest of an answer that the prompt began.
    ContentContinued,
    /// Calls of a block that the prompt opened.
    ToolCalls,
}

/// A part of an answer. Neighbours of one kind belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputEvent {
    /// More reasoning.
    Reasoning(String),
    /// More of the answer.
    Content(String),
    /// A tool call begins.
    CallStart {
        /// Counts the calls of the answer from 0.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments.
    CallArguments {
        /// The call.
        index: usize,
        /// The next piece of a JSON object's text.
        json: String,
    },
    /// A tool call is complete. Without this event its arguments are cut off, which leaves their
    /// JSON open, so that nobody takes it for the whole.
    CallEnd {
        /// The call.
        index: usize,
    },
}

/// Whether the model should go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It should.
    Continue,
    /// A stop string was found; more text would be ignored.
    Stopped,
}

/// How the text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The model ended its turn, or a stop string was found.
    Stop,
    /// The limit of tokens was reached.
    Length,
}

/// Why the answer ended, in the words of the chat API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model had said everything, or a stop string was found.
    Stop,
    /// It was cut off.
    Length,
    /// It waits for the results of its calls.
    ToolCalls,
}

impl FinishReason {
    /// The name in the chat API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

#[derive(Clone, Debug)]
enum State {
    Plain,
    Reasoning,
    Content,
    /// In a block, before or after a call.
    Between(Spelling),
    /// In a call, before or after an argument.
    Call(Spelling),
    /// In an argument that is text.
    Text(Spelling),
    /// In an argument that is JSON; what has come of it.
    Json(Spelling, String),
}

/// What a step did with the text at hand.
enum Step {
    /// Dealt with so many bytes of it; none if only the state changed.
    Used(usize),
    /// Cannot tell before more has come.
    Wait,
}

/// Parses one answer.
#[derive(Clone, Debug)]
pub struct OutputParser {
    state: State,
    tools_offered: bool,
    stops: StopFilter,
    /// Text that no step could deal with yet.
    unread: String,
    /// Blanks that disappear if a marker follows.
    gap: String,
    drop_newlines: bool,
    calls_started: usize,
    calls_complete: usize,
    /// Arguments of the current call.
    arguments: usize,
}

impl OutputParser {
    /// A parser at the beginning of an answer. Calls are only looked for if tools were offered;
    /// `stops` end the content, not the reasoning and not calls.
    pub fn new(start: Start, tools_offered: bool, stops: Vec<String>) -> Self {
        let state = match start {
            Start::Plain => State::Plain,
            Start::Reasoning | Start::ReasoningContinued => State::Reasoning,
            Start::Content | Start::ContentContinued => State::Content,
            Start::ToolCalls => State::Between(Spelling::Dsml),
        };
        Self {
            state,
            tools_offered,
            stops: StopFilter::new(stops),
            unread: String::new(),
            gap: String::new(),
            drop_newlines: matches!(start, Start::Reasoning | Start::Content),
            calls_started: 0,
            calls_complete: 0,
            arguments: 0,
        }
    }

    /// Takes more text and appends what is certain of it to `out`.
    pub fn push(&mut self, delta: &str, out: &mut Vec<OutputEvent>) -> Progress {
        let mut text = std::mem::take(&mut self.unread);
        text.push_str(delta);
        let mut read = 0;
        while read < text.len() && !self.stops.stopped() {
            match self.step(&text[read..], out) {
                Step::Used(bytes) => read += bytes,
                Step::Wait => break,
            }
        }
        if self.stops.stopped() {
            return Progress::Stopped;
        }
        text.drain(..read);
        self.unread = text;
        Progress::Continue
    }

    /// Ends the answer: what was held back is appended to `out`.
    pub fn finish(&mut self, ended: Ended, out: &mut Vec<OutputEvent>) -> FinishReason {
        let unread = std::mem::take(&mut self.unread);
        if !self.stops.stopped() {
            match self.state {
                State::Plain | State::Reasoning | State::Content => {
                    self.flush_gap(out);
                    self.emit(&unread, out);
                }
                State::Text(spelling) if !unread.starts_with(spelling.value_end()) => {
                    self.emit_escaped(&unread, out);
                }
                // Blanks, or the beginning of a tag.
                _ => {}
            }
        }
        let held = self.stops.finish();
        push_content(held, out);
        match ended {
            Ended::Length => FinishReason::Length,
            Ended::Stop if self.stops.stopped() => FinishReason::Stop,
            Ended::Stop if self.calls_complete > 0 && !self.call_is_open() => {
                FinishReason::ToolCalls
            }
            Ended::Stop => FinishReason::Stop,
        }
    }

    /// Whether the next token belongs to the tags of a call rather than to anything of the
    /// model's own wording. Tags are best chosen greedily.
    pub fn in_markup(&self) -> bool {
        match &self.state {
            State::Plain => false,
            State::Reasoning | State::Content => {
                self.tools_offered
                    && matches!(literal(&self.unread, &["<｜DSML｜"]), Found::Tag(..))
            }
            State::Between(_) | State::Call(_) => true,
            State::Text(spelling) | State::Json(spelling, _) => {
                self.unread.starts_with(spelling.value_end())
            }
        }
    }

    fn call_is_open(&self) -> bool {
        self.calls_started > self.calls_complete
    }

    fn step(&mut self, text: &str, out: &mut Vec<OutputEvent>) -> Step {
        match self.state {
            State::Plain => {
                self.emit(text, out);
                Step::Used(text.len())
            }
            State::Reasoning | State::Content => self.step_text(text, out),
            State::Between(spelling) => self.step_between(spelling, text, out),
            State::Call(spelling) => self.step_call(spelling, text, out),
            State::Text(spelling) | State::Json(spelling, _) => {
                self.step_value(spelling, text, out)
            }
        }
    }

    fn step_text(&mut self, text: &str, out: &mut Vec<OutputEvent>) -> Step {
        let newlines = text.len() - text.trim_start_matches('\n').len();
        if newlines > 0 {
            if !self.drop_newlines {
                self.gap.push_str(&text[..newlines]);
            }
            return Step::Used(newlines);
        }
        if text.starts_with('<') {
            return self.step_marker(text, out);
        }
        let words = text.find(['\n', '<']).unwrap_or(text.len());
        self.drop_newlines = false;
        self.flush_gap(out);
        self.emit(&text[..words], out);
        Step::Used(words)
    }

    fn step_marker(&mut self, text: &str, out: &mut Vec<OutputEvent>) -> Step {
        let in_reasoning = matches!(self.state, State::Reasoning);
        let mut partial = false;
        match literal(text, &[END_THINK]) {
            Found::Tag((), length) => {
                if in_reasoning {
                    self.gap.clear();
                    self.drop_newlines = true;
                    self.state = State::Content;
                }
                return Step::Used(length);
            }
            Found::Partial => partial = true,
            Found::Nothing => {}
        }
        // Reasoning may well talk about plain tags.
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
                    return Step::Used(length);
                }
                Found::Partial => partial = true,
                Found::Nothing => {}
            }
        }
        if partial {
            return Step::Wait;
        }
        self.drop_newlines = false;
        self.flush_gap(out);
        self.emit("<", out);
        Step::Used(1)
    }

    fn step_between(&mut self, spelling: Spelling, text: &str, out: &mut Vec<OutputEvent>) -> Step {
        let blanks = text.len() - text.trim_ascii_start().len();
        if blanks > 0 {
            self.gap.push_str(&text[..blanks]);
            return Step::Used(blanks);
        }
        let (tag, length) = match spelling.tag(text) {
            Found::Tag(tag, length) => (Some(tag), length),
            Found::Partial => return Step::Wait,
            Found::Nothing => (None, 0),
        };
        match tag {
            Some(Tag::Invoke { name }) => {
                self.gap.clear();
                self.start_call(spelling, name, out);
                Step::Used(length)
            }
            Some(Tag::EndCalls) => {
                self.gap.clear();
                self.end_block();
                Step::Used(length)
            }
            // No call, so the block is over without its end tag.
            _ => {
                self.end_block();
                let gap = std::mem::take(&mut self.gap);
                self.gap.push_str(gap.trim_start_matches('\n'));
                Step::Used(0)
            }
        }
    }

    fn step_call(&mut self, spelling: Spelling, text: &str, out: &mut Vec<OutputEvent>) -> Step {
        let blanks = text.len() - text.trim_ascii_start().len();
        if blanks > 0 {
            return Step::Used(blanks);
        }
        if !text.starts_with('<') {
            let stray = text.find('<').unwrap_or(text.len());
            self.emit(&text[..stray], out);
            return Step::Used(stray);
        }
        match spelling.tag(text) {
            Found::Partial => Step::Wait,
            Found::Nothing => {
                self.emit("<", out);
                Step::Used(1)
            }
            Found::Tag(tag, length) => {
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
                Step::Used(length)
            }
        }
    }

    fn step_value(&mut self, spelling: Spelling, text: &str, out: &mut Vec<OutputEvent>) -> Step {
        let end = spelling.value_end();
        let value = text
            .find(end)
            .unwrap_or_else(|| text.len() - overlap(text, end));
        if value > 0 {
            match &mut self.state {
                State::Json(_, json) => json.push_str(&text[..value]),
                _ => self.emit_escaped(&text[..value], out),
            }
            return Step::Used(value);
        }
        if !text.starts_with(end) {
            return Step::Wait;
        }
        let Found::Tag(meaning, length) = spelling.end_of_value(text) else {
            return Step::Wait;
        };
        self.end_argument(spelling, out);
        if meaning != ValueEnd::Parameter {
            self.end_call(spelling, out);
        }
        if meaning == ValueEnd::Calls {
            self.end_block();
        }
        Step::Used(length)
    }

    fn start_call(&mut self, spelling: Spelling, name: String, out: &mut Vec<OutputEvent>) {
        // No stop string reaches across a call.
        let held = self.stops.finish();
        push_content(held, out);
        out.push(OutputEvent::CallStart {
            index: self.calls_started,
            name,
        });
        self.calls_started += 1;
        self.arguments = 0;
        self.state = State::Call(spelling);
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
        self.state = if is_string {
            State::Text(spelling)
        } else {
            State::Json(spelling, String::new())
        };
    }

    fn end_argument(&mut self, spelling: Spelling, out: &mut Vec<OutputEvent>) {
        match std::mem::replace(&mut self.state, State::Call(spelling)) {
            State::Json(_, json) if serde_json::from_str::<IgnoredAny>(&json).is_ok() => {
                self.emit_json(&json, out);
            }
            // Not JSON after all. As text it keeps the arguments readable.
            State::Json(_, text) => self.emit_json(&format!("\"{}\"", escape(&text)), out),
            _ => self.emit_json("\"", out),
        }
    }

    fn end_call(&mut self, spelling: Spelling, out: &mut Vec<OutputEvent>) {
        self.emit_json(if self.arguments == 0 { "{}" } else { "}" }, out);
        out.push(OutputEvent::CallEnd {
            index: self.calls_complete,
        });
        self.calls_complete += 1;
        self.state = State::Between(spelling);
    }

    fn end_block(&mut self) {
        self.state = State::Content;
        self.drop_newlines = true;
    }

    fn flush_gap(&mut self, out: &mut Vec<OutputEvent>) {
        let gap = std::mem::take(&mut self.gap);
        self.emit(&gap, out);
    }

    /// Passes on text of the model's own wording.
    fn emit(&mut self, text: &str, out: &mut Vec<OutputEvent>) {
        if !matches!(self.state, State::Reasoning) {
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

/// `text` as it stands between the quotes of a JSON string.
fn escape(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
