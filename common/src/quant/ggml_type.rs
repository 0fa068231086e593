//! The types of tensors: ids, names and sizes of blocks.

use std::fmt;

/// Element type of a GGUF tensor. Only types that this engine can read are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, IEEE.
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// 32-bit integers, for tables.
    I32,
    /// Blocks of 32 signed bytes with one f16 scale.
    Q8_0,
    /// Super-blocks of 256 weights of 2 bits with scales and mins.
    Q2K,
    /// Super-blocks of 256 weights of 3 bits with scales.
    Q3K,
    /// Super-blocks of 256 weights of 4 bits with scales and mins.
    Q4K,
    /// Super-blocks of 256 weights of 5 bits with scales and mins.
    Q5K,
    /// Super-blocks of 256 weights of 6 bits with scales.
    Q6K,
    /// Super-blocks of 256 weights as indices of a codebook of eights, about 2 bits each.
    Iq2Xxs,
    /// Blocks of 32 floats of 4 bits with one power-of-two scale.
    Mxfp4,
}

/// The layout of activations that weights of some type multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationFormat {
    /// Plain f32: the weight is a float type.
    F32,
    /// Blocks of 32 with an f32 scale ([`super::BlockQ8`]).
    Q8,
    /// Super-blocks of 256 ([`super::BlockQ8K`]).
    Q8K,
}

/// A type id that is unknown or that this engine does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownType(pub u32);

impl fmt::Display for UnknownType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match foreign_name(self.0) {
            Some(name) => write!(f, "tensor type {name} (id {}) is not supported", self.0),
            None => write!(f, "tensor type id {} is unknown", self.0),
        }
    }
}

impl std::error::Error for UnknownType {}

impl GgmlType {
    /// Every type that this engine reads.
    pub const ALL: [GgmlType; 12] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::I32,
        GgmlType::Q8_0,
        GgmlType::Q2K,
        GgmlType::Q3K,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
        GgmlType::Iq2Xxs,
        GgmlType::Mxfp4,
    ];

    /// The type's id in a GGUF tensor table.
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q8_0 => 8,
            GgmlType::Q2K => 10,
            GgmlType::Q3K => 11,
            GgmlType::Q4K => 12,
            GgmlType::Q5K => 13,
            GgmlType::Q6K => 14,
            GgmlType::Iq2Xxs => 16,
            GgmlType::I32 => 26,
            GgmlType::BF16 => 30,
            GgmlType::Mxfp4 => 39,
        }
    }

    /// The type with this id in a GGUF tensor table.
    ///
    /// # Errors
    /// The id is not that of one of [`GgmlType::ALL`].
    pub fn from_id(id: u32) -> Result<Self, UnknownType> {
        Self::ALL
            .into_iter()
            .find(|ty| ty.id() == id)
            .ok_or(UnknownType(id))
    }

    /// The type's name in the GGUF specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            GgmlType::F32 => "F32",
            GgmlType::F16 => "F16",
            GgmlType::BF16 => "BF16",
            GgmlType::I32 => "I32",
            GgmlType::Q8_0 => "Q8_0",
            GgmlType::Q2K => "Q2_K",
            GgmlType::Q3K => "Q3_K",
            GgmlType::Q4K => "Q4_K",
            GgmlType::Q5K => "Q5_K",
            GgmlType::Q6K => "Q6_K",
            GgmlType::Iq2Xxs => "IQ2_XXS",
            GgmlType::Mxfp4 => "MXFP4",
        }
    }

    /// Elements of one block (1 for plain types).
    #[must_use]
    pub const fn block_elements(self) -> usize {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::I32 => 1,
            GgmlType::Q8_0 | GgmlType::Mxfp4 => 32,
            GgmlType::Q2K
            | GgmlType::Q3K
            | GgmlType::Q4K
            | GgmlType::Q5K
            | GgmlType::Q6K
            | GgmlType::Iq2Xxs => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            GgmlType::F32 | GgmlType::I32 => 4,
            GgmlType::F16 | GgmlType::BF16 => 2,
            GgmlType::Q8_0 => 34,
            GgmlType::Q2K => 84,
            GgmlType::Q3K => 110,
            GgmlType::Q4K => 144,
            GgmlType::Q5K => 176,
            GgmlType::Q6K => 210,
            GgmlType::Iq2Xxs => 66,
            GgmlType::Mxfp4 => 17,
        }
    }

    /// Bytes of a row of `elements`; `None` if they are not whole blocks, or the bytes overflow.
    #[must_use]
    pub fn row_bytes(self, elements: u64) -> Option<u64> {
        let block = self.block_elements() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.block_bytes() as u64)
    }

    /// The activation layout that a dot product with this type reads when rounding is on.
    #[must_use]
    pub fn activation_format(self) -> ActivationFormat {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::I32 => ActivationFormat::F32,
            GgmlType::Q8_0 | GgmlType::Mxfp4 => ActivationFormat::Q8,
            GgmlType::Q2K
            | GgmlType::Q3K
            | GgmlType::Q4K
            | GgmlType::Q5K
            | GgmlType::Q6K
            | GgmlType::Iq2Xxs => ActivationFormat::Q8K,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Types of the GGUF specification that this engine does not read, for the error message.
fn foreign_name(id: u32) -> Option<&'static str> {
    Some(match id {
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        15 => "Q8_K",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_foreign_ids_are_named() {
        for ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Ok(ty));
        }
        assert!(
            GgmlType::from_id(2)
                .unwrap_err()
                .to_string()
                .contains("Q4_0")
        );
        assert!(
            GgmlType::from_id(999)
                .unwrap_err()
                .to_string()
                .contains("unknown")
        );
    }

    #[test]
    fn row_bytes_want_whole_blocks() {
        assert_eq!(GgmlType::Q4K.row_bytes(4096), Some(16 * 144));
        assert_eq!(GgmlType::Q4K.row_bytes(4000), None);
        assert_eq!(GgmlType::F32.row_bytes(u64::MAX), None);
    }
}
