//! One answer in progress: from logits to a token, from tokens to text, from text to reasoning,
//! content and tool calls, and the decision when it ends.

use std::sync::Arc;

use super::queue::QueuedRequest;
use super::request::{AnswerFormat, GenerateError, GeneratedToken, TokenUsage};
use super::vocabulary::Vocabulary;
use crate::prompt::{
    AnswerStart, Continuation, Ended, FinishReason, OutputEvent, OutputParser, StreamDecoder,
};
use crate::sampling::{Sampler, greedy, log_probs};

#[derive(Debug)]
pub(super) struct AnswerInProgress {
    vocabulary: Arc<Vocabulary>,
    sampler: Sampler,
    decoder: StreamDecoder,
    parser: OutputParser,
    /// Buffer for the text of one token.
    text: String,
    logprobs: Option<usize>,
    ignore_eos: bool,
    max_tokens: usize,
    usage: TokenUsage,
    in_reasoning: bool,
    /// Set once no further token is wanted.
    ended: Option<Ended>,
}

impl AnswerInProgress {
    /// The answer to `queued` before its first token.
    pub(super) fn new(queued: &QueuedRequest, vocabulary: Arc<Vocabulary>) -> Self {
        let request = &queued.request;
        let (start, tools_offered) = match request.format {
            AnswerFormat::Text => (AnswerStart::Plain, false),
            AnswerFormat::Chat {
                start,
                tools_offered,
            } => (start, tools_offered),
        };
        AnswerInProgress {
            vocabulary,
            sampler: queued.sampler.clone(),
            decoder: StreamDecoder::new(),
            parser: OutputParser::new(start, tools_offered, request.stop.clone()),
            text: String::new(),
            logprobs: request.logprobs,
            ignore_eos: request.ignore_eos,
            max_tokens: queued.max_tokens,
            usage: TokenUsage {
                prompt_tokens: request.prompt.len(),
                ..TokenUsage::default()
            },
            in_reasoning: matches!(
                start,
                AnswerStart::Reasoning | AnswerStart::ReasoningContinued
            ),
            ended: None,
        }
    }

    /// Samples the next token from its logits.
    pub(super) fn sample(&mut self, logits: &[f32]) -> Result<GeneratedToken, GenerateError> {
        let token = if self.parser.in_markup() {
            // Tags have only one correct spelling, so they are sampled greedily.
            greedy(logits)?
        } else {
            self.sampler.sample(logits)?
        };
        let logprobs = match self.logprobs {
            Some(top) => Some(log_probs(logits, token, top)?),
            None => None,
        };
        self.usage.completion_tokens += 1;
        // The marker at the end of the reasoning counts as reasoning.
        let reasoning = self.in_reasoning;
        self.usage.reasoning_tokens += usize::from(reasoning);
        self.in_reasoning &= token != self.vocabulary.chat.end_think;
        let deltas = self.read(token);
        if self.usage.completion_tokens >= self.max_tokens && self.ended.is_none() {
            self.ended = Some(Ended::Length);
        }
        Ok(GeneratedToken {
            token,
            deltas,
            reasoning,
            logprobs,
            usage: self.usage,
        })
    }

    /// Decodes a token and returns the output that it completes.
    fn read(&mut self, token: u32) -> Vec<OutputEvent> {
        let mut deltas = Vec::new();
        if self.vocabulary.chat.stop.contains(&token) {
            if !self.ignore_eos {
                self.ended = Some(Ended::Stop);
            }
            return deltas;
        }
        self.text.clear();
        self.decoder
            .push(self.vocabulary.tokenizer.token_bytes(token), &mut self.text);
        if self.parser.push(&self.text, &mut deltas) == Continuation::Stopped {
            self.ended = Some(Ended::Stop);
        }
        // A tool call ends the reasoning without its marker.
        self.in_reasoning &= deltas
            .iter()
            .all(|delta| matches!(delta, OutputEvent::Reasoning(_)));
        deltas
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn usage(&self) -> TokenUsage {
        self.usage
    }

    /// Ends the answer; returns the output that was held back and why the answer ended.
    pub(super) fn finish(&mut self) -> (Vec<OutputEvent>, FinishReason) {
        let mut deltas = Vec::new();
        let ended = self.ended.unwrap_or(Ended::Length);
        self.text.clear();
        self.decoder.finish(&mut self.text);
        let mut reason = None;
        if self.parser.push(&self.text, &mut deltas) == Continuation::Stopped {
            reason = Some(Ended::Stop);
        }
        let reason = self.parser.finish(reason.unwrap_or(ended), &mut deltas);
        (deltas, reason)
    }
}
