//! One answer as it grows: from logits to a token, from tokens to text, from text to its parts,
//! and the decision that it is over.

use std::sync::Arc;

use super::queue::Job;
use super::request::{Drawn, Reading, Usage};
use super::vocabulary::Vocabulary;
use crate::prompt::{
    AnswerStart, Continuation, Ended, FinishReason, OutputEvent, OutputParser, StreamDecoder,
};
use crate::sampling::{SampleError, Sampler, greedy, log_probs};

#[derive(Debug)]
pub(super) struct Answer {
    vocabulary: Arc<Vocabulary>,
    sampler: Sampler,
    decoder: StreamDecoder,
    parser: OutputParser,
    text: String,
    logprobs: Option<usize>,
    ignore_eos: bool,
    max_tokens: usize,
    usage: Usage,
    in_reasoning: bool,
    ended: Option<Ended>,
}

impl Answer {
    pub(super) fn new(job: &Job, vocabulary: Arc<Vocabulary>) -> Self {
        let request = &job.request;
        let (start, tools_offered) = match request.reading {
            Reading::Plain => (AnswerStart::Plain, false),
            Reading::Chat {
                start,
                tools_offered,
            } => (start, tools_offered),
        };
        Answer {
            vocabulary,
            sampler: job.sampler.clone(),
            decoder: StreamDecoder::new(),
            parser: OutputParser::new(start, tools_offered, request.stop.clone()),
            text: String::new(),
            logprobs: request.logprobs,
            ignore_eos: request.ignore_eos,
            max_tokens: job.max_tokens,
            usage: Usage {
                prompt_tokens: request.prompt.len(),
                ..Usage::default()
            },
            in_reasoning: matches!(
                start,
                AnswerStart::Reasoning | AnswerStart::ReasoningContinued
            ),
            ended: None,
        }
    }

    /// Draws the next token.
    pub(super) fn draw(&mut self, logits: &[f32]) -> Result<Drawn, SampleError> {
        let token = if self.parser.in_markup() {
            // Tags have one right spelling, whatever the temperature.
            greedy(logits)?
        } else {
            self.sampler.sample(logits)?
        };
        let logprobs = match self.logprobs {
            Some(top) => Some(log_probs(logits, token, top)?),
            None => None,
        };
        self.usage.completion_tokens += 1;
        // The marker at the end of the reasoning is a part of it.
        let reasoning = self.in_reasoning;
        self.usage.reasoning_tokens += usize::from(reasoning);
        self.in_reasoning &= token != self.vocabulary.chat.end_think;
        let deltas = self.read(token);
        if self.usage.completion_tokens >= self.max_tokens && self.ended.is_none() {
            self.ended = Some(Ended::Length);
        }
        Ok(Drawn {
            token,
            deltas,
            reasoning,
            logprobs,
            usage: self.usage,
        })
    }

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

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// Ends the answer; returns the text that was held back and why it ended.
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
