//! What the container's keys and tensors mean for the DeepSeek V4 architecture.
//!
//! [`HyperParams`] are the model's shapes and constants, [`ModelTensors`] its weights with every
//! name resolved and every shape checked, [`WeightBudget`] their sizes. [`Fingerprint`] tells
//! whether two machines hold the same model, and [`synthetic`] writes random-weight models of any
//! shape.

mod error;
mod fingerprint;
mod floats;
mod hparams;
mod hparams_write;
mod layout;
mod names;
pub mod synthetic;
mod tensors;
mod weights;

pub use error::ModelError;
pub use fingerprint::{Fingerprint, FingerprintLength, FingerprintText};
pub use floats::read_floats;
pub use hparams::{ARCHITECTURE, HyperParams, MAX_EXPERTS_USED, Yarn};
pub use tensors::{CompressorTensors, IndexerTensors, LayerTensors, ModelTensors};
pub use weights::{Amount, ExpertBudget, LayerBudget, WeightBudget};
