use std::fmt;
use std::str::FromStr;

use ds4_common::quant::{ActivationFormat, GgmlType};

/// What is rounded on the way. The default is what the model was trained with and what the
/// kernels are made for; the others compare the engine with others to tighter bounds.
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
    #[must_use]
    pub fn rounds_cache(self) -> bool {
        self != Numerics::F32
    }

    #[must_use]
    pub fn rounds_activations(self) -> bool {
        self == Numerics::Full
    }

    /// The layout in which an activation meets a weight of type `ty`.
    #[must_use]
    pub fn activation_format(self, ty: GgmlType) -> ActivationFormat {
        if self.rounds_activations() { ty.activation_format() } else { ActivationFormat::F32 }
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
            other => Err(format!("'{other}' is none of f32, cache, full")),
        }
    }
}
