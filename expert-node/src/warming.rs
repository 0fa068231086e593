//! Reads a slice into memory while the node serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ds4_common::gguf::{GgufError, Tensor};
use ds4_common::slice::Slice;

/// Bytes that are read between two checks whether to stop.
const CHUNK_BYTES: usize = 64 << 20;

/// A thread that reads a slice from its first tensor to its last; dropping this ends it.
#[derive(Debug)]
pub(crate) struct Warming(Arc<AtomicBool>);

impl Warming {
    pub(crate) fn start(slice: &Slice) -> Result<Self, GgufError> {
        let tensors = slice.head().tensors().iter();
        let tensors = tensors
            .map(|tensor| slice.tensor(tensor))
            .collect::<Result<Vec<_>, _>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let warming = Warming(Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("warming".to_owned());
        if let Err(error) = thread.spawn(move || read(&tensors, &stop)) {
            // The first calls read what they need.
            tracing::warn!(%error, "cannot start the thread that reads the slice into memory");
        }
        Ok(warming)
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn read(tensors: &[Tensor], stop: &AtomicBool) {
    let start = Instant::now();
    let mut bytes = 0;
    for tensor in tensors {
        let length = tensor.bytes().len();
        for first in (0..length).step_by(CHUNK_BYTES) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let range = first..length.min(first + CHUNK_BYTES);
            bytes += range.len();
            if let Err(error) = tensor.populate(range) {
                tracing::warn!(%error, tensor = tensor.name(), "cannot read a tensor into memory");
                return;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!(
        megabytes = bytes / 1_000_000,
        seconds,
        "the slice is in memory"
    );
}
