//! The keys and the tensor table of a slice: from values to what they mean, all of it checked.

use std::path::Path;

use blake3::{Hash, OUT_LEN};

use super::tensors::{LayerTypes, MAX_PARTS, Projection, SliceTensor, name, shaped};
use super::{SliceError, keys};
use crate::gguf::{Array, Metadata, MetadataProblem, TensorInfo, Value};
use crate::model::HyperParams;
use crate::quant::{GgmlType, Layout};
use crate::tiles::{Grid, Holdings, Span, TileRect};

/// As the file stores a hash; zeros for none.
pub(super) fn hash_bytes(hash: Option<Hash>) -> [u8; OUT_LEN] {
    hash.map_or([0; OUT_LEN], |hash| *hash.as_bytes())
}

/// What [`hash_bytes`] stored.
pub(super) fn stored_hash(bytes: &[u8]) -> Option<Hash> {
    let bytes: [u8; OUT_LEN] = bytes.try_into().ok()?;
    (bytes != [0; OUT_LEN]).then(|| Hash::from_bytes(bytes))
}

/// The value of a key that holds bytes.
pub(super) fn bytes<'m>(metadata: &'m Metadata, key: &str) -> Result<&'m [u8], SliceError> {
    match metadata.get(key) {
        Some(Value::Array(Array::U8(bytes))) => Ok(bytes),
        Some(other) => {
            let reason = "it must be an array of u8";
            Err(metadata.invalid(key, other.type_name(), reason).into())
        }
        None => Err(metadata.error(key, MetadataProblem::Missing).into()),
    }
}

pub(super) fn decode_hashes(
    metadata: &Metadata,
    tensors: usize,
) -> Result<Vec<Option<Hash>>, SliceError> {
    let bytes = bytes(metadata, keys::HASHES)?;
    if bytes.len() != tensors * OUT_LEN {
        let reason = format!("it must have 32 bytes for each of the {tensors} tensors");
        return Err(metadata.invalid(keys::HASHES, bytes.len(), &reason).into());
    }
    Ok(bytes.chunks_exact(OUT_LEN).map(stored_hash).collect())
}

pub(super) fn encode_tiles(holdings: &Holdings) -> Value {
    let mut words = Vec::new();
    for layer in 0..holdings.layers() {
        for TileRect { experts, blocks } in holdings.rects(layer) {
            let rect = [experts.start, experts.end, blocks.start, blocks.end];
            words.push(layer as u32);
            words.extend(rect);
        }
    }
    Value::Array(Array::U32(words))
}

/// The form that [`encode_tiles`] writes, and nothing else.
pub(super) fn decode_tiles(metadata: &Metadata, hp: &HyperParams) -> Result<Holdings, SliceError> {
    let file = || metadata.source().to_path_buf();
    let words = metadata.u32s(keys::TILES)?;
    let (rects, rest) = words.as_chunks::<5>();
    if !rest.is_empty() {
        let reason = "its length must be a multiple of 5";
        return Err(metadata.invalid(keys::TILES, words.len(), reason).into());
    }
    if rects.is_empty() {
        return Err(SliceError::NoTiles { file: file() });
    }
    if rects.len() > MAX_PARTS {
        return Err(SliceError::Parts {
            file: file(),
            found: rects.len(),
        });
    }
    let mut layers = vec![Vec::new(); hp.layers];
    let mut last = 0;
    for &[layer, e0, e1, b0, b1] in rects {
        let layer = layer as usize;
        let problem = SliceError::Layer {
            file: file(),
            layer,
            layers: hp.layers,
        };
        let Some(rects) = layers.get_mut(layer).filter(|_| layer >= last) else {
            return Err(problem);
        };
        last = layer;
        rects.push(TileRect {
            experts: Span::new(e0, e1),
            blocks: Span::new(b0, b1),
        });
    }
    let grid = Grid::of(hp.experts, hp.expert_width);
    Holdings::new(grid, layers).map_err(|problem| SliceError::Tiles {
        file: file(),
        problem,
    })
}

/// Compares the tensor table with the tiles: it must list their tensors in their order.
pub(super) fn match_tensors(
    file: &Path,
    hp: &HyperParams,
    holdings: &Holdings,
    layout: Layout,
    found: &[TensorInfo],
    hashes: Vec<Option<Hash>>,
) -> Result<Vec<SliceTensor>, SliceError> {
    let wrong = |tensor: &str, problem: String| SliceError::Tensor {
        file: file.to_path_buf(),
        tensor: tensor.to_owned(),
        problem,
    };
    let mut by_layer: Vec<Option<LayerTypes>> = Vec::with_capacity(hp.layers);
    let mut at = 0;
    for layer in 0..hp.layers {
        let rects = holdings.rects(layer);
        let types = match (rects.first(), found.get(at..at + 3)) {
            (None, _) => None,
            (Some(_), Some([gate, up, down])) => Some([gate.ty, up.ty, down.ty]),
            (Some(&rect), _) => {
                let missing = name(layer, Projection::Gate, rect);
                return Err(wrong(&missing, "is missing".to_owned()));
            }
        };
        by_layer.push(types);
        at += 3 * rects.len();
    }
    if let Some(extra) = found.get(at) {
        return Err(wrong(
            &extra.name,
            "does not belong to its tiles".to_owned(),
        ));
    }
    let expected = shaped(hp, holdings, &by_layer);
    if let Some(missing) = expected.get(found.len()) {
        return Err(wrong(&missing.name, "is missing".to_owned()));
    }
    let mut tensors = Vec::with_capacity(found.len());
    for ((want, have), hash) in expected.into_iter().zip(found).zip(hashes) {
        if want.name != have.name {
            return Err(wrong(
                &have.name,
                format!("is where {} should be", want.name),
            ));
        }
        if want.dims[..] != have.dims[..] || want.ty != have.ty || have.ty == GgmlType::I32 {
            let problem = format!(
                "is {:?} of {}, but its tiles require {:?} of {}",
                have.dims, have.ty, want.dims, want.ty
            );
            return Err(wrong(&have.name, problem));
        }
        tensors.push(SliceTensor {
            name: want.name,
            layer: want.layer,
            rect: want.rect,
            projection: want.projection,
            dims: want.dims,
            ty: want.ty,
            layout: layout.of(want.ty, want.dims[1]),
            offset: have.offset,
            bytes: have.bytes,
            hash,
        });
    }
    if !tensors.is_sorted_by_key(|t| t.offset) {
        return Err(wrong(
            &tensors[0].name,
            "and others are out of order".to_owned(),
        ));
    }
    Ok(tensors)
}
