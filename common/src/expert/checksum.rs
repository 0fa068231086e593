//! The checksum of a batch's numbers, which is the same before they travel and after.

use std::ops::Range;

use super::{ExpertBatch, ExpertInput};
use crate::checksum::{Checksum, all_finite};
use crate::quant::{ActivationFormat, BlockQ8K};

impl ExpertBatch {
    /// Checksum of everything that determines the rows of the tokens in `tokens`: layer, counts,
    /// routes and activations, in the order and form in which a message carries them.
    #[must_use]
    pub fn checksum(&self, tokens: Range<usize>) -> u64 {
        let mut sum = Checksum::new(0);
        let format = match self.input.format() {
            ActivationFormat::F32 => 1,
            ActivationFormat::Q8 => 2,
            ActivationFormat::Q8K => 3,
        };
        for number in [
            self.layer as u64,
            tokens.len() as u64,
            self.shape().experts_used as u64,
            u64::from(self.round),
            format,
        ] {
            sum.number(number);
        }
        for route in self.routes_of_all(tokens.clone()) {
            let [expert, weight] = [route.expert, route.weight.to_bits()].map(u64::from);
            sum.number(weight << 32 | expert);
        }
        let width = |elements: usize| elements / self.tokens;
        match &self.input {
            ExpertInput::F32(values) => {
                let row = width(values.len());
                sum.floats(&values[tokens.start * row..tokens.end * row]);
            }
            ExpertInput::Q8(blocks) => {
                let row = width(blocks.len());
                for block in &blocks[tokens.start * row..tokens.end * row] {
                    add_block(&mut sum, block.d, &block.q);
                }
            }
            ExpertInput::Q8K(blocks) => {
                let row = width(blocks.len());
                for block in &blocks[tokens.start * row..tokens.end * row] {
                    add_block(&mut sum, block.d, &block.q);
                }
            }
        }
        sum.finish()
    }

    /// Whether the sums that blocks hold beside their values, which do not travel, are those of
    /// the values.
    #[must_use]
    pub fn sums_agree(&self) -> bool {
        match &self.input {
            ExpertInput::Q8K(blocks) => blocks.iter().all(|block| block.bsums == sums_of_16(block)),
            ExpertInput::F32(_) | ExpertInput::Q8(_) => true,
        }
    }

    /// Whether no activation and no route's weight is infinite or NaN.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let input = match &self.input {
            ExpertInput::F32(values) => all_finite(values),
            ExpertInput::Q8(blocks) => blocks.iter().all(|block| block.d.is_finite()),
            ExpertInput::Q8K(blocks) => blocks.iter().all(|block| block.d.is_finite()),
        };
        input && self.routes.iter().all(|route| route.weight.is_finite())
    }
}

fn add_block<const N: usize>(sum: &mut Checksum, d: f32, q: &[i8; N]) {
    let mut raw = [0; 4 + 256];
    raw[..4].copy_from_slice(&d.to_le_bytes());
    for (byte, value) in raw[4..].iter_mut().zip(q) {
        *byte = value.cast_unsigned();
    }
    sum.bytes(&raw[..4 + N]);
}

/// They fit: 16 x -128 is -2048.
fn sums_of_16(block: &BlockQ8K) -> [i16; 16] {
    let mut sums = [0; 16];
    for (sum, run) in sums.iter_mut().zip(block.q.as_chunks::<16>().0) {
        *sum = run.iter().map(|v| i16::from(*v)).sum();
    }
    sums
}
