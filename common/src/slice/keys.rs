//! The keys of a slice beyond the model's own.

pub(super) const VERSION: &str = "ds4.slice.version";
/// The order of the tensors' bytes, by the name of a [`crate::quant::Layout`].
pub(super) const LAYOUT: &str = "ds4.slice.layout";
/// The whole model's fingerprint in hex.
pub(super) const FINGERPRINT: &str = "ds4.slice.fingerprint";
/// Five u32 per rectangle: layer, first expert, one past the last, first block, one past the last.
pub(super) const TILES: &str = "ds4.slice.tiles";
/// 32 bytes per tensor, in the order of the tensor table; zeros for missing tensors.
pub(super) const HASHES: &str = "ds4.slice.hashes";
/// 32 bytes over everything else in the head; zeros while the file is incomplete.
pub(super) const DIGEST: &str = "ds4.slice.digest";

pub(super) const FORMAT_VERSION: u32 = 1;
/// Tensors start on pages, so that none shares a page with another.
pub(super) const ALIGNMENT: u32 = 4096;
