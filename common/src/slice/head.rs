//! The head of a slice: everything before its data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blake3::Hash;

use super::fields::{
    bytes, decode_hashes, decode_tiles, encode_tiles, hash_bytes, match_tensors, stored_hash,
};
use super::tensors::{LayerTypes, SliceTensor, shaped};
use super::{SliceError, keys};
use crate::digest::FieldDigest;
use crate::gguf::{
    Array, GgufModel, GgufWriter, Metadata, TensorInfo, Value, WriteError, parse_head,
};
use crate::model::{Fingerprint, HyperParams};
use crate::quant::Layout;
use crate::tiles::Holdings;

/// Everything that a slice states about itself, checked against itself.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceHead {
    /// Named in messages.
    file: PathBuf,
    /// All but hashes and digest.
    keys: BTreeMap<String, Value>,
    hp: HyperParams,
    fingerprint: Fingerprint,
    holdings: Holdings,
    layout: Layout,
    tensors: Vec<SliceTensor>,
    digest: Option<Hash>,
    identity: Hash,
    head_bytes: u64,
    file_bytes: u64,
}

impl SliceHead {
    /// A slice without data. `types` has one entry per layer.
    pub(super) fn new(
        file: PathBuf,
        (hp, model, fingerprint): (&HyperParams, Option<&str>, Fingerprint),
        holdings: &Holdings,
        types: &[Option<LayerTypes>],
        layout: Layout,
    ) -> Result<Self, SliceError> {
        let mut all: BTreeMap<String, Value> = hp.to_metadata().into_iter().collect();
        if let Some(model) = model {
            all.insert("general.name".to_owned(), Value::String(model.to_owned()));
        }
        let text = |text: &str| Value::String(text.to_owned());
        all.insert(keys::VERSION.to_owned(), Value::U32(keys::FORMAT_VERSION));
        all.insert(keys::LAYOUT.to_owned(), text(layout.name()));
        all.insert(keys::FINGERPRINT.to_owned(), text(&fingerprint.to_string()));
        all.insert(keys::TILES.to_owned(), encode_tiles(holdings));
        let count = shaped(hp, holdings, types).len();
        let mut draft = writer(&all, &vec![None; count], None).map_err(|p| invalid(&file, p))?;
        for t in shaped(hp, holdings, types) {
            draft
                .add_tensor(&t.name, &t.dims, t.ty)
                .map_err(|problem| invalid(&file, problem))?;
        }
        let bytes = draft.head();
        let end = draft.tensors().last().map_or(0, |t| t.offset + t.bytes);
        // The new head is checked like a foreign one, so that there is one way in.
        Self::parse(file, &bytes, bytes.len() as u64 + end)
    }

    /// Reads the head of a slice of `file_bytes` bytes from the first bytes of it. `file` is what
    /// messages name.
    ///
    /// # Errors
    /// It is not a slice that this software reads, or contradicts itself. An incomplete slice is
    /// not an error here.
    pub fn parse(file: PathBuf, head: &[u8], file_bytes: u64) -> Result<Self, SliceError> {
        let parsed = parse_head(head, file_bytes).map_err(|problem| SliceError::Format {
            file: file.clone(),
            problem,
        })?;
        let mut metadata = Metadata::new(file.clone());
        for (key, value) in parsed.metadata {
            metadata.insert(key, value);
        }
        let mut tensors = Vec::with_capacity(parsed.tensors.len());
        for raw in parsed.tensors {
            let ty = raw.ty.map_err(|problem| SliceError::Tensor {
                file: file.clone(),
                tensor: raw.name.clone(),
                problem: problem.to_string(),
            })?;
            tensors.push(TensorInfo {
                name: raw.name,
                dims: raw.dims,
                ty,
                offset: raw.offset,
                bytes: raw.bytes,
                file: 0,
            });
        }
        Self::check(&metadata, &tensors, parsed.data_start, file_bytes)
    }

    /// The head of an opened file.
    pub(super) fn of_file(gguf: &GgufModel) -> Result<Self, SliceError> {
        let first = gguf.tensors().iter().map(|t| t.offset).min();
        let foreign = gguf.unsupported().first().map(|t| SliceError::Tensor {
            file: gguf.name().to_path_buf(),
            tensor: t.name.clone(),
            problem: t.ty.to_string(),
        });
        let head = Self::check(
            gguf.metadata(),
            gguf.tensors(),
            first.unwrap_or(0),
            gguf.file_bytes(),
        )?;
        foreign.map_or(Ok(head), Err)
    }

    fn check(
        metadata: &Metadata,
        tensors: &[TensorInfo],
        head_bytes: u64,
        file_bytes: u64,
    ) -> Result<Self, SliceError> {
        let file = metadata.source().to_path_buf();
        let layout = check_format(metadata)?;
        let hp = HyperParams::from_metadata(metadata)?;
        let text = metadata.str(keys::FINGERPRINT)?;
        let fingerprint = text.parse::<Fingerprint>().map_err(|_| {
            let reason = "it must be 64 hex digits";
            metadata.invalid(keys::FINGERPRINT, text.escape_debug(), reason)
        })?;
        let holdings = decode_tiles(metadata, &hp)?;
        let hashes = decode_hashes(metadata, tensors.len())?;
        let tensors = match_tensors(&file, &hp, &holdings, layout, tensors, hashes)?;
        let keys = metadata
            .iter()
            .filter(|(key, _)| *key != keys::HASHES && *key != keys::DIGEST)
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect();
        let identity = identity(&keys, &tensors, head_bytes);
        let digest = match bytes(metadata, keys::DIGEST)? {
            bytes if bytes.len() == blake3::OUT_LEN => stored_hash(bytes),
            bytes => {
                let reason = "it must have 32 bytes";
                return Err(metadata.invalid(keys::DIGEST, bytes.len(), reason).into());
            }
        };
        Ok(SliceHead {
            file,
            keys,
            hp,
            fingerprint,
            holdings,
            layout,
            tensors,
            digest,
            identity,
            head_bytes,
            file_bytes,
        })
    }

    /// The bytes before the data, with the hashes that are known. Their number does not depend on
    /// the hashes.
    ///
    /// # Errors
    /// The keys of a foreign head cannot be written back.
    pub fn encode(&self) -> Result<Vec<u8>, SliceError> {
        let failed = |problem| invalid(&self.file, problem);
        let hashes: Vec<_> = self.tensors.iter().map(|t| t.hash).collect();
        let mut draft = writer(&self.keys, &hashes, self.digest).map_err(failed)?;
        for t in &self.tensors {
            draft.add_tensor(&t.name, &t.dims, t.ty).map_err(failed)?;
        }
        Ok(draft.head())
    }

    /// The file that messages name.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Gives messages another name for it.
    pub(super) fn rename(&mut self, file: PathBuf) {
        self.file = file;
    }

    /// Fingerprint of the whole model.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Hyper-parameters of the whole model.
    #[must_use]
    pub fn hyper_params(&self) -> &HyperParams {
        &self.hp
    }

    /// The tiles that the slice holds, layer by layer.
    #[must_use]
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// The tensors in file order: by layer, then rectangle, then projection.
    #[must_use]
    pub fn tensors(&self) -> &[SliceTensor] {
        &self.tensors
    }

    /// The model's name, if it has one.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match self.keys.get("general.name") {
            Some(Value::String(name)) => Some(name),
            _ => None,
        }
    }

    /// Bytes before the data.
    #[must_use]
    pub fn head_bytes(&self) -> u64 {
        self.head_bytes
    }

    /// Bytes of the complete file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Names and values for a person to read.
    #[must_use]
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let present = self.tensors.iter().filter(|t| t.hash.is_some()).count();
        vec![
            ("model", self.model().unwrap_or("unnamed").to_owned()),
            ("fingerprint", self.fingerprint.to_string()),
            ("tile grid", self.holdings.grid().to_string()),
            ("tiles", self.holdings.to_string()),
            ("layout", self.layout.to_string()),
            ("tensors", format!("{present} of {}", self.tensors.len())),
            ("file bytes", self.file_bytes.to_string()),
            ("slice", self.identity.to_string()),
        ]
    }

    /// Identifies the slice, complete or not: a hash over everything in the head except the
    /// tensors' hashes and the digest.
    #[must_use]
    pub fn identity(&self) -> Hash {
        self.identity
    }

    /// Refuses an incomplete slice, and one whose head is not the one that was written.
    ///
    /// # Errors
    /// Tensors are missing, or the digest does not match.
    pub fn check_complete(&self) -> Result<(), SliceError> {
        let present = self.tensors.iter().filter(|t| t.hash.is_some()).count();
        let stated = match self.digest {
            Some(digest) if present == self.tensors.len() => digest,
            _ => {
                return Err(SliceError::Incomplete {
                    file: self.file.clone(),
                    present,
                    tensors: self.tensors.len(),
                });
            }
        };
        let found = self.expected_digest();
        if found != stated {
            return Err(SliceError::Digest {
                file: self.file.clone(),
                stated,
                found,
            });
        }
        Ok(())
    }

    pub(super) fn set_hash(&mut self, tensor: usize, hash: Option<Hash>) {
        self.tensors[tensor].hash = hash;
    }

    pub(super) fn set_digest(&mut self) {
        self.digest = Some(self.expected_digest());
    }

    /// Over the identity and every hash.
    fn expected_digest(&self) -> Hash {
        let mut digest = FieldDigest::new("ds4 slice digest 1");
        digest.raw(self.identity.as_bytes());
        digest.size(self.tensors.len());
        for tensor in &self.tensors {
            digest.raw(&hash_bytes(tensor.hash));
        }
        digest.finish()
    }
}

fn invalid(file: &Path, problem: WriteError) -> SliceError {
    SliceError::Write {
        file: file.to_path_buf(),
        problem,
    }
}

fn check_format(metadata: &Metadata) -> Result<Layout, SliceError> {
    let file = || metadata.source().to_path_buf();
    let found = metadata
        .optional_u32(keys::VERSION)?
        .ok_or_else(|| SliceError::NotASlice { file: file() })?;
    if found != keys::FORMAT_VERSION {
        return Err(SliceError::Version {
            file: file(),
            found,
        });
    }
    let layout = metadata.str(keys::LAYOUT)?.parse();
    layout.map_err(|problem| SliceError::Layout {
        file: file(),
        problem,
    })
}

/// A writer with all keys of a slice.
fn writer(
    all: &BTreeMap<String, Value>,
    hashes: &[Option<Hash>],
    digest: Option<Hash>,
) -> Result<GgufWriter, WriteError> {
    let hashes: Vec<u8> = hashes.iter().flat_map(|&h| hash_bytes(h)).collect();
    let mut draft = GgufWriter::new().with_alignment(keys::ALIGNMENT)?;
    for (key, value) in all.iter().filter(|(key, _)| *key != "general.alignment") {
        draft.add(key, value.clone())?;
    }
    draft.add(keys::HASHES, Value::Array(Array::U8(hashes)))?;
    let digest = hash_bytes(digest).to_vec();
    draft.add(keys::DIGEST, Value::Array(Array::U8(digest)))?;
    Ok(draft)
}

fn identity(keys: &BTreeMap<String, Value>, tensors: &[SliceTensor], head_bytes: u64) -> Hash {
    let mut digest = FieldDigest::new("ds4 slice identity 1");
    digest.keys(keys.iter().map(|(key, value)| (key.as_str(), value)));
    digest.size(tensors.len());
    for tensor in tensors {
        digest.text(&tensor.name);
        tensor.dims.iter().for_each(|&d| digest.integer(d));
        digest.integer(tensor.ty.id().into());
        digest.integer(tensor.offset.saturating_sub(head_bytes));
    }
    digest.finish()
}
