//! Whether a node's weights are the right ones, while it serves them.
//!
//! A slice states a hash for each of its tensors. They are compared in the background once the node
//! is ready, and by default also before the first call computes with a layer, so that no row comes
//! from bytes that nobody has compared. A whole model states none: what its tensors were when they
//! were first read is recorded, and later reads are compared with that. Files that change under
//! their mappings are noticed after each call, before its rows leave.
//!
//! Weights that are wrong, or whose file changed, take the node out of service: it refuses calls
//! with the reason, its health turns to not serving, and other replicas do its work.

mod background;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ds4_common::expert::{BatchError, ExpertBatch, TileComputer};
use ds4_common::gguf::{FileWatch, GgufError, GgufModel, Tensor};
use ds4_common::kernels::Kernels;
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::slice::{Hash, Hasher, Slice};
use ds4_common::tiles::TileRect;
use rayon::prelude::*;
use tokio::sync::watch;

use crate::compute::{Compute, OutOfService};
use crate::weights;

pub(crate) use background::{Background, BackgroundPlan};

/// Bytes that are read and hashed at once: few enough to stay in a core's cache.
const PIECE_BYTES: usize = 256 << 10;

/// A node without a call for this long has no work.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// When the hashes of a slice are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyWhen {
    /// All of them before the node is ready.
    Start,
    /// A layer's before the first call computes with it, and all of them in the background.
    Use,
    /// In the background; calls do not wait.
    Background,
    /// Never.
    Off,
}

impl VerifyWhen {
    /// As the flag names them.
    pub const NAMES: [(&'static str, VerifyWhen); 4] = [
        ("start", VerifyWhen::Start),
        ("use", VerifyWhen::Use),
        ("background", VerifyWhen::Background),
        ("off", VerifyWhen::Off),
    ];
}

/// How a node makes sure of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifySettings {
    /// When the hashes of a slice are first compared.
    pub when: VerifyWhen,
    /// Bytes a second that the background reads while the node has work; without work it reads as
    /// fast as it can.
    pub rate: u64,
    /// Time between two comparisons of everything; `None` for a single one.
    pub every: Option<Duration>,
    /// Whether anything happens in the background, a look at the files every second included.
    pub background: bool,
}

impl VerifySettings {
    /// Nothing but the look at the files after each call: for a node inside of a process that
    /// watches the files itself.
    pub const EMBEDDED: VerifySettings = VerifySettings {
        when: VerifyWhen::Off,
        rate: 16 << 20,
        every: None,
        background: false,
    };
}

/// A tensor, or the parts of it that the node holds.
#[derive(Debug)]
struct CheckedTensor {
    tensor: Tensor,
    ranges: Vec<Range<usize>>,
    /// What the slice states, or what was found first.
    expected: OnceLock<Hash>,
}

/// The tensors of one layer.
#[derive(Debug)]
struct CheckedLayer {
    tensors: Range<usize>,
    /// Whether all of them were compared since the files last changed.
    verified: AtomicBool,
}

/// Why a comparison did not end well.
#[derive(Debug)]
enum Finding {
    /// The weights are wrong, or cannot be read; says which.
    Damaged(String),
    /// The node stops.
    Stopped,
}

/// What a node knows about its weights, shared by the compute thread and the background.
#[derive(Debug)]
pub(crate) struct Integrity {
    files: FileWatch,
    tensors: Vec<CheckedTensor>,
    layers: Vec<CheckedLayer>,
    /// Whether calls wait until their layer was compared.
    before_use: bool,
    /// Why the node is out of service.
    fault: watch::Sender<Option<OutOfService>>,
    started: Instant,
    /// Milliseconds from the start to the end of the last call.
    last_call_ms: AtomicU64,
    computing: AtomicBool,
}

impl Integrity {
    /// All tensors of a slice; with [`VerifyWhen::Start`] their hashes are compared already.
    pub(crate) fn of_slice(
        slice: &Slice,
        gguf: &GgufModel,
        when: VerifyWhen,
    ) -> Result<Self, GgufError> {
        let head = slice.head();
        let mut layers: Vec<Vec<CheckedTensor>> = Vec::new();
        layers.resize_with(head.hyper_params().layers, Vec::new);
        for stated in head.tensors() {
            let tensor = slice.tensor(stated)?;
            layers[stated.layer].push(CheckedTensor {
                ranges: std::iter::once(0..tensor.bytes().len()).collect(),
                tensor,
                expected: stated.hash.map(OnceLock::from).unwrap_or_default(),
            });
        }
        let mut integrity = Self::new(gguf.watch(), layers);
        integrity.before_use = when == VerifyWhen::Use;
        if when == VerifyWhen::Start {
            integrity.mark(true);
        }
        Ok(integrity)
    }

    /// The bytes of a whole model that computing `rects` reads pages of.
    pub(crate) fn of_model(
        gguf: &GgufModel,
        hp: &HyperParams,
        tensors: &ModelTensors,
        rects: &[TileRect],
    ) -> Self {
        let layer = |layer| {
            let held = weights::held_ranges(hp, layer, rects);
            let held = held.into_iter().map(|(tensor, ranges)| CheckedTensor {
                tensor: tensor.clone(),
                ranges,
                expected: OnceLock::new(),
            });
            held.collect()
        };
        Self::new(gguf.watch(), tensors.layers.iter().map(layer).collect())
    }

    fn new(files: FileWatch, by_layer: Vec<Vec<CheckedTensor>>) -> Self {
        let mut tensors = Vec::new();
        let layers = by_layer.into_iter().map(|of_layer| {
            let first = tensors.len();
            tensors.extend(of_layer);
            CheckedLayer {
                tensors: first..tensors.len(),
                verified: AtomicBool::new(false),
            }
        });
        Integrity {
            layers: layers.collect(),
            tensors,
            files,
            before_use: false,
            fault: watch::Sender::new(None),
            started: Instant::now(),
            last_call_ms: AtomicU64::new(0),
            computing: AtomicBool::new(false),
        }
    }

    /// Why the node is out of service, and every change of that.
    pub(crate) fn faults(&self) -> watch::Receiver<Option<OutOfService>> {
        self.fault.subscribe()
    }

    /// Lets a call compute with a layer, whose tensors are compared first if that is due.
    fn admit(&self, layer: usize) -> Result<(), OutOfService> {
        self.computing.store(true, Ordering::Relaxed);
        self.in_service()?;
        let state = &self.layers[layer];
        if !self.before_use || state.verified.load(Ordering::Acquire) {
            return Ok(());
        }
        let start = Instant::now();
        let tensors = self.tensors[state.tensors.clone()].par_iter();
        let compared = tensors.try_for_each(|tensor| tensor.compare(true, &mut |_| Ok(())));
        match compared {
            Err(Finding::Damaged(reason)) => Err(self.take_out(reason)),
            Err(Finding::Stopped) | Ok(()) => {
                state.verified.store(true, Ordering::Release);
                let ms = start.elapsed().as_millis() as u64;
                tracing::debug!(layer, ms, "verified a layer before its first call");
                Ok(())
            }
        }
    }

    /// Lets a call's rows leave: the bytes that they come from were not written to meanwhile.
    fn release(&self) -> Result<(), OutOfService> {
        let now = self.started.elapsed().as_millis() as u64;
        self.last_call_ms.store(now, Ordering::Relaxed);
        self.computing.store(false, Ordering::Relaxed);
        match self.files.check() {
            Ok(()) => self.in_service(),
            Err(changed) => Err(self.take_out(changed.to_string())),
        }
    }

    fn in_service(&self) -> Result<(), OutOfService> {
        match &*self.fault.borrow() {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        }
    }

    /// Whether calls came a short while ago.
    fn has_work(&self) -> bool {
        let last = Duration::from_millis(self.last_call_ms.load(Ordering::Relaxed));
        let idle = self.started.elapsed().saturating_sub(last);
        self.computing.load(Ordering::Relaxed) || (!last.is_zero() && idle < IDLE_AFTER)
    }

    /// From here on the node computes nothing.
    fn take_out(&self, reason: String) -> OutOfService {
        let fault = OutOfService(reason.into());
        self.mark(false);
        let changed = self.fault.send_if_modified(|held| {
            let other = held.as_ref() != Some(&fault);
            *held = Some(fault.clone());
            other
        });
        if changed {
            tracing::error!(
                reason = %fault.0,
                "the weights cannot be trusted: this node is out of service"
            );
        }
        fault
    }

    /// The weights are right again.
    fn restore(&self) {
        if self.fault.send_replace(None).is_some() {
            tracing::warn!("the weights were compared and are right: this node serves again");
        }
    }

    fn mark(&self, verified: bool) {
        for layer in &self.layers {
            layer.verified.store(verified, Ordering::Release);
        }
    }

    /// Bytes of all tensors.
    fn bytes(&self) -> u64 {
        let ranges = self.tensors.iter().flat_map(|tensor| &tensor.ranges);
        ranges.map(|range| range.len() as u64).sum()
    }
}

impl CheckedTensor {
    /// Compares the bytes with what is expected. If nothing is, `record` makes what is found the
    /// expectation. `step` is told the bytes of each piece, and may wait or end the comparison.
    fn compare(
        &self,
        record: bool,
        step: &mut dyn FnMut(usize) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let found = self.hash(step)?;
        let expected = match record {
            true => Some(self.expected.get_or_init(|| found)),
            false => self.expected.get(),
        };
        let layer = self.tensor.name().split('.').nth(1).unwrap_or_default();
        let (file, tensor) = (self.tensor.file().display(), self.tensor.name());
        match expected {
            Some(expected) if *expected == found => Ok(()),
            Some(expected) => Err(Finding::Damaged(format!(
                "{file}: tensor {tensor} (layer {layer}) has the hash {found}, not {expected}"
            ))),
            None => Err(Finding::Damaged(format!(
                "{file}: it is not known what tensor {tensor} (layer {layer}) was before"
            ))),
        }
    }

    fn hash(&self, step: &mut dyn FnMut(usize) -> Result<(), Finding>) -> Result<Hash, Finding> {
        let unreadable = |problem: io::Error| {
            let (file, tensor) = (self.tensor.file().display(), self.tensor.name());
            Finding::Damaged(format!("{file}: tensor {tensor} cannot be read: {problem}"))
        };
        let mut hasher = Hasher::new();
        let mut piece = Vec::new();
        for range in &self.ranges {
            for first in range.clone().step_by(PIECE_BYTES) {
                piece.resize(PIECE_BYTES.min(range.end - first), 0);
                // Through the file handle: the same cached bytes as the mapping's, without a
                // fault where the file was cut.
                let read = self.tensor.read_at(&mut piece, first as u64);
                read.map_err(unreadable)?;
                hasher.update(&piece);
                step(piece.len())?;
            }
        }
        Ok(hasher.finalize())
    }
}

/// Tiles that are computed as long as their weights are right.
#[derive(Debug)]
pub(crate) struct CheckedTiles {
    pub(crate) computer: TileComputer,
    pub(crate) integrity: Arc<Integrity>,
}

impl Compute for CheckedTiles {
    fn admit(&mut self, layer: usize) -> Result<(), OutOfService> {
        self.integrity.admit(layer)
    }

    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        self.computer.compute(batch, rects, out)
    }

    fn release(&mut self) -> Result<(), OutOfService> {
        self.integrity.release()
    }

    fn idle(&mut self) {
        Compute::idle(&mut self.computer);
    }

    fn kernels(&self) -> Kernels {
        self.computer.kernels()
    }

    fn weights(&self) -> Vec<&[u8]> {
        Compute::weights(&self.computer)
    }
}

#[cfg(test)]
mod tests;
