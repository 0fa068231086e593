//! A model that says what a script tells it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ds4_coordinator::scheduler::{StepChunk, StepError, StepModel, StepResult, Vocabulary, Want};

use crate::vocabulary::{self, answer_tokens};

/// No step of a test takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a model does once it has read a prompt.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Writes this and ends its turn.
    Say(String),
    /// Writes this again and again.
    Repeat(String),
    /// Logits that depend on every token so far, and on nothing else.
    Dream,
    /// Stays inside a step until the request is cancelled.
    HangUntilCancelled,
    /// Stays inside a step until [`Probe::release`].
    HangUntilReleased,
    Fail(StepError),
    Panic,
}

pub(crate) fn say(text: &str) -> Act {
    Act::Say(text.to_owned())
}

/// Decides by the text of the prompt.
pub(crate) type Script = fn(&str) -> Act;

/// What a test sees of the model.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    pub(crate) steps: AtomicUsize,
    /// Steps that held chunks of several requests.
    pub(crate) shared_steps: AtomicUsize,
    /// Steps in which a hanging model saw its request cancelled.
    pub(crate) cancels_seen: AtomicUsize,
    /// Models that are hanging right now or were.
    pub(crate) hangs: AtomicUsize,
    released: AtomicBool,
    prompts: Mutex<Vec<Vec<u32>>>,
}

impl Probe {
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    /// The prompts that were read to their end.
    pub(crate) fn prompts(&self) -> Vec<Vec<u32>> {
        self.prompts.lock().expect("no test panics here").clone()
    }

    fn hang(&self, done: impl Fn() -> bool) -> bool {
        self.hangs.fetch_add(1, Ordering::SeqCst);
        let until = Instant::now() + DEADLINE;
        while !done() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

pub(crate) struct ScriptedModel {
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) probe: Arc<Probe>,
    pub(crate) script: Script,
    pub(crate) context: usize,
    /// How long a step takes.
    pub(crate) pace: Duration,
}

/// The tokens of a sequence and what is being done about them.
#[derive(Default)]
pub(crate) struct Scripted {
    tokens: Vec<u32>,
    act: Option<Act>,
    written: usize,
}

pub(crate) struct Rows(Vec<Option<Vec<f32>>>);

impl StepResult for Rows {
    fn last_logits(&self, chunk: usize) -> &[f32] {
        self.0[chunk].as_deref().unwrap_or(&[])
    }

    fn cancelled(&self, chunk: usize) -> bool {
        self.0[chunk].is_none()
    }
}

impl StepModel for ScriptedModel {
    type Sequence = Scripted;
    type Output<'a> = Rows;

    fn new_sequence(&self) -> Scripted {
        Scripted::default()
    }

    fn step(&mut self, chunks: &mut [StepChunk<'_, Scripted>]) -> Result<Rows, StepError> {
        self.probe.steps.fetch_add(1, Ordering::SeqCst);
        let shared = usize::from(chunks.len() > 1);
        self.probe.shared_steps.fetch_add(shared, Ordering::SeqCst);
        std::thread::sleep(self.pace);
        let rows = chunks.iter_mut().map(|chunk| self.chunk(chunk));
        Ok(Rows(rows.collect::<Result<_, _>>()?))
    }

    fn vocab(&self) -> usize {
        vocabulary::SIZE
    }

    fn context(&self) -> usize {
        self.context
    }
}

impl ScriptedModel {
    fn chunk(&self, chunk: &mut StepChunk<'_, Scripted>) -> Result<Option<Vec<f32>>, StepError> {
        assert!(!chunk.tokens.is_empty(), "an empty chunk");
        chunk.sequence.tokens.extend_from_slice(chunk.tokens);
        if chunk.want == Want::Nothing {
            return Ok(Some(Vec::new()));
        }
        let sequence = &mut *chunk.sequence;
        if sequence.act.is_none() {
            let prompt = self.vocabulary.tokenizer.decode(&sequence.tokens);
            sequence.act = Some((self.script)(&String::from_utf8_lossy(&prompt)));
            let mut prompts = self.probe.prompts.lock().expect("no test panics here");
            prompts.push(sequence.tokens.clone());
        }
        let act = sequence.act.clone().expect("set above");
        let written = sequence.written;
        sequence.written += 1;
        let eos = self.vocabulary.tokenizer.eos();
        Ok(match act {
            Act::Say(text) => {
                let tokens = answer_tokens(&self.vocabulary, &text);
                Some(certain(tokens.get(written).copied().unwrap_or(eos)))
            }
            Act::Repeat(text) => {
                let tokens = answer_tokens(&self.vocabulary, &text);
                Some(certain(tokens[written % tokens.len()]))
            }
            Act::Dream => Some(dream(&sequence.tokens)),
            Act::HangUntilCancelled => {
                let cancelled = || chunk.cancelled.load(Ordering::SeqCst);
                let seen = self.probe.hang(cancelled);
                self.probe
                    .cancels_seen
                    .fetch_add(usize::from(seen), Ordering::SeqCst);
                None
            }
            Act::HangUntilReleased => {
                let released = || self.probe.released.load(Ordering::SeqCst);
                self.probe.hang(released);
                Some(certain(eos))
            }
            Act::Fail(error) => return Err(error),
            Act::Panic => panic!("the script says so"),
        })
    }
}

/// Logits that leave no choice but `token`.
fn certain(token: u32) -> Vec<f32> {
    let mut logits = vec![-1e9; vocabulary::SIZE];
    logits[token as usize] = 0.0;
    logits
}

/// Printable ASCII, each letter about as likely as the next, all by a hash of the tokens.
fn dream(tokens: &[u32]) -> Vec<f32> {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for &token in tokens {
        state = (state ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
    }
    let first = vocabulary::SIZE - 256;
    let mut logits = vec![-1e9; vocabulary::SIZE];
    for logit in &mut logits[first..first + 94] {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *logit = (state >> 40) as f32 / (1u64 << 22) as f32;
    }
    logits
}
