//! Every format against an independent dequantiser: pseudo-random blocks, and a checksum of the
//! exact bits that the `gguf` Python package makes of them.

use super::{GgmlType, dequantize_row};

struct Vector {
    ty: GgmlType,
    /// Where the blocks' half-float scales lie; they are set to finite values.
    halves: &'static [usize],
    /// FNV-1a of the values as little-endian bytes.
    checksum: u64,
    /// Bits of the values 0, 5 and the last one.
    samples: [u32; 3],
}

const fn vector(
    ty: GgmlType,
    halves: &'static [usize],
    checksum: u64,
    samples: [u32; 3],
) -> Vector {
    Vector {
        ty,
        halves,
        checksum,
        samples,
    }
}

const VECTORS: [Vector; 10] = [
    vector(
        GgmlType::Q8_0,
        &[0],
        0x27d4_f4f8_1af9_04c4,
        [0x40f3_2400, 0xbf4c_c000, 0xc033_ec00],
    ),
    vector(
        GgmlType::Q2K,
        &[80, 82],
        0x2b22_5f6f_dae2_1a1d,
        [0x3f93_2700, 0x406f_ef80, 0x3f27_0800],
    ),
    vector(
        GgmlType::Q3K,
        &[108],
        0x1915_fd36_a25e_07cd,
        [0xc101_9180, 0x40ac_c200, 0xc0da_7a00],
    ),
    vector(
        GgmlType::Q4K,
        &[0, 2],
        0x1ec1_5d71_2a90_273b,
        [0x420b_9000, 0x420b_9000, 0x4162_7c40],
    ),
    vector(
        GgmlType::Q5K,
        &[0, 2],
        0xe193_fd8b_524a_4398,
        [0x4127_f1c0, 0x4200_5d70, 0x420d_f7c0],
    ),
    vector(
        GgmlType::Q6K,
        &[208],
        0xe077_3c81_70a4_88bc,
        [0xc221_2920, 0xc288_5de0, 0xc2c7_99d0],
    ),
    vector(
        GgmlType::Iq2Xxs,
        &[0],
        0xa14d_20be_f33f_c9e4,
        [0xbfd9_8c00, 0xbfd9_8c00, 0x3f70_f780],
    ),
    vector(
        GgmlType::Mxfp4,
        &[],
        0x2f58_70fd_11b6_a466,
        [0x0000_0000, 0x0140_0000, 0xfc80_0000],
    ),
    vector(
        GgmlType::F16,
        &[],
        0xe7c8_7b84_0025_3cb4,
        [0x3bc7_8000, 0x3d88_0000, 0x3891_e000],
    ),
    vector(
        GgmlType::BF16,
        &[],
        0x2c40_8be9_f78d_6ec0,
        [0xbf3f_0000, 0x0868_0000, 0x9548_0000],
    ),
];

/// Eight blocks (64 of a plain type) of pseudo-random bytes, without infinities and NaNs.
fn blocks(vector: &Vector) -> Vec<u8> {
    let size = vector.ty.block_bytes();
    let plain = size == 2;
    let count = if plain { 64 } else { 8 };
    let mut state = vector.ty.id();
    let mut bytes: Vec<u8> = (0..size * count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    for (b, block) in bytes.chunks_exact_mut(size).enumerate() {
        for (&at, bits) in vector.halves.iter().zip([0x2e66_u16, 0x2a67]) {
            block[at..at + 2].copy_from_slice(&(bits + b as u16).to_le_bytes());
        }
        if vector.ty == GgmlType::Mxfp4 {
            block[0] = [0, 1, 2, 127, 128, 120, 200, 250][b];
        }
        if plain {
            block[1] &= 0xbf;
        }
    }
    bytes
}

#[test]
fn every_format_dequantises_to_the_bits_of_the_reference() {
    for vector in &VECTORS {
        let bytes = blocks(vector);
        let elements = bytes.len() / vector.ty.block_bytes() * vector.ty.block_elements();
        let mut values = vec![f32::NAN; elements];
        dequantize_row(vector.ty, &bytes, &mut values);
        let at = |i: usize| values[i].to_bits();
        assert_eq!(
            [at(0), at(5), at(elements - 1)],
            vector.samples,
            "{}",
            vector.ty
        );
        let checksum = values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |h, byte| {
                (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        assert_eq!(checksum, vector.checksum, "{}", vector.ty);
    }
}

#[test]
fn plain_types_are_read_little_endian() {
    let mut out = [0.0; 2];
    dequantize_row(GgmlType::F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0x80], &mut out);
    assert_eq!(
        out.map(f32::to_bits),
        [1.5_f32.to_bits(), (-0.0_f32).to_bits()]
    );
    dequantize_row(
        GgmlType::I32,
        &[0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0],
        &mut out,
    );
    assert_eq!(out, [-1.0, 7.0]);
}

#[test]
fn an_infinite_scale_stays_within_its_block() {
    let mut bytes = [0x11; 2 * 144];
    bytes[144..146].copy_from_slice(&0x7c00_u16.to_le_bytes());
    let mut out = [0.0; 512];
    dequantize_row(GgmlType::Q4K, &bytes, &mut out);
    assert!(out[..256].iter().all(|v| v.is_finite()));
    assert!(out[256..].iter().all(|v| !v.is_finite()));
}
