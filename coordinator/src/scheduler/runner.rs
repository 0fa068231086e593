//! The loop that turns requests into steps: the only caller of [`StepModel::step`].
//!
//! It runs on a thread of its own, which computes and never waits for a client: the channel of a
//! request has capacity for all of its events. It waits for work only.

use std::sync::Arc;
use std::time::Instant;

use super::answer::AnswerInProgress;
use super::batcher::{self, BatchLimits, Need};
use super::limits::SchedulerLimits;
use super::model::StepModel;
use super::queue::{Queue, QueueGate, QueuedRequest};
use super::request::{
    GenerateError, GenerationEvent, GenerationSummary, PromptProgress, RequestTimings,
};
use super::scheduler_metrics as metrics;
use super::vocabulary::Vocabulary;
use crate::engine::{Chunk, EngineError, LogitsWanted, StepOutput};

/// A request that takes part in steps.
struct RunningRequest<S> {
    queued: QueuedRequest,
    sequence: S,
    /// Prompt tokens that the model has computed.
    fed: usize,
    /// The newest token, which the model has not computed; valid once the prompt is fed.
    next: u32,
    answer: AnswerInProgress,
    /// End of the time in the queue.
    started: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

/// Why a request stops running.
enum LeaveReason {
    Finished,
    Cancelled,
    Failed(GenerateError),
}

/// The loop's state: the model, the queue, and the requests that run.
pub(super) struct Runner<M: StepModel> {
    model: M,
    vocabulary: Arc<Vocabulary>,
    queue: Arc<Queue>,
    limits: SchedulerLimits,
    batch_limits: BatchLimits,
    /// Oldest first.
    running: Vec<RunningRequest<M::Sequence>>,
}

/// Closes the queue when the runner ends, also by a panic.
struct CloseOnExit(Arc<Queue>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.close(QueueGate::Stopped);
        self.0.clear();
        metrics::load(0, 0, 0);
    }
}

impl<M: StepModel> Runner<M> {
    pub(super) fn new(
        model: M,
        vocabulary: Arc<Vocabulary>,
        queue: Arc<Queue>,
        limits: SchedulerLimits,
    ) -> Self {
        Runner {
            model,
            vocabulary,
            queue,
            limits,
            batch_limits: BatchLimits::for_chunk(limits.chunk),
            running: Vec::new(),
        }
    }

    /// Runs until the queue's gate is closed and every admitted request has ended.
    pub(super) fn run(mut self) {
        let _close = CloseOnExit(Arc::clone(&self.queue));
        loop {
            // Also before the wait for work, or an idle server would look busy.
            self.note_load();
            self.start_waiting();
            self.drop_cancelled();
            let waiting = self.note_load();
            if !self.running.is_empty() {
                self.step();
            } else if self.queue.gate() != QueueGate::Open && waiting == 0 {
                return;
            }
        }
    }

    /// Exports the load; returns how many requests wait.
    fn note_load(&self) -> usize {
        let (waiting, running) = self.queue.counts();
        metrics::load(waiting, running, self.kv_reserved());
        waiting
    }

    /// Bytes of the running requests' caches at their longest.
    fn kv_reserved(&self) -> u64 {
        self.running
            .iter()
            .map(|running| running.queued.kv_bytes)
            .sum()
    }

    /// Starts waiting requests as far as the limits allow; sleeps when there is nothing to do.
    fn start_waiting(&mut self) {
        let max_wait = self.limits.max_wait;
        for queued in self.queue.take_expired(max_wait) {
            let limit_s = max_wait.as_secs();
            let error = GenerateError::QueueTimeout { limit_s };
            send(&queued, GenerationEvent::Failed(error));
        }
        let count = self.limits.max_sequences - self.running.len();
        // Never below zero, since requests start only within this difference.
        let kv_free = self.limits.kv_memory.saturating_sub(self.kv_reserved());
        for queued in self.queue.take(count, kv_free, self.running.is_empty()) {
            let now = Instant::now();
            metrics::queued(now - queued.submitted);
            let total = queued.request.prompt.len();
            tracing::debug!(
                request = queued.name(),
                client_request = queued.request.origin.client_id,
                queued_ms = (now - queued.submitted).as_millis() as u64,
                "request started"
            );
            queued.progress.send_replace(PromptProgress {
                done: 0,
                total,
                started: true,
            });
            self.running.push(RunningRequest {
                sequence: self.model.new_sequence(),
                fed: 0,
                next: 0,
                answer: AnswerInProgress::new(&queued, Arc::clone(&self.vocabulary)),
                started: now,
                first_token: None,
                last_token: now,
                queued,
            });
        }
    }

    fn drop_cancelled(&mut self) {
        for i in (0..self.running.len()).rev() {
            if self.running[i].queued.is_cancelled() {
                self.leave(i, LeaveReason::Cancelled);
            }
        }
    }

    fn step(&mut self) {
        let needs: Vec<Need> = self.running.iter().map(RunningRequest::need).collect();
        let shares = batcher::plan(&needs, self.batch_limits);
        let members: Vec<usize> = (0..shares.len()).filter(|&i| shares[i] > 0).collect();
        let mut chunks: Vec<Chunk<'_, M::Sequence>> = self
            .running
            .iter_mut()
            .zip(&shares)
            .filter(|(_, share)| **share > 0)
            .map(|(running, &share)| running.chunk(share))
            .collect();
        let began = Instant::now();
        let outcome = self.model.step(&mut chunks);
        let prefill: usize = chunks
            .iter()
            .zip(&members)
            .filter(|(_, member)| matches!(needs[**member], Need::Prefill(_)))
            .map(|(chunk, _)| chunk.tokens.len())
            .sum();
        let rows = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        drop(chunks);
        metrics::step(began.elapsed(), rows, prefill);
        let leaving = settle(&mut self.running, &members, &shares, outcome);
        for (i, reason) in leaving.into_iter().rev() {
            self.leave(i, reason);
        }
    }

    /// Ends running request `i`. The others keep their order.
    fn leave(&mut self, i: usize, reason: LeaveReason) {
        let running = self.running.remove(i);
        let service = running.started.elapsed();
        // Before the last event, so that a caller that receives it finds room for a new request.
        self.queue.finished(running.queued.id, service);
        let error = match reason {
            LeaveReason::Finished => return running.finish(),
            LeaveReason::Failed(error) => error,
            // The receiver is gone, unless it is the server that gives the request up.
            LeaveReason::Cancelled => GenerateError::ShuttingDown,
        };
        send(&running.queued, GenerationEvent::Failed(error));
    }
}

/// Hands every member of a step its logits; returns the members that stop running, by index.
fn settle<S>(
    running: &mut [RunningRequest<S>],
    members: &[usize],
    shares: &[usize],
    outcome: Result<StepOutput<'_>, EngineError>,
) -> Vec<(usize, LeaveReason)> {
    match outcome {
        Ok(output) => {
            let settle = |(chunk, &i): (usize, &usize)| {
                let reason = if output.cancelled(chunk) {
                    Some(LeaveReason::Cancelled)
                } else {
                    running[i].advance(shares[i], output.logits(chunk))
                };
                reason.map(|reason| (i, reason))
            };
            members.iter().enumerate().filter_map(settle).collect()
        }
        Err(error) => {
            let names: Vec<String> = members.iter().map(|&i| running[i].queued.name()).collect();
            tracing::error!(%error, requests = names.join(" "), "a step failed");
            metrics::failed_step();
            let error = GenerateError::from(error);
            members
                .iter()
                .map(|&i| (i, LeaveReason::Failed(error.clone())))
                .collect()
        }
    }
}

/// Sends without waiting. The channel has capacity for every event, and a receiver that is gone
/// needs none.
pub(super) fn send(queued: &QueuedRequest, event: GenerationEvent) {
    let _ = queued.events.try_send(event);
}

impl<S> RunningRequest<S> {
    fn need(&self) -> Need {
        match self.queued.request.prompt.len() - self.fed {
            0 => Need::Decode,
            left => Need::Prefill(left),
        }
    }

    /// The next `share` tokens, which [`RunningRequest::need`] allows.
    fn chunk(&mut self, share: usize) -> Chunk<'_, S> {
        let prompt = &self.queued.request.prompt;
        let end = self.fed + share;
        let (tokens, logits) = if self.fed == prompt.len() {
            (std::slice::from_ref(&self.next), LogitsWanted::Last)
        } else if end == prompt.len() {
            (&prompt[self.fed..end], LogitsWanted::Last)
        } else {
            (&prompt[self.fed..end], LogitsWanted::None)
        };
        Chunk {
            sequence: &mut self.sequence,
            tokens,
            logits,
            cancelled: Some(&self.queued.cancelled),
        }
    }

    /// Notes that a step computed `share` tokens, and samples the next token if the prompt is fed.
    fn advance(&mut self, share: usize, logits: &[f32]) -> Option<LeaveReason> {
        let prompt = self.queued.request.prompt.len();
        if self.fed < prompt {
            self.fed += share;
            let progress = PromptProgress {
                done: self.fed,
                total: prompt,
                started: true,
            };
            self.queued.progress.send_replace(progress);
            if self.fed < prompt {
                return None;
            }
        }
        let generated = match self.answer.sample(logits) {
            Ok(generated) => generated,
            Err(error) => {
                tracing::error!(%error, request = self.queued.name(), "a token could not be drawn");
                return Some(LeaveReason::Failed(error));
            }
        };
        self.next = generated.token;
        self.note_token();
        send(&self.queued, GenerationEvent::Token(generated));
        self.answer.has_ended().then_some(LeaveReason::Finished)
    }

    fn note_token(&mut self) {
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            metrics::first_token(now - self.queued.submitted);
        } else {
            metrics::next_token(now - self.last_token);
        }
        self.last_token = now;
    }

    fn finish(mut self) {
        let (deltas, reason) = self.answer.finish();
        let usage = self.answer.usage();
        let first = self.first_token.unwrap_or(self.last_token);
        let timings = RequestTimings {
            queued: self.started - self.queued.submitted,
            prefill: first - self.started,
            decode: self.last_token - first,
        };
        tracing::info!(
            request = self.queued.name(),
            client_request = self.queued.request.origin.client_id,
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            reason = reason.as_str(),
            queued_ms = timings.queued.as_millis() as u64,
            prefill_ms = timings.prefill.as_millis() as u64,
            decode_ms = timings.decode.as_millis() as u64,
            "request finished"
        );
        let summary = GenerationSummary {
            reason,
            usage,
            timings,
        };
        send(&self.queued, GenerationEvent::Finished { deltas, summary });
    }
}
