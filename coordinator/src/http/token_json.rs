//! Token counts and log-probabilities as JSON.

use serde_json::{Map, Value, json};

use crate::sampling::LogProbs;
use crate::scheduler::{TokenUsage, Vocabulary};

/// The `usage` object.
pub(super) fn usage_json(usage: TokenUsage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}

/// A token with its log-probability and those of the likeliest tokens, in the form of the chat API.
pub(super) fn chat_logprob(vocabulary: &Vocabulary, token: u32, logprobs: &LogProbs) -> Value {
    let mut entry = token_entry(vocabulary, token, logprobs.chosen);
    let top = logprobs
        .top
        .iter()
        .map(|&(token, logprob)| Value::Object(token_entry(vocabulary, token, logprob)));
    entry.insert("top_logprobs".into(), top.collect());
    Value::Object(entry)
}

fn token_entry(vocabulary: &Vocabulary, token: u32, logprob: f32) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("token".into(), token_text(vocabulary, token).into());
    entry.insert("logprob".into(), finite(logprob));
    entry.insert(
        "bytes".into(),
        vocabulary.tokenizer.token_bytes(token).into(),
    );
    entry
}

/// Log-probabilities in the form of the completion API.
#[derive(Debug, Default)]
pub(super) struct CompletionLogprobs {
    /// The text of each token.
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    /// The likeliest tokens in each token's place.
    top: Vec<Value>,
    /// Characters from the end of the prompt to each token.
    offsets: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds a token that begins `offset` characters after the prompt; returns its length in
    /// characters.
    pub(super) fn push(
        &mut self,
        vocabulary: &Vocabulary,
        token: u32,
        logprobs: &LogProbs,
        offset: usize,
    ) -> usize {
        let text = token_text(vocabulary, token);
        let length = text.chars().count();
        self.tokens.push(text.into());
        self.logprobs.push(finite(logprobs.chosen));
        let entry =
            |&(token, logprob): &(u32, f32)| (token_text(vocabulary, token), finite(logprob));
        self.top
            .push(Value::Object(logprobs.top.iter().map(entry).collect()));
        self.offsets.push(offset);
        length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The JSON of what was added since the last call.
    pub(super) fn take(&mut self) -> Value {
        let all = std::mem::take(self);
        json!({
            "tokens": all.tokens,
            "token_logprobs": all.logprobs,
            "top_logprobs": all.top,
            "text_offset": all.offsets,
        })
    }
}

fn token_text(vocabulary: &Vocabulary, token: u32) -> String {
    String::from_utf8_lossy(vocabulary.tokenizer.token_bytes(token)).into_owned()
}

/// JSON has no infinity; OpenAI's API writes -9999 for an impossible token.
fn finite(logprob: f32) -> Value {
    if logprob.is_finite() {
        logprob.into()
    } else {
        (-9999.0).into()
    }
}
