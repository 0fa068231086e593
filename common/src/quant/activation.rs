//! Activation blocks: what a float activation becomes before it meets a quantised weight.

/// 32 activations with one scale. The scale stays f32, unlike a stored Q8_0 block.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ8 {
    pub d: f32,
    pub q: [i8; 32],
}

/// 256 activations with one scale and the sum of each run of 16, which the mins of the K-quants
/// multiply.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ8K {
    pub d: f32,
    pub q: [i8; 256],
    pub bsums: [i16; 16],
}
