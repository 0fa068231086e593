//! What the container's keys and tensors mean for the DeepSeek V4 architecture.
//!
//! [`HyperParams`] are the model's shapes and constants, [`ModelTensors`] its weights with every
//! name resolved and every shape checked, [`Fingerprint`] says whether two machines hold the same
//! model, and [`synthetic`] writes random-weight models of any shape.

mod error;
mod floats;
mod hparams;
mod layout;
mod names;
mod tensors;

pub use error::ModelError;
pub use floats::read_floats;
pub use hparams::{ARCHITECTURE, HyperParams, Yarn};
pub use tensors::{CompressorTensors, IndexerTensors, LayerTensors, ModelTensors};
