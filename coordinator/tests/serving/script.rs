//! A model that answers what the test wants.
//!
//! The last `say:` line of a prompt is the answer, markers included, one byte per token. A prompt
//! without one is answered with `ok`. Steps can be held, slowed down and made to fail, and the
//! model records what its steps held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ds4_coordinator::engine::{
    Chunk, ChunkOutput, EngineError, ExpertError, LogitsWanted, StepOutput,
};
use ds4_coordinator::prompt::markers::{
    ASSISTANT, BOS, DSML, END_THINK, EOS, LATEST_REMINDER, THINK, USER,
};
use ds4_coordinator::prompt::{Segment, Tokenizer};
use ds4_coordinator::scheduler::{BytesOf, StepModel, Vocabulary};

/// Layers of a step; cancellation is checked between them.
const LAYERS: usize = 8;
pub(crate) const CONTEXT: usize = 2000;
/// Bytes that a sequence takes of the memory for caches, and each of its tokens.
pub(crate) const SEQUENCE_BYTES: u64 = 100;
pub(crate) const TOKEN_BYTES: u64 = 10;
/// The step that computes a prompt with this text fails.
pub(crate) const EXPERTS_FAIL: &str = "experts-fail";
/// The step that computes a prompt with this text panics.
pub(crate) const PANIC: &str = "engine-panics";
/// A prompt with this text gets logits that are not numbers.
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

/// Controls and records of a scripted model.
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
        let timeout = Duration::from_secs(20);
        drop(
            self.changed
                .wait_timeout_while(held, timeout, |held| *held)
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
    /// The rows of the last step, one after the other.
    logits: Vec<f32>,
    outputs: Vec<ChunkOutput>,
    /// Answers by prompt.
    scripts: HashMap<Vec<u32>, Vec<u32>>,
}

impl Scripted {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, controls: Arc<Controls>) -> Self {
        Scripted {
            vocabulary,
            controls,
            logits: Vec::new(),
            outputs: Vec::new(),
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

    fn new_sequence(&self) -> Sequence {
        Sequence::default()
    }

    fn step(&mut self, chunks: &mut [Chunk<'_, Sequence>]) -> Result<StepOutput<'_>, EngineError> {
        let controls = Arc::clone(&self.controls);
        controls.busy.store(true, Ordering::SeqCst);
        let shape = chunks
            .iter()
            .map(|c| (c.tokens.len(), c.logits == LogitsWanted::Last));
        controls.steps.lock().unwrap().push(shape.collect());
        self.outputs = vec![ChunkOutput::default(); chunks.len()];
        for _ in 0..LAYERS {
            for (chunk, output) in chunks.iter().zip(&mut self.outputs) {
                output.cancelled |= chunk.is_cancelled();
            }
            if self.outputs.iter().all(|output| output.cancelled) {
                break;
            }
            controls.layer();
            let late = chunks.iter().filter(|chunk| chunk.is_cancelled()).count();
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
                return Err(EngineError::Experts(ExpertError::Unreachable {
                    node: "10.0.0.7:50052".into(),
                    reason: "connection reset".into(),
                    layer: 3,
                    tiles: "experts 0 to 7".into(),
                    deadline_ms: 100,
                }));
            }
            assert!(!text.contains(PANIC), "the test wants this panic");
            let start = self.logits.len();
            if chunk.logits == LogitsWanted::Last && !self.outputs[i].cancelled {
                let row = self.row(chunk.sequence);
                self.logits.extend(row);
            }
            self.outputs[i].logits = start..self.logits.len();
        }
        let cancelled = self.outputs.iter().filter(|output| output.cancelled);
        controls
            .cancelled_chunks
            .fetch_add(cancelled.count(), Ordering::Relaxed);
        controls.busy.store(false, Ordering::SeqCst);
        Ok(StepOutput::new(&self.logits, &self.outputs))
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
