//! Where the bytes of experts are: in a mapped file, or in memory of this process.

use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use rayon::prelude::*;

use super::store::{ExpertShape, StoreError};
use crate::gguf::Tensor;
use crate::quant::{GgmlType, Layout};

/// All experts of one projection, one after the other. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Weights {
    Mapped {
        tensor: Tensor,
        layout: Layout,
    },
    Memory {
        name: &'static str,
        shape: ExpertShape,
        bytes: Arc<Mmap>,
    },
}

impl Weights {
    pub(super) fn mapped(tensor: &Tensor, layout: Layout) -> Self {
        Weights::Mapped {
            tensor: tensor.clone(),
            layout,
        }
    }

    /// Anonymous memory that `fill` writes expert by expert.
    pub(super) fn in_memory(
        name: &'static str,
        shape: ExpertShape,
        fill: &(impl Fn(&mut [u8]) + Sync),
    ) -> Result<Self, StoreError> {
        let error = |reason: String| StoreError {
            tensor: name.to_owned(),
            reason,
        };
        // Down has the same number of weights, so the same bytes: both sides are whole blocks.
        let each = shape
            .ty
            .row_bytes((shape.hidden as u64).saturating_mul(shape.width as u64))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| error("an expert is no whole number of blocks".to_owned()))?;
        let total = each
            .checked_mul(shape.experts)
            .ok_or_else(|| error("more bytes than can be addressed".to_owned()))?;
        let memory = |e: std::io::Error| error(format!("no memory for {total} bytes: {e}"));
        let mut bytes = MmapMut::map_anon(total).map_err(memory)?;
        #[cfg(target_os = "linux")]
        if let Err(e) = bytes.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%e, "no huge pages");
        }
        bytes.par_chunks_mut(each).for_each(fill);
        Ok(Weights::Memory {
            name,
            shape,
            bytes: Arc::new(bytes.make_read_only().map_err(memory)?),
        })
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Weights::Mapped { tensor, .. } => tensor.name(),
            Weights::Memory { name, .. } => name,
        }
    }

    pub(super) fn ty(&self) -> GgmlType {
        match self {
            Weights::Mapped { tensor, .. } => tensor.ty(),
            Weights::Memory { shape, .. } => shape.ty,
        }
    }

    pub(super) fn layout(&self) -> Layout {
        match self {
            Weights::Mapped { layout, .. } => *layout,
            Weights::Memory { shape, .. } => shape.layout,
        }
    }

    /// Reads the same bytes in another order.
    pub(super) fn reinterpret(&mut self, layout: Layout) {
        match self {
            Weights::Mapped { layout: own, .. } => *own = layout,
            Weights::Memory { shape, .. } => shape.layout = layout,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Weights::Mapped { tensor, .. } => tensor.bytes(),
            Weights::Memory { bytes, .. } => bytes,
        }
    }
}
