//! A slice's head that is taken must be one that can be served without another check.
#![no_main]

use std::sync::LazyLock;

use ds4_common::gguf::GgufModel;
use ds4_common::model::synthetic::{Recipe, presets, write};
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::quant::Layout;
use ds4_common::slice::{SliceHead, WholeModel};
use ds4_common::tiles::Holdings;
use libfuzzer_sys::fuzz_target;

/// A sound head of a slice with several rectangles, and the length of its file.
static SOUND: LazyLock<(Vec<u8>, u64)> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("ds4-fuzz-slice-{}.gguf", std::process::id()));
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
    let head = model.head(&holdings, Layout::Panels).expect("head");
    std::fs::remove_file(&path).expect("removed");
    (head.encode().expect("bytes"), head.file_bytes())
});

fuzz_target!(|data: &[u8]| {
    check(data, data.len() as u64);
    // The same bytes as changes to a sound head: where to, and what.
    let (mut bytes, length) = SOUND.clone();
    for change in data.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    check(&bytes, length);
});

fn check(bytes: &[u8], length: u64) {
    let Ok(head) = SliceHead::parse("fuzzed".into(), bytes, length) else {
        return;
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
    // What is written back in this form is the same slice.
    let again = head.encode().expect("what was read can be written");
    if again == bytes {
        let read = SliceHead::parse("again".into(), &again, length).expect("sound");
        assert_eq!(read.identity(), head.identity());
    }
    let _ = head.check_complete();
}
