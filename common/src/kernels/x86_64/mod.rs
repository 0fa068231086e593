//! The instruction sets of x86-64: AVX2 and AVX-512, each with and without VNNI.
//!
//! A file is a set (`avx2`, `avxvnni`, `avx512`, `avx512vnni`), a loop for blocks of one weight type
//! with the width of its vectors in bits where there are two, or what several of these share.

mod avx2;
mod avx512;
mod avx512vnni;
mod avxvnni;
mod block_terms;
mod byte_products;
mod f16_gemv;
mod f32_gemm;
mod peak;
mod q2_k_iq2_xxs;
mod q4_k_16rows;
mod q4_k_gemm_16rows_512;
mod q4_k_gemm_8rows_256;
mod q4_k_gemm_8rows_512;
mod q4_k_gemv_256;
mod q4_k_gemv_512;
mod q4_k_panel_gemm_256;
mod q8_0_gemm_32rows;
mod q8_0_gemv;
mod row_vectors;
mod vectors;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;
pub(super) use avx512vnni::Avx512Vnni;
pub(super) use avxvnni::AvxVnni;
