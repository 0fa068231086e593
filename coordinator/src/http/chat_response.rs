//! Chat answers as JSON, whole or in chunks.

use serde_json::{Map, Value, json};

use super::answer_head::AnswerHead;
use super::options::Streaming;
use super::stream::ChunkWriter;
use super::token_json::{chat_logprob, usage_json};
use crate::prompt::OutputEvent;
use crate::scheduler::{GeneratedToken, GenerationSummary, TokenUsage};

/// Log-probabilities of tokens whose chunk is not yet written.
#[derive(Debug, Default)]
struct PendingLogprobs {
    content: Vec<Value>,
    reasoning: Vec<Value>,
}

impl PendingLogprobs {
    fn push(&mut self, head: &AnswerHead, token: &GeneratedToken) {
        let Some(logprobs) = &token.logprobs else {
            return;
        };
        let entry = chat_logprob(&head.app.vocabulary, token.token, logprobs);
        if token.reasoning {
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

/// Collects a whole answer.
#[derive(Debug)]
pub(super) struct WholeChat {
    head: AnswerHead,
    content: String,
    reasoning: String,
    /// Name and arguments of each tool call.
    calls: Vec<(String, String)>,
    logprobs: PendingLogprobs,
}

impl WholeChat {
    pub(super) fn new(head: AnswerHead) -> Self {
        WholeChat {
            head,
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            logprobs: PendingLogprobs::default(),
        }
    }

    pub(super) fn push(&mut self, token: GeneratedToken) {
        self.logprobs.push(&self.head, &token);
        self.extend(token.deltas);
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

    /// The answer as JSON.
    pub(super) fn finish(
        mut self,
        deltas: Vec<OutputEvent>,
        summary: &GenerationSummary,
    ) -> String {
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
                json!({"id": self.head.call_id(index), "type": "function", "function": function})
            };
            message.insert(
                "tool_calls".into(),
                self.calls.iter().enumerate().map(call).collect(),
            );
        }
        let choices = json!([{
            "index": 0,
            "message": message,
            "logprobs": self.logprobs.take(),
            "finish_reason": summary.reason.as_str(),
        }]);
        self.head.object(&choices, Some(&usage_json(summary.usage)))
    }
}

/// Writes an answer in chunks.
#[derive(Debug)]
pub(super) struct ChatChunks {
    head: AnswerHead,
    streaming: Streaming,
    role_sent: bool,
    logprobs: PendingLogprobs,
}

impl ChatChunks {
    pub(super) fn new(head: AnswerHead, streaming: Streaming) -> Self {
        ChatChunks {
            head,
            streaming,
            role_sent: false,
            logprobs: PendingLogprobs::default(),
        }
    }

    fn chunks(&mut self, deltas: Vec<OutputEvent>, usage: TokenUsage) -> Vec<String> {
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
                "id": self.head.call_id(index),
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }]}),
            OutputEvent::CallArguments { index, json } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": json}}]})
            }
            OutputEvent::CallEnd { .. } => return None,
        })
    }

    fn chunk(&mut self, delta: Value, finish: Value, usage: TokenUsage) -> String {
        let choices = json!([{
            "index": 0,
            "delta": delta,
            "logprobs": self.logprobs.take(),
            "finish_reason": finish,
        }]);
        let usage = self.streaming.usage_of_chunk(usage);
        self.head.object(&choices, usage.as_ref())
    }
}

impl ChunkWriter for ChatChunks {
    fn token(&mut self, token: GeneratedToken) -> Vec<String> {
        // The role's chunk comes first, without log-probabilities. Those of a token whose text is
        // held back go to the next chunk.
        let mut chunks = if self.role_sent {
            Vec::new()
        } else {
            self.chunks(Vec::new(), token.usage)
        };
        self.logprobs.push(&self.head, &token);
        chunks.extend(self.chunks(token.deltas, token.usage));
        chunks
    }

    fn finish(&mut self, deltas: Vec<OutputEvent>, summary: &GenerationSummary) -> Vec<String> {
        let mut chunks = self.chunks(deltas, summary.usage);
        chunks.push(self.chunk(json!({}), summary.reason.as_str().into(), summary.usage));
        if self.streaming.include_usage {
            let usage = usage_json(summary.usage);
            chunks.push(self.head.object(&json!([]), Some(&usage)));
        }
        chunks
    }
}
