//! Routed experts computed in this process, from the coordinator's own mapping.

use std::sync::{Arc, Mutex, PoisonError};

use ds4_common::expert::{ExpertBatch, ExpertScratch, ExpertStore};
use ds4_common::kernels::Kernels;

use crate::engine::{ExpertBackend, ExpertError, PendingExperts};

/// An [`ExpertBackend`] on the caller's own threads.
#[derive(Debug)]
pub struct LocalBackend {
    store: ExpertStore,
    kernels: Kernels,
    buffers: Mutex<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    scratch: ExpertScratch,
    rows: Vec<f32>,
}

impl LocalBackend {
    #[must_use]
    pub fn new(store: ExpertStore, kernels: Kernels) -> Self {
        LocalBackend { store, kernels, buffers: Mutex::default() }
    }
}

impl ExpertBackend for LocalBackend {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        Ok(Box::new(Pending { backend: self, batch }))
    }
}

struct Pending<'a> {
    backend: &'a LocalBackend,
    batch: Arc<ExpertBatch>,
}

impl PendingExperts for Pending<'_> {
    fn finish(self: Box<Self>, out: &mut [f32]) -> Result<(), ExpertError> {
        let LocalBackend { store, kernels, buffers } = self.backend;
        let mut buffers = buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffers { scratch, rows } = &mut *buffers;
        // The whole grid is one subtree, so its rows are the final sums, one a token.
        store.compute(*kernels, &self.batch, &[store.grid().whole()], scratch, rows)?;
        out.copy_from_slice(rows);
        Ok(())
    }
}
