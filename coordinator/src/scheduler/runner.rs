//! The loop that turns requests into steps: the only caller of [`StepModel::step`].
//!
//! It runs on a thread of its own, which computes and never waits for a client: every event of a
//! request has a place reserved in its channel. It waits only for work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::batcher::{self, BatchLimits, Need};
use super::measures;
use super::model::{StepChunk, StepError, StepModel, StepResult, Want};
use super::queue::{Gate, Job, Queue};
use super::request::{Event, Finish, GenerateError, Progress, Timings};
use super::vocabulary::Vocabulary;

/// A request in its place.
struct Running<S> {
    job: Job,
    sequence: S,
    /// Prompt tokens that the model has seen.
    fed: usize,
    /// The newest token, which the model has not seen; meaningful once the prompt is fed.
    next: u32,
    answer: Answer,
    admitted: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

/// Why a request leaves its place.
enum Leave {
    Finished,
    Cancelled,
    Failed(GenerateError),
}

pub(super) struct Runner<M: StepModel> {
    model: M,
    vocabulary: Arc<Vocabulary>,
    queue: Arc<Queue>,
    places: usize,
    limits: BatchLimits,
    max_wait: Duration,
    /// Bytes that the caches of all that run may come to take.
    kv_budget: u64,
    running: Vec<Running<M::Sequence>>,
}

/// Tells callers when the runner ends, however it ends.
struct Epitaph(Arc<Queue>);

impl Drop for Epitaph {
    fn drop(&mut self) {
        self.0.close(Gate::Stopped);
        self.0.clear();
        measures::load(0, 0, 0);
    }
}

impl<M: StepModel> Runner<M> {
    pub(super) fn new(
        model: M,
        vocabulary: Arc<Vocabulary>,
        queue: Arc<Queue>,
        places: usize,
        limits: BatchLimits,
        max_wait: Duration,
        kv_budget: u64,
    ) -> Self {
        Runner {
            model,
            vocabulary,
            queue,
            places,
            limits,
            max_wait,
            kv_budget,
            running: Vec::new(),
        }
    }

    /// Works until the queue's gate is closed and everything is finished or given up.
    pub(super) fn run(mut self) {
        let _epitaph = Epitaph(Arc::clone(&self.queue));
        loop {
            // Before the wait for work as well, or an idle server would look busy.
            self.note_load();
            self.admit();
            self.drop_cancelled();
            let waiting = self.note_load();
            if !self.running.is_empty() {
                self.step();
            } else if self.queue.gate() != Gate::Open && waiting == 0 {
                return;
            }
        }
    }

    /// Reports the load; returns how many requests wait.
    fn note_load(&self) -> usize {
        let (waiting, running) = self.queue.counts();
        measures::load(waiting, running, self.kv_reserved());
        waiting
    }

    fn kv_reserved(&self) -> u64 {
        self.running
            .iter()
            .map(|running| running.job.kv_bytes)
            .sum()
    }

    /// Fills free places; sleeps when there is nothing at all to do.
    fn admit(&mut self) {
        for job in self.queue.take_expired(self.max_wait) {
            let error = GenerateError::WaitedTooLong(self.max_wait.as_secs());
            send(&job, Event::Failed(error));
        }
        let free = self.places - self.running.len();
        // Never less than nothing: who runs was let in by this sum.
        let kv_free = self.kv_budget.saturating_sub(self.kv_reserved());
        for job in self.queue.take(free, kv_free, self.running.is_empty()) {
            let now = Instant::now();
            measures::queued(now - job.submitted);
            let total = job.request.prompt.len();
            job.progress.send_replace(Progress {
                done: 0,
                total,
                started: true,
            });
            self.running.push(Running {
                sequence: self.model.new_sequence(),
                fed: 0,
                next: 0,
                answer: Answer::new(&job, Arc::clone(&self.vocabulary)),
                admitted: now,
                first_token: None,
                last_token: now,
                job,
            });
        }
    }

    fn drop_cancelled(&mut self) {
        for i in (0..self.running.len()).rev() {
            if self.running[i].job.is_cancelled() {
                self.leave(i, Leave::Cancelled);
            }
        }
    }

    fn step(&mut self) {
        let needs: Vec<Need> = self.running.iter().map(Running::need).collect();
        let shares = batcher::plan(&needs, self.limits);
        let members: Vec<usize> = (0..shares.len()).filter(|&i| shares[i] > 0).collect();
        let mut chunks: Vec<StepChunk<'_, M::Sequence>> = self
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
        measures::step(began.elapsed(), rows, prefill);
        let leaving = settle(&mut self.running, &members, &shares, outcome);
        for (i, leave) in leaving.into_iter().rev() {
            self.leave(i, leave);
        }
    }

    /// Frees place `i`. The other places keep their order, which is by age.
    fn leave(&mut self, i: usize, leave: Leave) {
        let running = self.running.remove(i);
        let service = running.admitted.elapsed();
        // First the place, then the news, so that whoever hears of the end finds the place free.
        self.queue.finished(running.job.id, service);
        match leave {
            Leave::Finished => running.finish(),
            Leave::Failed(error) => send(&running.job, Event::Failed(error)),
            // Nobody listens, unless it is the server that gives up.
            Leave::Cancelled => send(&running.job, Event::Failed(GenerateError::ShuttingDown)),
        }
    }
}

/// Gives every member of a step what came of it; returns those who leave, in order of place.
fn settle<S, R: StepResult>(
    running: &mut [Running<S>],
    members: &[usize],
    shares: &[usize],
    outcome: Result<R, StepError>,
) -> Vec<(usize, Leave)> {
    match outcome {
        Ok(result) => {
            let settle = |(chunk, &i): (usize, &usize)| {
                let leave = if result.cancelled(chunk) {
                    Some(Leave::Cancelled)
                } else {
                    running[i].advance(shares[i], result.last_logits(chunk))
                };
                leave.map(|leave| (i, leave))
            };
            members.iter().enumerate().filter_map(settle).collect()
        }
        Err(error) => {
            tracing::error!(%error, requests = members.len(), "a step failed");
            measures::failed_step();
            let error = match error {
                StepError::Experts(text) => GenerateError::Experts(text),
                StepError::Engine(text) => GenerateError::Engine(text),
            };
            members
                .iter()
                .map(|&i| (i, Leave::Failed(error.clone())))
                .collect()
        }
    }
}

/// Sends without waiting. There is always a place, and a receiver that is gone is not missed.
fn send(job: &Job, event: Event) {
    let _ = job.events.try_send(event);
}

impl<S> Running<S> {
    fn need(&self) -> Need {
        match self.job.request.prompt.len() - self.fed {
            0 => Need::Decode,
            left => Need::Prefill(left),
        }
    }

    fn chunk(&mut self, share: usize) -> StepChunk<'_, S> {
        let prompt = &self.job.request.prompt;
        let end = self.fed + share;
        let (tokens, want) = if self.fed == prompt.len() {
            (std::slice::from_ref(&self.next), Want::Last)
        } else {
            let want = if end == prompt.len() {
                Want::Last
            } else {
                Want::Nothing
            };
            (&prompt[self.fed..end], want)
        };
        StepChunk {
            sequence: &mut self.sequence,
            tokens,
            want,
            cancelled: &self.job.cancelled,
        }
    }

    /// Takes note of a step in which `share` tokens were fed, and draws the next token where the
    /// step ended with logits.
    fn advance(&mut self, share: usize, logits: &[f32]) -> Option<Leave> {
        let prompt = self.job.request.prompt.len();
        if self.fed < prompt {
            self.fed += share;
            let progress = Progress {
                done: self.fed,
                total: prompt,
                started: true,
            };
            self.job.progress.send_replace(progress);
            if self.fed < prompt {
                return None;
            }
        }
        let drawn = match self.answer.draw(logits) {
            Ok(drawn) => drawn,
            Err(error) => return Some(Leave::Failed(GenerateError::Engine(error.to_string()))),
        };
        self.next = drawn.token;
        self.note_token();
        send(&self.job, Event::Token(drawn));
        self.answer.has_ended().then_some(Leave::Finished)
    }

    fn note_token(&mut self) {
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            measures::first_token(now - self.job.submitted);
        } else {
            measures::next_token(now - self.last_token);
        }
        self.last_token = now;
    }

    fn finish(mut self) {
        let (deltas, reason) = self.answer.finish();
        let usage = self.answer.usage();
        let first = self.first_token.unwrap_or(self.last_token);
        let timings = Timings {
            queued: self.admitted - self.job.submitted,
            prefill: first - self.admitted,
            decode: self.last_token - first,
        };
        tracing::info!(
            request = self.job.id,
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            reason = reason.as_str(),
            queued_ms = timings.queued.as_millis() as u64,
            prefill_ms = timings.prefill.as_millis() as u64,
            decode_ms = timings.decode.as_millis() as u64,
            "answered"
        );
        send(
            &self.job,
            Event::Finished {
                deltas,
                finish: Finish {
                    reason,
                    usage,
                    timings,
                },
            },
        );
    }
}
