//! An activation matrix that meets weights of several types: each layout is made at most once.

use ds4_common::kernels::Activations;
use ds4_common::quant::ActivationFormat;

/// `rows x cols` activations, quantised on demand and once per layout.
#[derive(Debug, Default)]
pub(crate) struct Operand {
    cols: usize,
    values: Vec<f32>,
    f32: Layout,
    q8: Layout,
    q8k: Layout,
}

#[derive(Debug, Default)]
struct Layout {
    activations: Activations,
    ready: bool,
}

impl Operand {
    /// Takes new values; layouts made of the old ones are dropped, their memory is kept.
    pub(crate) fn load(&mut self, cols: usize, values: &[f32]) {
        self.values_mut(cols, values.len() / cols).copy_from_slice(values);
    }

    /// Room for `rows x cols` new values, which the caller fills.
    pub(crate) fn values_mut(&mut self, cols: usize, rows: usize) -> &mut [f32] {
        self.cols = cols;
        self.values.resize(rows * cols, 0.0);
        self.f32.ready = false;
        self.q8.ready = false;
        self.q8k.ready = false;
        &mut self.values
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    pub(crate) fn rows(&self) -> usize {
        self.values.len() / self.cols.max(1)
    }

    pub(crate) fn in_format(&mut self, format: ActivationFormat) -> &Activations {
        let layout = match format {
            ActivationFormat::F32 => &mut self.f32,
            ActivationFormat::Q8 => &mut self.q8,
            ActivationFormat::Q8K => &mut self.q8k,
        };
        if !layout.ready {
            layout.activations.set(format, self.cols, &self.values);
            layout.ready = true;
        }
        &layout.activations
    }
}
