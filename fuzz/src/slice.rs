//! The head of a slice file. A head that is accepted must be safe to serve without another check.

use std::sync::LazyLock;

use ds4_common::gguf::GgufModel;
use ds4_common::model::synthetic::{Recipe, presets, write};
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::quant::Layout;
use ds4_common::slice::{SliceHead, WholeModel};
use ds4_common::tiles::Holdings;

/// A valid head of a slice with several rectangles, and the length of its file.
static VALID: LazyLock<(Vec<u8>, u64)> = LazyLock::new(|| valid_head(Layout::Panels));

/// A valid head of a slice with several rectangles in each layer of a small model, and the bytes of
/// the whole slice.
///
/// # Panics
/// The temporary folder cannot be written.
#[must_use]
pub fn valid_head(layout: Layout) -> (Vec<u8>, u64) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.gguf");
    let hp = HyperParams {
        expert_width: 768,
        ..presets::tiny()
    };
    write(&path, &hp, &Recipe::default()).expect("model");
    let gguf = GgufModel::open(&path).expect("model");
    let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
    let model = WholeModel::new(gguf, hp, &tensors).expect("model");
    let rects = model.grid().cut(2, 3).expect("cut");
    let layers = (0..model.layers()).map(|layer| rects[layer..layer + 2].to_vec());
    let holdings = Holdings::new(model.grid(), layers.collect()).expect("holdings");
    let head = model.head(&holdings, layout).expect("head");
    (head.encode().expect("bytes"), head.file_bytes())
}

/// Eight bytes, little-endian, are the length of the file, and the rest is its head. The same bytes
/// are also tried as changes to a valid head, three for each: two say where, one says what.
pub fn run(data: &[u8]) -> bool {
    let whole = data.split_first_chunk();
    let accepted = whole.is_some_and(|(length, head)| check(head, u64::from_le_bytes(*length)));
    let (mut bytes, length) = VALID.clone();
    for change in data.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    check(&bytes, length);
    accepted
}

/// Whether the head is accepted.
fn check(bytes: &[u8], length: u64) -> bool {
    let Ok(head) = SliceHead::parse("fuzzed".into(), bytes, length) else {
        return false;
    };
    let (hp, holdings) = (head.hyper_params(), head.holdings());
    assert_eq!(holdings.layers(), hp.layers);
    let mut end = 0;
    for tensor in head.tensors() {
        assert!(tensor.offset >= end);
        end = tensor.offset + tensor.bytes;
        assert!(end <= length);
        assert!(holdings.rects(tensor.layer).contains(&tensor.rect));
        let rows = tensor.dims[1] * tensor.dims[2];
        let row = tensor.ty.row_bytes(tensor.dims[0]);
        assert_eq!(row.map(|row| row * rows), Some(tensor.bytes));
    }
    let parts: usize = (0..hp.layers).map(|l| holdings.rects(l).len()).sum();
    assert_eq!(head.tensors().len(), 3 * parts);
    // A head that is written back unchanged is the same slice.
    let again = head.encode().expect("what was read can be written");
    if again == bytes {
        let read = SliceHead::parse("again".into(), &again, length).expect("valid");
        assert_eq!(read.identity(), head.identity());
    }
    let _ = head.check_complete();
    true
}
