//! An activation matrix that meets weights of several types: each layout is made at most once.

use ds4_common::kernels::{Activations, Kernels};
use ds4_common::quant::ActivationFormat;

/// `rows x cols` activations, quantised on demand and once per layout.
#[derive(Debug, Default)]
pub(crate) struct Operand {
    plain: Activations,
    q8: Layout,
    q8k: Layout,
}

#[derive(Debug, Default)]
struct Layout {
    activations: Activations,
    ready: bool,
}

impl Operand {
    /// Room for `rows x cols` new values, which the caller fills. Layouts made of the old ones
    /// are dropped, their memory is kept.
    pub(crate) fn values_mut(&mut self, cols: usize, rows: usize) -> &mut [f32] {
        self.q8.ready = false;
        self.q8k.ready = false;
        self.plain.plain_mut(rows, cols)
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.plain.plain()
    }

    pub(crate) fn rows(&self) -> usize {
        self.plain.rows()
    }

    /// Makes the layout of `format` unless it is there.
    pub(crate) fn prepare(&mut self, kernels: Kernels, format: ActivationFormat) {
        let layout = match format {
            ActivationFormat::F32 => return,
            ActivationFormat::Q8 => &mut self.q8,
            ActivationFormat::Q8K => &mut self.q8k,
        };
        if !layout.ready {
            layout
                .activations
                .set_with(kernels, format, self.plain.cols(), self.plain.plain());
            layout.ready = true;
        }
    }

    /// The layout of `format`, which [`Operand::prepare`] made for these values.
    pub(crate) fn prepared(&self, format: ActivationFormat) -> &Activations {
        let layout = match format {
            ActivationFormat::F32 => return &self.plain,
            ActivationFormat::Q8 => &self.q8,
            ActivationFormat::Q8K => &self.q8k,
        };
        debug_assert!(layout.ready, "{format:?} was not prepared");
        &layout.activations
    }

    pub(crate) fn in_format(&mut self, kernels: Kernels, format: ActivationFormat) -> &Activations {
        self.prepare(kernels, format);
        self.prepared(format)
    }
}
