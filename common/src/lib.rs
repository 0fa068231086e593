//! What every ds4 binary links: GGUF files, quantised formats, kernels, tiles and the one expert
//! function. No async, no network, no command line.
//!
//! The floors, lowest first; a module imports only from floors below its own:
//! `math`, `quant`, `random`, `memory_limit`, `threads` · `gguf`, `kernels` · `model`, `tiles` · `slice` ·
//! `expert`.

mod digest;
pub mod expert;
pub mod gguf;
pub mod kernels;
pub mod math;
pub mod memory_limit;
pub mod model;
pub mod quant;
pub mod random;
pub mod slice;
pub mod threads;
pub mod tiles;
