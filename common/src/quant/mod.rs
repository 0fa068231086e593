//! Quantised formats: what a block of each type holds, in plain Rust.
//!
//! A weight block is bytes in a mapped file; an activation block ([`BlockQ8`], [`BlockQ8K`]) is a
//! value that this crate makes. Layouts are those of GGUF.

mod activation;
mod block;
mod float;
mod ggml_type;
mod iq2_xxs;
mod mxfp4;
mod panels;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;
#[cfg(test)]
mod vectors;

pub use activation::{BlockQ8, BlockQ8K, quantize_q8, quantize_q8_k};
pub use ggml_type::{ActivationFormat, GgmlType, UnknownType};
pub use panels::{Layout, PANEL_ROWS, UnknownLayout, to_panels};

#[cfg(target_arch = "aarch64")]
pub(crate) use block::half_at;
pub(crate) use block::{IntBlock, SmallBlock, SuperBlock};
pub(crate) use float::{widen_bf16, widen_f16};
pub(crate) use iq2_xxs::Iq2Xxs;
pub(crate) use mxfp4::Mxfp4;
pub(crate) use panels::{PANEL_BLOCK, PanelBlock, block_of_row, panel_blocks};
pub(crate) use q2_k::Q2K;
pub(crate) use q3_k::Q3K;
pub(crate) use q4_k::Q4K;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use q4_k::q4_k_scales;
pub(crate) use q5_k::Q5K;
pub(crate) use q6_k::Q6K;
pub(crate) use q8_0::Q8_0;

use block::{dequantize_small, dequantize_super};

/// Writes the values of a row of type `ty` to `out`, each rounded to f32 as the format's formula
/// says; integers become the nearest float.
///
/// # Panics
/// `out` is not a whole number of blocks of `ty`, or `bytes` is not exactly their bytes.
pub fn dequantize_row(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    let expected = ty.row_bytes(out.len() as u64);
    assert_eq!(
        expected,
        Some(bytes.len() as u64),
        "bytes of {} values of {ty}",
        out.len()
    );
    match ty {
        GgmlType::F32 => float::read_f32(bytes, out),
        GgmlType::F16 => widen_f16(bytes, out),
        GgmlType::BF16 => widen_bf16(bytes, out),
        GgmlType::I32 => float::read_i32(bytes, out),
        GgmlType::Q8_0 => dequantize_small::<Q8_0>(bytes, out),
        GgmlType::Mxfp4 => dequantize_small::<Mxfp4>(bytes, out),
        GgmlType::Q2K => dequantize_super::<Q2K>(bytes, out),
        GgmlType::Q3K => dequantize_super::<Q3K>(bytes, out),
        GgmlType::Q4K => dequantize_super::<Q4K>(bytes, out),
        GgmlType::Q5K => dequantize_super::<Q5K>(bytes, out),
        GgmlType::Q6K => dequantize_super::<Q6K>(bytes, out),
        GgmlType::Iq2Xxs => dequantize_super::<Iq2Xxs>(bytes, out),
    }
}
