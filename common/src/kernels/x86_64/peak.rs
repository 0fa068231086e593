//! Loops that only read, and loops that only multiply.

use std::arch::asm;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums in flight: more than latency times units, so that the units are always busy.
const SUMS: usize = 12;

// Spelled out: left to itself, the compiler gathers the words one by one.
#[target_feature(enable = "avx2")]
pub(super) fn read_avx2(bytes: &[u8]) -> u64 {
    let mut sums = [_mm256_setzero_si256(); 8];
    for part in bytes.as_chunks::<256>().0 {
        for (sum, bytes) in sums.iter_mut().zip(part.as_chunks::<32>().0) {
            // SAFETY: the reference is valid for 32 bytes, which need no alignment.
            let words = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
            *sum = _mm256_xor_si256(*sum, words);
        }
    }
    let mut words = [[0; 4]; 8];
    for (words, sum) in words.iter_mut().zip(sums) {
        // SAFETY: the reference is valid for 32 bytes, which need no alignment.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), sum) };
    }
    words.as_flattened().iter().fold(0, |all, word| all ^ word)
}

#[target_feature(enable = "avx512f")]
pub(super) fn read_avx512(bytes: &[u8]) -> u64 {
    let mut sums = [_mm512_setzero_si512(); 4];
    for part in bytes.as_chunks::<256>().0 {
        for (sum, bytes) in sums.iter_mut().zip(part.as_chunks::<64>().0) {
            // SAFETY: the reference is valid for 64 bytes, which need no alignment.
            let words = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
            *sum = _mm512_xor_si512(*sum, words);
        }
    }
    let mut words = [[0; 8]; 4];
    for (words, sum) in words.iter_mut().zip(sums) {
        // SAFETY: the reference is valid for 64 bytes, which need no alignment.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), sum) };
    }
    words.as_flattened().iter().fold(0, |all, word| all ^ word)
}

#[target_feature(enable = "avx2")]
pub(super) fn multiply_avx2(rounds: u32) -> u64 {
    let mut sums = [_mm256_setzero_si256(); SUMS];
    let x = _mm256_set1_epi8(-7);
    let ones = _mm256_set1_epi16(1);
    let mut w = _mm256_set1_epi8(9);
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: no instruction; the compiler has to take `w` for a new value, or it
            // would multiply once.
            unsafe { asm!("/* {0} */", inout(ymm_reg) w, options(nomem, nostack)) };
            let pairs = _mm256_maddubs_epi16(w, x);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    black_box(sums);
    u64::from(rounds) * SUMS as u64 * 2 * 32
}

#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn multiply_avxvnni(rounds: u32) -> u64 {
    let mut sums = [_mm256_setzero_si256(); SUMS];
    let x = _mm256_set1_epi8(-7);
    let mut w = _mm256_set1_epi8(9);
    for _ in 0..rounds {
        // SAFETY: no instruction; the compiler has to take `w` for a new value.
        unsafe { asm!("/* {0} */", inout(ymm_reg) w, options(nomem, nostack)) };
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, w, x);
        }
    }
    black_box(sums);
    u64::from(rounds) * SUMS as u64 * 2 * 32
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn multiply_avx512(rounds: u32) -> u64 {
    let mut sums = [_mm512_setzero_si512(); SUMS];
    let x = _mm512_set1_epi8(-7);
    let mut w = _mm512_set1_epi8(9);
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: no instruction; the compiler has to take `w` for a new value.
            unsafe { asm!("/* {0} */", inout(zmm_reg) w, options(nomem, nostack)) };
            *sum = _mm512_add_epi16(*sum, _mm512_maddubs_epi16(w, x));
        }
    }
    black_box(sums);
    u64::from(rounds) * SUMS as u64 * 2 * 64
}

#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn multiply_avx512vnni(rounds: u32) -> u64 {
    let mut sums = [_mm512_setzero_si512(); SUMS];
    let x = _mm512_set1_epi8(-7);
    let mut w = _mm512_set1_epi8(9);
    for _ in 0..rounds {
        // SAFETY: no instruction; the compiler has to take `w` for a new value.
        unsafe { asm!("/* {0} */", inout(zmm_reg) w, options(nomem, nostack)) };
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, w, x);
        }
    }
    black_box(sums);
    u64::from(rounds) * SUMS as u64 * 2 * 64
}
