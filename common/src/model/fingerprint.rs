//! The identity of a model, compared before coordinator and node work together.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::HyperParams;
use crate::digest::FieldDigest;
use crate::gguf::{GgufError, GgufModel, Tensor};

/// Tells whether two machines hold the same model: a BLAKE3 digest of the hyper-parameters, of
/// every tensor's name, shape and type, and of samples of its data. How the model is cut into
/// files makes no difference.
///
/// It guards against mistakes, not against deliberate changes of a model: data between the samples
/// is not read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// A foreign fingerprint of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a model fingerprint has 32 bytes, not {0}")]
pub struct FingerprintLength(pub usize);

/// Bytes sampled at the start and in the middle of a tensor.
const SAMPLE: u64 = 4096;

impl Fingerprint {
    /// Reads the samples through file handles, so that no page of the mapped weights becomes
    /// resident in this process.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(gguf: &GgufModel, hp: &HyperParams) -> Result<Self, GgufError> {
        let mut digest = FieldDigest::new("ds4 model fingerprint 1");
        hyper_params(&mut digest, hp);
        let readable = gguf.tensors().iter().map(|t| (&t.name, &t.dims, t.ty.id()));
        let unreadable = gguf
            .unsupported()
            .iter()
            .map(|t| (&t.name, &t.dims, t.ty.0));
        let mut directory: Vec<_> = readable.chain(unreadable).collect();
        directory.sort_unstable();
        digest.size(directory.len());
        for (name, dims, ty) in directory {
            digest.text(name);
            digest.size(dims.len());
            dims.iter().for_each(|&d| digest.integer(d));
            digest.integer(ty.into());
            if let Some(tensor) = gguf.tensor(name) {
                samples(&mut digest, &tensor)?;
            }
        }
        Ok(Self(*digest.finish().as_bytes()))
    }

    /// The digest, in the form that travels.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hex digits, for messages.
    #[must_use]
    pub fn short(&self) -> String {
        self.0
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl From<[u8; 32]> for Fingerprint {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for Fingerprint {
    type Error = FingerprintLength;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| FingerprintLength(bytes.len()))
    }
}

/// Text that is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a model fingerprint is 64 hex digits")]
pub struct FingerprintText;

impl FromStr for Fingerprint {
    type Err = FingerprintText;

    fn from_str(text: &str) -> Result<Self, FingerprintText> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| FingerprintText)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Feeds the start and the middle of a tensor's data.
fn samples(digest: &mut FieldDigest, tensor: &Tensor) -> Result<(), GgufError> {
    let bytes = tensor.info().bytes;
    for start in [0, bytes / 2] {
        let mut sample = [0; SAMPLE as usize];
        let sample = &mut sample[..(bytes - start).min(SAMPLE) as usize];
        tensor
            .read_at(sample, start)
            .map_err(|problem| GgufError::Io {
                file: tensor.file().to_path_buf(),
                problem,
            })?;
        digest.raw(sample);
    }
    Ok(())
}

/// As the keys of a file, which leave nothing out: the values are read back from them.
fn hyper_params(digest: &mut FieldDigest, hp: &HyperParams) {
    let mut keys = hp.to_metadata();
    keys.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    digest.keys(keys.iter().map(|(key, value)| (key.as_str(), value)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::{Recipe, presets, write};

    fn fingerprint(path: &std::path::Path) -> Fingerprint {
        let gguf = GgufModel::open(path).unwrap();
        let hp = HyperParams::from_model(&gguf).unwrap();
        Fingerprint::of(&gguf, &hp).unwrap()
    }

    #[test]
    fn same_model_same_print_and_any_change_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let hp = presets::tiny();
        let recipe = Recipe::default();
        write(&path("a"), &hp, &recipe).unwrap();
        write(&path("same"), &hp, &recipe).unwrap();
        write(
            &path("seed"),
            &hp,
            &Recipe {
                seed: 2,
                ..recipe.clone()
            },
        )
        .unwrap();
        let scaled = HyperParams {
            expert_scale: 2.5,
            ..hp.clone()
        };
        write(&path("scaled"), &scaled, &recipe).unwrap();
        let original = fingerprint(&path("a"));
        assert_eq!(fingerprint(&path("same")), original);
        assert_ne!(fingerprint(&path("seed")), original);
        assert_ne!(fingerprint(&path("scaled")), original);

        let gguf = GgufModel::open(&path("a")).unwrap();
        let info = gguf
            .tensor("blk.1.ffn_up_exps.weight")
            .unwrap()
            .info()
            .clone();
        let mut bytes = std::fs::read(path("a")).unwrap();
        bytes[(info.offset + info.bytes / 2) as usize] ^= 1;
        std::fs::write(path("flipped"), bytes).unwrap();
        assert_ne!(fingerprint(&path("flipped")), original);
    }

    #[test]
    fn text_and_bytes() {
        let print = Fingerprint::from([0xab; 32]);
        assert_eq!(print.to_string(), "ab".repeat(32));
        assert_eq!(print.short(), "abababababab");
        assert_eq!(print.to_string().parse(), Ok(print));
        assert_eq!("ab".parse::<Fingerprint>(), Err(FingerprintText));
        assert_eq!(Fingerprint::try_from(&[0xab; 32][..]), Ok(print));
        assert_eq!(
            Fingerprint::try_from(&[1, 2][..]),
            Err(FingerprintLength(2))
        );
    }
}
