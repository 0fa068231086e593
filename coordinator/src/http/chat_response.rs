//! Chat answers as JSON, whole or in chunks.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::app::{App, unix_seconds};
use super::options::Streaming;
use super::stream::ChunkWriter;
use super::usage::{chat_logprob, usage_json};
use crate::prompt::OutputEvent;
use crate::scheduler::{Drawn, Finish, Usage};

/// What every piece of one answer repeats.
#[derive(Debug)]
pub(super) struct Heading {
    pub(super) app: Arc<App>,
    id: String,
    created: u64,
}

impl Heading {
    pub(super) fn new(app: Arc<App>) -> Self {
        Heading {
            id: app.next_id(),
            created: unix_seconds(),
            app,
        }
    }

    /// An object that begins with the heading. `prefix` tells the routes' ids apart.
    pub(super) fn object(&self, prefix: &str, kind: &str) -> Map<String, Value> {
        Map::from_iter([
            ("id".into(), format!("{prefix}-{}", self.id).into()),
            ("object".into(), kind.into()),
            ("created".into(), self.created.into()),
            ("model".into(), self.app.card.id.as_str().into()),
            (
                "system_fingerprint".into(),
                self.app.card.fingerprint.as_str().into(),
            ),
        ])
    }

    /// The calls of one message sort by their ids, which prompts rely on.
    fn call_id(&self, index: usize) -> String {
        format!("call_{index:03}_{}", self.id)
    }
}

/// Log-probabilities gathered until they are sent.
#[derive(Debug, Default)]
struct Gathered {
    content: Vec<Value>,
    reasoning: Vec<Value>,
}

impl Gathered {
    fn push(&mut self, heading: &Heading, drawn: &Drawn) {
        let Some(logprobs) = &drawn.logprobs else {
            return;
        };
        let entry = chat_logprob(&heading.app.vocabulary, drawn.token, logprobs);
        if drawn.reasoning {
            &mut self.reasoning
        } else {
            &mut self.content
        }
        .push(entry);
    }

    fn take(&mut self) -> Value {
        if self.content.is_empty() && self.reasoning.is_empty() {
            return Value::Null;
        }
        let all = std::mem::take(self);
        let mut object = Map::from_iter([("content".to_owned(), Value::Array(all.content))]);
        if !all.reasoning.is_empty() {
            object.insert("reasoning_content".into(), all.reasoning.into());
        }
        Value::Object(object)
    }
}

/// Gathers a whole answer.
#[derive(Debug)]
pub(super) struct WholeAnswer {
    heading: Heading,
    content: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    logprobs: Gathered,
}

impl WholeAnswer {
    pub(super) fn new(heading: Heading) -> Self {
        WholeAnswer {
            heading,
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            logprobs: Gathered::default(),
        }
    }

    pub(super) fn drawn(&mut self, drawn: Drawn) {
        self.logprobs.push(&self.heading, &drawn);
        self.extend(drawn.deltas);
    }

    fn extend(&mut self, deltas: Vec<OutputEvent>) {
        for delta in deltas {
            match delta {
                OutputEvent::Reasoning(text) => self.reasoning.push_str(&text),
                OutputEvent::Content(text) => self.content.push_str(&text),
                OutputEvent::CallStart { name, .. } => self.calls.push((name, String::new())),
                OutputEvent::CallArguments { index, json } => {
                    if let Some((_, arguments)) = self.calls.get_mut(index) {
                        arguments.push_str(&json);
                    }
                }
                OutputEvent::CallEnd { .. } => {}
            }
        }
    }

    pub(super) fn finished(mut self, deltas: Vec<OutputEvent>, finish: &Finish) -> Value {
        self.extend(deltas);
        let mut message = Map::from_iter([("role".to_owned(), Value::from("assistant"))]);
        let no_content = self.content.is_empty() && !self.calls.is_empty();
        let content = if no_content {
            Value::Null
        } else {
            self.content.into()
        };
        message.insert("content".into(), content);
        if !self.reasoning.is_empty() {
            message.insert("reasoning_content".into(), self.reasoning.into());
        }
        if !self.calls.is_empty() {
            let call = |(index, (name, arguments)): (usize, &(String, String))| {
                let function = json!({"name": name, "arguments": arguments});
                json!({"id": self.heading.call_id(index), "type": "function", "function": function})
            };
            message.insert(
                "tool_calls".into(),
                self.calls.iter().enumerate().map(call).collect(),
            );
        }
        let choice = json!({
            "index": 0,
            "message": message,
            "logprobs": self.logprobs.take(),
            "finish_reason": finish.reason.as_str(),
        });
        let mut answer = self.heading.object("chatcmpl", "chat.completion");
        answer.insert("choices".into(), json!([choice]));
        answer.insert("usage".into(), usage_json(finish.usage));
        Value::Object(answer)
    }
}

/// Writes an answer in chunks.
#[derive(Debug)]
pub(super) struct AnswerChunks {
    heading: Heading,
    streaming: Streaming,
    role_sent: bool,
    logprobs: Gathered,
}

impl AnswerChunks {
    pub(super) fn new(heading: Heading, streaming: Streaming) -> Self {
        AnswerChunks {
            heading,
            streaming,
            role_sent: false,
            logprobs: Gathered::default(),
        }
    }

    fn chunks(&mut self, deltas: Vec<OutputEvent>, usage: Usage) -> Vec<Value> {
        let mut chunks = Vec::with_capacity(deltas.len());
        if !self.role_sent {
            self.role_sent = true;
            let role = json!({"role": "assistant", "content": ""});
            chunks.push(self.chunk(role, Value::Null, usage));
        }
        for delta in deltas {
            if let Some(delta) = self.delta(delta) {
                chunks.push(self.chunk(delta, Value::Null, usage));
            }
        }
        chunks
    }

    fn delta(&self, delta: OutputEvent) -> Option<Value> {
        Some(match delta {
            OutputEvent::Reasoning(text) => json!({"reasoning_content": text}),
            OutputEvent::Content(text) => json!({"content": text}),
            OutputEvent::CallStart { index, name } => json!({"tool_calls": [{
                "index": index,
                "id": self.heading.call_id(index),
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }]}),
            OutputEvent::CallArguments { index, json } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": json}}]})
            }
            OutputEvent::CallEnd { .. } => return None,
        })
    }

    fn chunk(&mut self, delta: Value, finish: Value, usage: Usage) -> Value {
        let choice = json!({
            "index": 0,
            "delta": delta,
            "logprobs": self.logprobs.take(),
            "finish_reason": finish,
        });
        let mut chunk = self.heading.object("chatcmpl", "chat.completion.chunk");
        chunk.insert("choices".into(), json!([choice]));
        note_usage(&mut chunk, self.streaming, usage);
        Value::Object(chunk)
    }
}

impl ChunkWriter for AnswerChunks {
    fn drawn(&mut self, drawn: Drawn) -> Vec<Value> {
        // Before the chunks, so that the token's own chunk carries it; a token whose text is held
        // back leaves it to the next chunk.
        if !self.role_sent {
            let mut chunks = self.chunks(Vec::new(), drawn.usage);
            self.logprobs.push(&self.heading, &drawn);
            chunks.extend(self.chunks(drawn.deltas, drawn.usage));
            return chunks;
        }
        self.logprobs.push(&self.heading, &drawn);
        self.chunks(drawn.deltas, drawn.usage)
    }

    fn finished(&mut self, deltas: Vec<OutputEvent>, finish: &Finish) -> Vec<Value> {
        let mut chunks = self.chunks(deltas, finish.usage);
        chunks.push(self.chunk(json!({}), finish.reason.as_str().into(), finish.usage));
        if self.streaming.include_usage {
            let mut chunk = self.heading.object("chatcmpl", "chat.completion.chunk");
            chunk.insert("choices".into(), json!([]));
            chunk.insert("usage".into(), usage_json(finish.usage));
            chunks.push(Value::Object(chunk));
        }
        chunks
    }
}

/// The usage field of a chunk that is not the last.
pub(super) fn note_usage(chunk: &mut Map<String, Value>, streaming: Streaming, usage: Usage) {
    if streaming.continuous_usage {
        chunk.insert("usage".into(), usage_json(usage));
    } else if streaming.include_usage {
        chunk.insert("usage".into(), Value::Null);
    }
}
