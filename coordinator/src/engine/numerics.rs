//! Which values the forward pass rounds.

use std::fmt;
use std::str::FromStr;

use ds4_common::quant::{ActivationFormat, GgmlType};

/// What the forward pass rounds. The default is what the model was trained with and what the
/// kernels are made for; the others allow comparisons with other engines to tighter bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numerics {
    /// Weights dequantised, nothing rounded.
    F32,
    /// Only cache and index rows rounded (FP8, FP4, f16).
    Cache,
    /// Cache rows rounded, and activations quantised before every quantised product.
    #[default]
    Full,
}

impl Numerics {
    /// Whether cache and index rows are rounded, and cache rows stored as f16.
    #[must_use]
    pub fn rounds_cache(self) -> bool {
        self != Numerics::F32
    }

    /// Whether activations are quantised before a product with quantised weights.
    #[must_use]
    pub fn rounds_activations(self) -> bool {
        self == Numerics::Full
    }

    /// The format in which activations are multiplied with weights of type `ty`.
    #[must_use]
    pub fn activation_format(self, ty: GgmlType) -> ActivationFormat {
        if self.rounds_activations() {
            ty.activation_format()
        } else {
            ActivationFormat::F32
        }
    }
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Numerics::F32 => "f32",
            Numerics::Cache => "cache",
            Numerics::Full => "full",
        })
    }
}

impl FromStr for Numerics {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f32" => Ok(Numerics::F32),
            "cache" => Ok(Numerics::Cache),
            "full" => Ok(Numerics::Full),
            other => Err(format!("expected f32, cache or full, not '{other}'")),
        }
    }
}
