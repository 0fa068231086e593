//! What the machine can do at most: loops that only read, and loops that only multiply.

use rayon::prelude::*;

use super::instruction_set::InstructionSet;
use super::{Isa, Kernels, with_kernel};

impl Kernels {
    /// Reads every whole 256 bytes of `bytes` once, ascending, and returns something that depends
    /// on all of them.
    #[must_use]
    pub fn read_through(self, bytes: &[u8]) -> u64 {
        with_kernel!(self, k => k.read_through(bytes))
    }

    /// Multiplies and adds bytes in registers `rounds` times, as these kernels do it for Q4_K
    /// without its scales. Returns the operations done, two for a product; `None` for kernels
    /// without vectors.
    #[must_use]
    pub fn multiply_bytes(self, rounds: u32) -> Option<u64> {
        with_kernel!(self, k => k.multiply_bytes(rounds))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::scalar::Scalar;

    #[test]
    fn all_kernels_read_the_same_bytes() {
        let mut bytes: Vec<u8> = (0..256 * 9 + 5).map(|i| (i * 31 % 251) as u8).collect();
        let sum = Scalar.read_through(&bytes);
        for kernels in Kernels::available() {
            assert_eq!(kernels.read_through(&bytes), sum, "{}", kernels.name());
        }
        bytes[700] ^= 64;
        assert_ne!(Scalar.read_through(&bytes), sum);
    }

    #[test]
    fn operations_are_counted() {
        for kernels in Kernels::available() {
            let (one, three) = (kernels.multiply_bytes(1), kernels.multiply_bytes(3));
            assert_eq!(one.map(|ops| 3 * ops), three, "{}", kernels.name());
        }
    }
}
