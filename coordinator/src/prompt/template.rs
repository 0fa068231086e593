//! Chat prompts in the form that DeepSeek V4 was trained on.
//!
//! A prompt is BOS, the effort text, the head (system messages, tools, answer format), the turns
//! and the opening of the answer. The reference is DeepSeek's own encoder, the crate
//! `deepseek-recipe-encoding`. It is not linked, not even by the tests, because it brings a
//! tokenizer library with a regular expression engine in C; `tests/data/fixtures.json` holds what
//! it renders instead.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::markers::{ASSISTANT, BOS, END_THINK, EOS, LATEST_REMINDER, THINK, USER};
use super::message::{
    Conversation, Effort, Message, ResponseFormat, Thinking, Tool, ToolCall, ToolChoice,
};
use super::output::AnswerStart;
use super::python_json;
use super::segment::{Segment, SegmentWriter};

const EFFORT_X: &str = include_str!("data/effort_x.txt");
const EFFORT_Y: &str = include_str!("data/effort_y.txt");
const TOOLS_HEAD: &str = include_str!("data/tools_head.txt");
const TOOLS_FOOT: &str = include_str!("data/tools_foot.txt");
const JSON_NOTE: &str = include_str!("data/json_note.txt");
const SCHEMA_NOTE: &str = include_str!("data/schema_note.txt");

/// Opens a block of tool calls.
const OPEN_CALLS: &str = "\n\n<｜DSML｜tool_calls>\n";
const BLANK_LINE: &str = "\n\n";

/// The prompt format that a generation of weights was trained on. It cannot be told from the shape
/// of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// The first published weights (April 2026).
    Preview,
    /// The weights of 31 July 2026 and later.
    #[default]
    V0731,
}

impl Dialect {
    /// The dialect of a name on the command line: `preview` or `0731`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "preview" => Some(Self::Preview),
            "0731" => Some(Self::V0731),
            _ => None,
        }
    }

    /// Guesses from what describes a model file: its `general.base_model.0.version`, its name, its
    /// path. The word `preview` in any of them selects the preview, in any case.
    pub fn detect<'a>(hints: impl IntoIterator<Item = &'a str>) -> Self {
        let preview = |hint: &str| hint.to_ascii_lowercase().contains("preview");
        if hints.into_iter().any(preview) {
            Self::Preview
        } else {
            Self::V0731
        }
    }

    fn effort_text(self, effort: Option<Effort>) -> &'static str {
        match (self, effort) {
            (Self::Preview, Some(Effort::Max)) => EFFORT_X,
            (Self::Preview, _) | (Self::V0731, Some(Effort::Low)) => "",
            (Self::V0731, Some(Effort::Max)) => EFFORT_Y,
            (Self::V0731, _) => EFFORT_X,
        }
    }

    fn tool_line(self, tool: &Tool) -> Result<String, serde_json::Error> {
        match self {
            Self::Preview => python_json::to_string(tool.as_given()),
            Self::V0731 => python_json::to_string(&tool.essentials()),
        }
    }
}

/// A prompt, and what the model writes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The text, in parts by author.
    pub segments: Vec<Segment>,
    /// What the model writes first, for [`super::output_parser::OutputParser`].
    pub start: AnswerStart,
}

impl RenderedPrompt {
    /// A prompt for plain completion: BOS and `text`, in which no special token is recognised.
    pub fn completion(text: impl Into<String>) -> Self {
        Self {
            segments: vec![Segment::template(BOS), Segment::guest(text)],
            start: AnswerStart::Plain,
        }
    }

    /// The text of all segments.
    pub fn text(&self) -> String {
        self.segments
            .iter()
            .map(|segment| segment.text.as_str())
            .collect()
    }
}

/// Renders `conversation` in the format of `dialect`.
///
/// # Errors
/// A tool or a schema cannot be written as JSON, which cannot happen to values that were read from
/// JSON.
pub fn render(
    conversation: &Conversation,
    dialect: Dialect,
) -> Result<RenderedPrompt, serde_json::Error> {
    let offers_tools = conversation.offers_tools();
    let (head, turns) = arrange(&conversation.messages);
    let mut out = SegmentWriter::default();
    out.template(BOS);
    if let Thinking::On(effort) = conversation.thinking {
        out.template(dialect.effort_text(effort));
    }
    write_head(&mut out, &head, conversation, dialect)?;
    let thinking = conversation.thinking.is_on();
    let mut previous: Option<&DialogueTurn<'_>> = None;
    for (i, turn) in turns.iter().enumerate() {
        let last = i + 1 == turns.len();
        match turn {
            DialogueTurn::User(text) => {
                let joined = matches!(
                    previous,
                    Some(DialogueTurn::User(_) | DialogueTurn::Tool { .. })
                );
                out.template(if joined { BLANK_LINE } else { USER });
                out.guest(text);
            }
            DialogueTurn::Tool { content, .. } => {
                let joined = matches!(previous, Some(DialogueTurn::Tool { .. }));
                out.template(if joined { BLANK_LINE } else { USER });
                out.template("<tool_result>");
                out.guest(content);
                out.template("</tool_result>");
            }
            DialogueTurn::Reminder(text) => {
                out.template(LATEST_REMINDER);
                out.guest(text);
            }
            DialogueTurn::Assistant(answer) => {
                let start = write_answer(&mut out, answer, last, thinking, offers_tools)?;
                if let Some(start) = start {
                    return Ok(RenderedPrompt {
                        segments: out.finish(),
                        start,
                    });
                }
            }
        }
        previous = Some(turn);
    }
    let start = open_answer(&mut out, conversation);
    Ok(RenderedPrompt {
        segments: out.finish(),
        start,
    })
}

fn open_answer(out: &mut SegmentWriter, conversation: &Conversation) -> AnswerStart {
    out.template(ASSISTANT);
    if conversation.thinking.is_on() {
        out.template(THINK);
        return AnswerStart::Reasoning;
    }
    out.template(END_THINK);
    if conversation.offers_tools() && conversation.tool_choice == ToolChoice::Required {
        out.template(OPEN_CALLS);
        return AnswerStart::ToolCalls;
    }
    AnswerStart::Content
}

/// A turn of the dialogue, which is what follows the system messages.
enum DialogueTurn<'a> {
    User(Cow<'a, str>),
    Assistant(PastAnswer<'a>),
    Tool {
        content: &'a str,
        call_id: Option<&'a str>,
    },
    Reminder(&'a str),
}

/// An answer of the model in the conversation so far.
struct PastAnswer<'a> {
    content: &'a str,
    reasoning: Option<&'a str>,
    tool_calls: Vec<&'a ToolCall>,
    prefix: bool,
}

/// Splits `messages` into the texts of the head and the dialogue. In the dialogue successive user
/// messages are one turn, and tool results stand in the order of their calls.
fn arrange(messages: &[Message]) -> (Vec<&str>, Vec<DialogueTurn<'_>>) {
    let mut head = Vec::new();
    let mut turns: Vec<DialogueTurn<'_>> = Vec::new();
    for message in messages {
        match message {
            Message::System { content } if content.is_empty() => {}
            Message::System { content } => head.push(content.as_str()),
            Message::User { content } => match turns.last_mut() {
                Some(DialogueTurn::User(text)) => append_paragraph(text, content),
                _ => turns.push(DialogueTurn::User(Cow::Borrowed(content))),
            },
            Message::Assistant {
                content,
                reasoning,
                tool_calls,
                prefix,
            } => {
                // By id, as in the reference: the ids that DeepSeek hands out ascend.
                let mut tool_calls: Vec<&ToolCall> = tool_calls.iter().collect();
                tool_calls.sort_by(|a, b| a.id.cmp(&b.id));
                turns.push(DialogueTurn::Assistant(PastAnswer {
                    content,
                    reasoning: reasoning.as_deref(),
                    tool_calls,
                    prefix: *prefix,
                }));
            }
            Message::Tool { content, call_id } => {
                turns.push(DialogueTurn::Tool {
                    content,
                    call_id: call_id.as_deref(),
                });
            }
            Message::LatestReminder { content } => turns.push(DialogueTurn::Reminder(content)),
        }
    }
    sort_results(&mut turns);
    (head, turns)
}

fn append_paragraph(text: &mut Cow<'_, str>, more: &str) {
    if !more.is_empty() {
        let text = text.to_mut();
        if !text.is_empty() {
            text.push_str(BLANK_LINE);
        }
        text.push_str(more);
    }
}

/// Sorts the n turns that follow an answer with n calls: results by the ids of their calls, then
/// anything else. Fewer than n turns at the end of the dialogue keep their order.
fn sort_results(turns: &mut [DialogueTurn<'_>]) {
    for i in 0..turns.len() {
        let DialogueTurn::Assistant(answer) = &turns[i] else {
            continue;
        };
        let results = i + 1..i + 1 + answer.tool_calls.len();
        if let Some(results) = turns.get_mut(results) {
            results.sort_by(by_call);
        }
    }
}

fn by_call(a: &DialogueTurn<'_>, b: &DialogueTurn<'_>) -> Ordering {
    match (a, b) {
        (DialogueTurn::Tool { call_id: a, .. }, DialogueTurn::Tool { call_id: b, .. }) => a.cmp(b),
        (DialogueTurn::Tool { .. }, _) => Ordering::Less,
        (_, DialogueTurn::Tool { .. }) => Ordering::Greater,
        _ => Ordering::Equal,
    }
}

fn write_head(
    out: &mut SegmentWriter,
    system: &[&str],
    conversation: &Conversation,
    dialect: Dialect,
) -> Result<(), serde_json::Error> {
    for (i, text) in system.iter().enumerate() {
        if i > 0 {
            out.template(BLANK_LINE);
        }
        out.guest(text);
    }
    if conversation.offers_tools() {
        out.template(BLANK_LINE);
        out.template(TOOLS_HEAD);
        for tool in &conversation.tools {
            out.guest(&dialect.tool_line(tool)?);
            out.template("\n");
        }
        out.template(TOOLS_FOOT);
    }
    match &conversation.response_format {
        ResponseFormat::Text => {}
        ResponseFormat::JsonObject => {
            out.template(BLANK_LINE);
            out.template(JSON_NOTE);
        }
        ResponseFormat::JsonSchema(schema) => {
            out.template(BLANK_LINE);
            out.template(SCHEMA_NOTE);
            out.guest(&python_json::to_string(schema)?);
        }
    }
    Ok(())
}

/// Writes an answer of the model. Returns where the model goes on if it is to continue this answer.
fn write_answer(
    out: &mut SegmentWriter,
    answer: &PastAnswer<'_>,
    last: bool,
    thinking: bool,
    offers_tools: bool,
) -> Result<Option<AnswerStart>, serde_json::Error> {
    let continued = answer.prefix && last;
    let reasoning = answer.reasoning.unwrap_or_default();
    out.template(ASSISTANT);
    // Earlier reasoning is dropped unless tools are offered, when it shows the model why it called
    // them.
    if thinking && (answer.prefix || offers_tools) {
        out.template(THINK);
        out.guest(reasoning);
    }
    let reasoning_open = thinking && answer.prefix && answer.content.is_empty();
    if !reasoning_open {
        out.template(END_THINK);
    }
    out.guest(answer.content);
    if !answer.tool_calls.is_empty() {
        write_calls(out, &answer.tool_calls)?;
    }
    if !continued {
        out.template(EOS);
        return Ok(None);
    }
    Ok(Some(
        match (
            reasoning_open,
            reasoning.is_empty(),
            answer.content.is_empty(),
        ) {
            (true, true, _) => AnswerStart::Reasoning,
            (true, false, _) => AnswerStart::ReasoningContinued,
            (false, _, true) => AnswerStart::Content,
            (false, _, false) => AnswerStart::ContentContinued,
        },
    ))
}

fn write_calls(out: &mut SegmentWriter, calls: &[&ToolCall]) -> Result<(), serde_json::Error> {
    out.template(OPEN_CALLS);
    for call in calls {
        out.template("<｜DSML｜invoke name=\"");
        out.guest(&call.name);
        out.template("\">\n");
        for (name, value) in parse_arguments(&call.arguments) {
            out.template("<｜DSML｜parameter name=\"");
            out.guest(&name);
            match value {
                Value::String(text) => {
                    out.template("\" string=\"true\">");
                    out.guest(&text);
                }
                value => {
                    out.template("\" string=\"false\">");
                    out.guest(&python_json::to_string(&value)?);
                }
            }
            out.template("</｜DSML｜parameter>\n");
        }
        out.template("</｜DSML｜invoke>\n");
    }
    out.template("</｜DSML｜tool_calls>");
    Ok(())
}

fn parse_arguments(arguments: &str) -> Map<String, Value> {
    serde_json::from_str(arguments).unwrap_or_else(|_| {
        Map::from_iter([("arguments".to_owned(), Value::String(arguments.to_owned()))])
    })
}

#[cfg(test)]
mod tests;
