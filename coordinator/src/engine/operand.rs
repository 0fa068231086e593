//! An activation matrix that is multiplied with weights of several types: each format that they
//! need is made at most once.

use ds4_common::kernels::{Activations, Kernels};
use ds4_common::quant::ActivationFormat;

/// Activations `(rows x cols)`, quantised on demand and once per format.
#[derive(Debug, Default)]
pub(crate) struct Operand {
    plain: Activations,
    q8: FormattedActivations,
    q8k: FormattedActivations,
}

/// The plain values in a quantised format.
#[derive(Debug, Default)]
struct FormattedActivations {
    activations: Activations,
    /// Whether they were made of the present plain values.
    ready: bool,
}

impl Operand {
    /// Room for new values `(rows x cols)`, which the caller fills. Formats made of the old ones
    /// are invalid; their memory is kept.
    pub(crate) fn values_mut(&mut self, cols: usize, rows: usize) -> &mut [f32] {
        self.q8.ready = false;
        self.q8k.ready = false;
        self.plain.plain_mut(rows, cols)
    }

    /// The plain values, row-major.
    pub(crate) fn values(&self) -> &[f32] {
        self.plain.plain()
    }

    pub(crate) fn rows(&self) -> usize {
        self.plain.rows()
    }

    /// Converts the values to `format` unless that was done.
    pub(crate) fn prepare(&mut self, kernels: Kernels, format: ActivationFormat) {
        let formatted = match format {
            ActivationFormat::F32 => return,
            ActivationFormat::Q8 => &mut self.q8,
            ActivationFormat::Q8K => &mut self.q8k,
        };
        if !formatted.ready {
            formatted
                .activations
                .set_with(kernels, format, self.plain.cols(), self.plain.plain());
            formatted.ready = true;
        }
    }

    /// The values in `format`, which [`Operand::prepare`] made.
    pub(crate) fn prepared(&self, format: ActivationFormat) -> &Activations {
        let formatted = match format {
            ActivationFormat::F32 => return &self.plain,
            ActivationFormat::Q8 => &self.q8,
            ActivationFormat::Q8K => &self.q8k,
        };
        debug_assert!(formatted.ready, "{format:?} was not prepared");
        &formatted.activations
    }

    /// The values in `format`, converted if that was not done.
    pub(crate) fn in_format(&mut self, kernels: Kernels, format: ActivationFormat) -> &Activations {
        self.prepare(kernels, format);
        self.prepared(format)
    }
}
