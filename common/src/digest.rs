//! Digests over lists of fields, for fingerprints and slices.

use crate::gguf::Value;

/// Feeds fields to BLAKE3 so that no two different lists of fields give the same bytes.
#[derive(Debug)]
pub(crate) struct FieldDigest(blake3::Hasher);

impl FieldDigest {
    /// `purpose` keeps digests of different things apart.
    pub(crate) fn new(purpose: &str) -> Self {
        let mut digest = FieldDigest(blake3::Hasher::new());
        digest.text(purpose);
        digest
    }

    pub(crate) fn integer(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    pub(crate) fn size(&mut self, value: usize) {
        self.integer(value as u64);
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.size(value.len());
        self.0.update(value.as_bytes());
    }

    /// Bytes whose number follows from the fields before them.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Metadata with names and types, in the given order.
    pub(crate) fn keys<'a>(&mut self, keys: impl ExactSizeIterator<Item = (&'a str, &'a Value)>) {
        self.size(keys.len());
        for (key, value) in keys {
            self.text(key);
            self.integer(value.value_type().id().into());
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            self.size(bytes.len());
            self.0.update(&bytes);
        }
    }

    pub(crate) fn finish(&self) -> blake3::Hash {
        self.0.finalize()
    }
}
