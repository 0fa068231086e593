//! What the loops multiply: weight matrices as they are stored, rows of activations, and the
//! blocks of both as single loops read them.

mod activations;
mod matrix;
pub(super) mod q4_k_blocks;
pub(super) mod q8_0_blocks;

pub use activations::{ActRow, Activations};
pub use matrix::{Matrix, ShapeError};
