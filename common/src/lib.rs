//! What every ds4 binary links: GGUF files, quantised formats, kernels, tiles and the one expert
//! function. No async, no network, no command line.
//!
//! A module imports only from the lines below its own:
//!
//! ```text
//! expert         the batch of a layer's routed experts, and the one function that computes it
//! slice          slice files: cut, written, hashed, verified
//! model          hyper-parameters, tensor names and shapes, fingerprint, synthetic models
//! tiles          the grid of expert tiles, the canonical reduction tree, who holds what
//! digest         BLAKE3 over fields, for fingerprints and slices
//! measure        what this machine can do: memory rate, operations, cores
//! kernels        products of weights and activations, for each instruction set
//! gguf           the container: parse, map, write
//! quant          weight formats: what a block holds
//! checksum       checksums of numbers that travel between machines
//! math           float functions with the same bits on every platform
//! random         pseudo-random numbers that a seed determines
//! quantity       sizes and rates, as text
//! memory_limit   memory that the process may still allocate
//! open_files     how many files and sockets the process may have open
//! threads        compute threads and their cores
//! ```

pub mod checksum;
mod digest;
pub mod expert;
pub mod gguf;
pub mod kernels;
pub mod math;
pub mod measure;
pub mod memory_limit;
pub mod model;
pub mod open_files;
pub mod quant;
pub mod quantity;
pub mod random;
pub mod slice;
pub mod threads;
pub mod tiles;
