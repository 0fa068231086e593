//! What the machine can do at most: loops that only read, and loops that only multiply.

use rayon::prelude::*;

use super::{Isa, Kernels};

impl Kernels {
    /// Reads every whole 256 bytes of `bytes` once, ascending, and returns something that depends
    /// on all of them.
    #[must_use]
    pub fn read_through(self, bytes: &[u8]) -> u64 {
        match self.0 {
            Isa::Scalar(_) => read(bytes),
            // SAFETY: the value exists, so the CPU has AVX2.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) | Isa::AvxVnni(_) => unsafe { x86_64::read_avx2(bytes) },
            // SAFETY: the value exists, so the CPU has AVX-512.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bw(_) | Isa::Avx512(_) => unsafe { x86_64::read_avx512(bytes) },
            // The plain loop is in vectors already: they are part of the target.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) | Isa::Dotprod(_) | Isa::I8mm(_) => read(bytes),
        }
    }

    /// Multiplies and adds bytes in registers `rounds` times, as these kernels do it for Q4_K
    /// without its scales. Returns the operations done, two for a product; `None` for kernels
    /// without vectors.
    #[must_use]
    pub fn multiply_bytes(self, rounds: u32) -> Option<u64> {
        match self.0 {
            Isa::Scalar(_) => None,
            // SAFETY: the value exists, so the CPU has AVX2.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => Some(unsafe { x86_64::multiply_avx2(rounds) }),
            // SAFETY: the value exists, so the CPU has AVX2 and AVX-VNNI.
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(_) => Some(unsafe { x86_64::multiply_avxvnni(rounds) }),
            // SAFETY: the value exists, so the CPU has AVX-512.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bw(_) => Some(unsafe { x86_64::multiply_avx512bw(rounds) }),
            // SAFETY: the value exists, so the CPU has AVX-512 with VNNI.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => Some(unsafe { x86_64::multiply_avx512(rounds) }),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(k) => Some(k.multiply(rounds)),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod(k) => Some(k.multiply(rounds)),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm(k) => Some(k.multiply(rounds)),
        }
    }

    /// [`Kernels::read_through`] with an equal part of `bytes` for each thread of the current
    /// rayon pool.
    #[must_use]
    pub fn read_on_all_threads(self, bytes: &[u8]) -> u64 {
        let part = bytes.len().div_ceil(rayon::current_num_threads()).max(1);
        let parts = bytes.par_chunks(part).with_max_len(1);
        let sum = parts.map(|part| self.read_through(part));
        std::hint::black_box(sum.reduce(|| 0, |a, b| a ^ b))
    }

    /// [`Kernels::multiply_bytes`] on every thread of the current rayon pool; the operations of
    /// all of them.
    #[must_use]
    pub fn multiply_on_all_threads(self, rounds: u32) -> Option<u64> {
        rayon::broadcast(|_| self.multiply_bytes(rounds))
            .into_iter()
            .sum()
    }
}

#[inline(always)]
fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0; 32];
    for part in bytes.as_chunks::<256>().0 {
        for (sum, word) in sums.iter_mut().zip(part.as_chunks::<8>().0) {
            *sum ^= u64::from_le_bytes(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
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
    pub(super) fn multiply_avx512bw(rounds: u32) -> u64 {
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
    pub(super) fn multiply_avx512(rounds: u32) -> u64 {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kernels_read_the_same_bytes() {
        let mut bytes: Vec<u8> = (0..256 * 9 + 5).map(|i| (i * 31 % 251) as u8).collect();
        let sum = read(&bytes);
        for kernels in Kernels::available() {
            assert_eq!(kernels.read_through(&bytes), sum, "{}", kernels.name());
        }
        bytes[700] ^= 64;
        assert_ne!(read(&bytes), sum);
    }

    #[test]
    fn operations_are_counted() {
        for kernels in Kernels::available() {
            let (one, three) = (kernels.multiply_bytes(1), kernels.multiply_bytes(3));
            assert_eq!(one.map(|ops| 3 * ops), three, "{}", kernels.name());
        }
    }
}
