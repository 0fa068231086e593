//! Where the bytes of experts are: in a mapped file, or in memory of this process.

use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use rayon::prelude::*;

use crate::gguf::Tensor;
use crate::quant::{GgmlType, Layout};

/// Sizes of experts that come from no model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Layers of the same size.
    pub layers: usize,
    /// Width of a layer's input, in values.
    pub hidden: usize,
    /// Inner width of an expert, in values.
    pub width: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that the router chooses for a token.
    pub experts_used: usize,
    /// Format of gate, up and down.
    pub ty: GgmlType,
    /// Order of their bytes.
    pub layout: Layout,
}

/// An expert tensor that cannot be computed with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor {tensor}: {reason}")]
pub struct StoreError {
    /// Name in the file, or of the projection in memory.
    pub tensor: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The bytes of all experts of one projection, one expert after the other. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum ExpertBytes {
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

impl ExpertBytes {
    pub(super) fn mapped(tensor: &Tensor, layout: Layout) -> Self {
        ExpertBytes::Mapped {
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
            .ok_or_else(|| error("an expert is not a whole number of blocks".to_owned()))?;
        let total = each
            .checked_mul(shape.experts)
            .ok_or_else(|| error("more bytes than can be addressed".to_owned()))?;
        let memory = |e: std::io::Error| error(format!("cannot allocate {total} bytes: {e}"));
        let mut bytes = MmapMut::map_anon(total).map_err(memory)?;
        #[cfg(target_os = "linux")]
        if let Err(e) = bytes.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%e, "no huge pages");
        }
        bytes.par_chunks_mut(each).for_each(fill);
        Ok(ExpertBytes::Memory {
            name,
            shape,
            bytes: Arc::new(bytes.make_read_only().map_err(memory)?),
        })
    }

    pub(super) fn name(&self) -> &str {
        match self {
            ExpertBytes::Mapped { tensor, .. } => tensor.name(),
            ExpertBytes::Memory { name, .. } => name,
        }
    }

    pub(super) fn ty(&self) -> GgmlType {
        match self {
            ExpertBytes::Mapped { tensor, .. } => tensor.ty(),
            ExpertBytes::Memory { shape, .. } => shape.ty,
        }
    }

    pub(super) fn layout(&self) -> Layout {
        match self {
            ExpertBytes::Mapped { layout, .. } => *layout,
            ExpertBytes::Memory { shape, .. } => shape.layout,
        }
    }

    /// Reads the same bytes in another order.
    pub(super) fn reinterpret(&mut self, layout: Layout) {
        match self {
            ExpertBytes::Mapped { layout: own, .. } => *own = layout,
            ExpertBytes::Memory { shape, .. } => shape.layout = layout,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            ExpertBytes::Mapped { tensor, .. } => tensor.bytes(),
            ExpertBytes::Memory { bytes, .. } => bytes,
        }
    }
}
