use std::fmt;

use thiserror::Error;

use super::HyperParams;
use crate::gguf::{GgufError, GgufModel, Tensor};

/// Says whether two machines hold the same model: a BLAKE3 digest of the hyper-parameters, of
/// every tensor's name, shape and type, and of samples of its data. How the model is cut into
/// files makes no difference.
///
/// It guards against mistakes, not against somebody who alters a model on purpose: data between
/// the samples is not read.
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
        let mut digest = Digest(blake3::Hasher::new());
        digest.text("ds4 model fingerprint 1");
        digest.hyper_params(hp);
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
                digest.samples(&tensor)?;
            }
        }
        Ok(Self(*digest.0.finalize().as_bytes()))
    }

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

/// Feeds fields to the hash so that no two different lists of fields give the same bytes.
struct Digest(blake3::Hasher);

impl Digest {
    fn integer(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    fn size(&mut self, value: usize) {
        self.integer(value as u64);
    }

    fn text(&mut self, value: &str) {
        self.size(value.len());
        self.0.update(value.as_bytes());
    }

    fn samples(&mut self, tensor: &Tensor) -> Result<(), GgufError> {
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
            self.0.update(sample);
        }
        Ok(())
    }

    /// As the keys of a file, which leave nothing out: the values are read back from them.
    fn hyper_params(&mut self, hp: &HyperParams) {
        let mut keys = hp.to_metadata();
        keys.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.size(keys.len());
        for (key, value) in keys {
            self.text(&key);
            self.integer(value.value_type().id().into());
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            self.size(bytes.len());
            self.0.update(&bytes);
        }
    }
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
        assert_eq!(Fingerprint::try_from(&[0xab; 32][..]), Ok(print));
        assert_eq!(
            Fingerprint::try_from(&[1, 2][..]),
            Err(FingerprintLength(2))
        );
    }
}
