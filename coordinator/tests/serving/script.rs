//! A model that says what the test wants.
//!
//! The last `say:` line of a prompt is the answer, markers included, one byte a token. A prompt
//! without one is answered with `ok`. Steps can be held, slowed down and made to fail, and the
//! model keeps a record of what it was asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ds4_coordinator::prompt::markers::{
    ASSISTANT, BOS, DSML, END_THINK, EOS, LATEST_REMINDER, THINK, USER,
};
use ds4_coordinator::prompt::{Segment, Tokenizer};
use ds4_coordinator::scheduler::{
    BytesOf, StepChunk, StepError, StepModel, StepResult, Vocabulary, Want,
};

/// Layers of a step, between which cancellation is looked at.
const LAYERS: usize = 8;
pub(crate) const CONTEXT: usize = 2000;
/// What a sequence takes of the memory for caches, and each of its tokens.
pub(crate) const SEQUENCE_BYTES: u64 = 100;
pub(crate) const TOKEN_BYTES: u64 = 10;
/// A prompt holding this makes the step fail that reads it.
pub(crate) const EXPERTS_FAIL: &str = "experts-fail";
/// ... makes the step panic that reads it.
pub(crate) const PANIC: &str = "engine-panics";
/// ... gives logits that are not numbers.
pub(crate) const NOT_A_NUMBER: &str = "not-a-number";

/// 256 bytes and the markers of chats.
pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|byte| {
            let code = if printable(byte) {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    let mut types = vec![1; tokens.len()];
    for marker in [
        BOS,
        EOS,
        USER,
        ASSISTANT,
        THINK,
        END_THINK,
        DSML,
        LATEST_REMINDER,
    ] {
        tokens.push(marker.to_owned());
        types.push(3);
    }
    let id = |marker: &str| tokens.iter().position(|token| token == marker).unwrap() as u32;
    let (bos, eos) = (id(BOS), id(EOS));
    let tokenizer = Tokenizer::new(tokens, &types, &[], bos, eos).unwrap();
    Arc::new(Vocabulary::new(tokenizer).unwrap())
}

/// What a step held: tokens of each chunk, and whether it wanted logits.
pub(crate) type Step = Vec<(usize, bool)>;

/// The strings of a scripted model.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    held: Mutex<bool>,
    changed: Condvar,
    /// Milliseconds that a layer takes.
    pub(crate) layer_ms: AtomicUsize,
    /// A step is under way.
    pub(crate) busy: AtomicBool,
    pub(crate) steps: Mutex<Vec<Step>>,
    /// Layers computed for chunks that were cancelled already.
    pub(crate) layers_after_cancel: AtomicUsize,
    pub(crate) cancelled_chunks: AtomicUsize,
}

impl Controls {
    /// Holds the model before its next layer, until [`Controls::release`].
    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.changed.notify_all();
    }

    pub(crate) fn step_count(&self) -> usize {
        self.steps.lock().unwrap().len()
    }

    /// Waits until the model is inside a step.
    pub(crate) async fn wait_busy(&self) {
        let begun = Instant::now();
        while !self.busy.load(Ordering::SeqCst) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the model idles");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn layer(&self) {
        let held = self.held.lock().unwrap();
        let patience = Duration::from_secs(20);
        drop(
            self.changed
                .wait_timeout_while(held, patience, |held| *held)
                .unwrap(),
        );
        let ms = self.layer_ms.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(ms as u64));
    }
}

#[derive(Debug)]
pub(crate) struct Scripted {
    vocabulary: Arc<Vocabulary>,
    controls: Arc<Controls>,
    logits: Vec<Vec<f32>>,
    cancelled: Vec<bool>,
    /// Answers by prompt.
    scripts: HashMap<Vec<u32>, Vec<u32>>,
}

impl Scripted {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, controls: Arc<Controls>) -> Self {
        Scripted {
            vocabulary,
            controls,
            logits: Vec::new(),
            cancelled: Vec::new(),
            scripts: HashMap::new(),
        }
    }

    fn text(&self, tokens: &[u32]) -> String {
        String::from_utf8_lossy(&self.vocabulary.tokenizer.decode(tokens)).into_owned()
    }

    fn answer(&mut self, prompt: &[u32]) -> Vec<u32> {
        if let Some(script) = self.scripts.get(prompt) {
            return script.clone();
        }
        let text = self.text(prompt);
        let said = text.rsplit_once("say:").map_or("ok", |(_, rest)| rest);
        let end = said.find(ASSISTANT).unwrap_or(said.len());
        let words = Segment::template(said[..end].replace("\\n", "\n"));
        let mut script = self.vocabulary.tokenizer.encode_segments(&[words]);
        script.push(self.vocabulary.tokenizer.eos());
        self.scripts.insert(prompt.to_vec(), script.clone());
        script
    }

    /// Logits that all but force the scripted token.
    fn row(&mut self, sequence: &mut Sequence) -> Vec<f32> {
        let prompt_len = *sequence.prompt_len.get_or_insert(sequence.tokens.len());
        let script = self.answer(&sequence.tokens[..prompt_len]);
        let at = sequence.tokens.len() - prompt_len;
        // What was drawn must come back as the next input.
        assert!(
            sequence.tokens[prompt_len..]
                .iter()
                .eq(script.iter().cycle().take(at))
        );
        let mut row = vec![0.0; self.vocab()];
        row[script[at % script.len()] as usize] = 50.0;
        if self.text(&sequence.tokens).contains(NOT_A_NUMBER) {
            row[0] = f32::NAN;
        }
        row
    }
}

#[derive(Debug, Default)]
pub(crate) struct Sequence {
    tokens: Vec<u32>,
    prompt_len: Option<usize>,
}

impl StepModel for Scripted {
    type Sequence = Sequence;
    type Output<'a> = &'a Scripted;

    fn new_sequence(&self) -> Sequence {
        Sequence::default()
    }

    fn step(&mut self, chunks: &mut [StepChunk<'_, Sequence>]) -> Result<&Scripted, StepError> {
        let controls = Arc::clone(&self.controls);
        controls.busy.store(true, Ordering::SeqCst);
        let shape = chunks
            .iter()
            .map(|c| (c.tokens.len(), c.want == Want::Last));
        controls.steps.lock().unwrap().push(shape.collect());
        self.cancelled = vec![false; chunks.len()];
        for _ in 0..LAYERS {
            for (chunk, cancelled) in chunks.iter().zip(&mut self.cancelled) {
                *cancelled |= chunk.cancelled.load(Ordering::Relaxed);
            }
            if self.cancelled.iter().all(|cancelled| *cancelled) {
                break;
            }
            controls.layer();
            let late = chunks
                .iter()
                .filter(|c| c.cancelled.load(Ordering::Relaxed))
                .count();
            controls
                .layers_after_cancel
                .fetch_add(late, Ordering::Relaxed);
        }
        self.logits.clear();
        for (i, chunk) in chunks.iter_mut().enumerate() {
            chunk.sequence.tokens.extend_from_slice(chunk.tokens);
            let text = self.text(&chunk.sequence.tokens);
            if text.contains(EXPERTS_FAIL) {
                controls.busy.store(false, Ordering::SeqCst);
                return Err(StepError::Experts(
                    "node 10.0.0.7:50052 is unreachable".into(),
                ));
            }
            assert!(!text.contains(PANIC), "told to");
            let wanted = chunk.want == Want::Last && !self.cancelled[i];
            let row = if wanted {
                self.row(chunk.sequence)
            } else {
                Vec::new()
            };
            self.logits.push(row);
        }
        let cancelled = self
            .cancelled
            .iter()
            .filter(|cancelled| **cancelled)
            .count();
        controls
            .cancelled_chunks
            .fetch_add(cancelled, Ordering::Relaxed);
        controls.busy.store(false, Ordering::SeqCst);
        Ok(self)
    }

    fn sequence_bytes(&self, _: usize) -> BytesOf {
        Box::new(|tokens| SEQUENCE_BYTES + TOKEN_BYTES * tokens as u64)
    }

    fn vocab(&self) -> usize {
        self.vocabulary.tokenizer.vocabulary_size()
    }

    fn context(&self) -> usize {
        CONTEXT
    }
}

impl StepResult for &Scripted {
    fn last_logits(&self, chunk: usize) -> &[f32] {
        &self.logits[chunk]
    }

    fn cancelled(&self, chunk: usize) -> bool {
        self.cancelled[chunk]
    }
}
