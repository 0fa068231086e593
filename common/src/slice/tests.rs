use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::gguf::{GgufModel, GgufWriter, Value};
use crate::model::synthetic::{Formats, Recipe, presets, write};
use crate::model::{HyperParams, ModelTensors};
use crate::quant::{GgmlType, Layout, to_panels};
use crate::tiles::{Grid, Holdings, Span, TileRect};

/// A small model whose experts are `width` wide.
pub(crate) fn whole_model(ty: GgmlType, width: usize) -> (TempDir, WholeModel, ModelTensors) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let hp = HyperParams {
        expert_width: width,
        experts: 5,
        ..presets::tiny()
    };
    let formats = Formats {
        expert_up: ty,
        expert_down: ty,
        shared: GgmlType::F16,
        ..Formats::PUBLISHED_Q4
    };
    let recipe = Recipe {
        formats,
        ..Recipe::default()
    };
    write(&path, &hp, &recipe).unwrap();
    let gguf = GgufModel::open(&path).unwrap();
    let hp = HyperParams::from_model(&gguf).unwrap();
    let tensors = ModelTensors::bind(&gguf, &hp).unwrap();
    let model = WholeModel::new(gguf, hp, &tensors).unwrap();
    (folder, model, tensors)
}

/// Rectangles of a grid that was cut at random, some of them left out.
fn random_rects(rect: TileRect, random: &mut impl FnMut(u32) -> u32, out: &mut Vec<TileRect>) {
    let TileRect { experts, blocks } = rect;
    let along_experts = random(2) == 0;
    let axis = if along_experts { experts } else { blocks };
    match random(4) {
        0 => {}
        1 => out.push(rect),
        _ if axis.len() < 2 => out.push(rect),
        _ => {
            let at = axis.start + 1 + random(axis.len() - 1);
            for axis in [Span::new(axis.start, at), Span::new(at, axis.end)] {
                let (experts, blocks) = if along_experts {
                    (axis, blocks)
                } else {
                    (experts, axis)
                };
                random_rects(TileRect { experts, blocks }, random, out);
            }
        }
    }
}

/// Something in at least one layer.
pub(crate) fn random_holdings(grid: Grid, layers: usize, seed: u64) -> Holdings {
    let mut state = seed;
    let mut random = |below: u32| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(below)) as u32
    };
    let mut rects = vec![Vec::new(); layers];
    for rects in &mut rects {
        random_rects(grid.whole(), &mut random, rects);
    }
    if rects.iter().all(Vec::is_empty) {
        rects[0].push(grid.whole());
    }
    Holdings::new(grid, rects).unwrap()
}

pub(crate) fn write_slice(model: &WholeModel, holdings: &Holdings, path: &Path) -> SliceHead {
    let head = model.head(holdings, Layout::Panels).unwrap();
    let mut writer = SliceWriter::open(path, head, &mut |_| {}).unwrap();
    while writer.position().is_some() {
        copy_tensor(model, &mut writer, &mut |_| {}).unwrap();
    }
    writer.finish().unwrap()
}

fn faults(path: &Path) -> Vec<String> {
    let slice = Slice::open(path).unwrap();
    let faults = verify(&slice, &mut |_| {}).unwrap();
    faults.into_iter().map(|fault| fault.tensor).collect()
}

#[test]
fn a_slice_is_a_gguf_that_says_what_it_holds() {
    let (folder, model, _) = whole_model(GgmlType::Q4K, 768);
    let grid = model.grid();
    let low = TileRect {
        experts: Span::new(0, 3),
        blocks: Span::new(1, 3),
    };
    let mut rects = vec![Vec::new(); 4];
    rects[3] = vec![low];
    let holdings = Holdings::new(grid, rects).unwrap();
    let path = folder.path().join("node.gguf");
    let written = write_slice(&model, &holdings, &path);
    assert!(!part_path(&path).exists());

    let gguf = GgufModel::open(&path).unwrap();
    let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "blk.3.ffn_gate_exps.e0-3.b1-3.weight",
            "blk.3.ffn_up_exps.e0-3.b1-3.weight",
            "blk.3.ffn_down_exps.e0-3.b1-3.weight",
        ]
    );
    assert_eq!(gguf.tensors()[0].dims, [256, 512, 3]);
    assert_eq!(gguf.tensors()[2].dims, [512, 256, 3]);
    assert_eq!(
        HyperParams::from_model(&gguf).unwrap(),
        *model.hyper_params()
    );
    assert!(!gguf.metadata().contains("tokenizer.ggml.tokens"));
    assert!(Slice::is_slice(&gguf));

    let slice = Slice::of(gguf).unwrap();
    let head = slice.head();
    assert_eq!(head.holdings(), &holdings);
    assert_eq!(head.fingerprint(), model.fingerprint());
    assert_eq!(head.model(), Some("synthetic"));
    assert_eq!(head.identity(), written.identity());
    assert_eq!(head.file_bytes(), fs::metadata(&path).unwrap().len());
    assert!(faults(&path).is_empty());
    // Another slice of the same model is another one.
    let whole = Holdings::uniform(grid, 4, crate::tiles::TileSet::whole(grid));
    assert_ne!(
        model.head(&whole, Layout::Plain).unwrap().identity(),
        head.identity()
    );
}

#[test]
fn a_wrong_byte_is_named_and_a_short_file_is_refused() {
    let (folder, model, _) = whole_model(GgmlType::Q8_0, 704);
    let holdings = random_holdings(model.grid(), 4, 3);
    let path = folder.path().join("node.gguf");
    let head = write_slice(&model, &holdings, &path);
    let good = fs::read(&path).unwrap();
    let victim = &head.tensors()[head.tensors().len() / 2];
    let mut bad = good.clone();
    bad[(victim.offset + victim.bytes - 1) as usize] ^= 0x40;
    fs::write(&path, &bad).unwrap();
    assert_eq!(faults(&path), std::slice::from_ref(&victim.name));

    fs::write(&path, &good[..good.len() - 1]).unwrap();
    let error = Slice::open(&path).unwrap_err().to_string();
    let last = &head.tensors().last().unwrap().name;
    assert!(error.contains(last) && error.contains("bytes"), "{error}");

    // Every bit of the head counts.
    let mut random = 1u64;
    for _ in 0..300 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let mut bad = good.clone();
        // Behind the padding of the head nothing but data follows.
        let used = good[..head.head_bytes() as usize]
            .iter()
            .rposition(|b| *b != 0)
            .unwrap();
        let at = (random >> 20) as usize % used;
        bad[at] ^= 1 << (random >> 60 & 7);
        fs::write(&path, &bad).unwrap();
        assert!(Slice::open(&path).is_err(), "byte {at} of the head");
    }
}

/// The model's own keys and `change`, with the first tensor's declaration of a slice.
fn foreign(model: &WholeModel, change: impl Fn(&str, Value) -> Value) -> SliceError {
    let grid = model.grid();
    let whole = Holdings::uniform(grid, 4, crate::tiles::TileSet::whole(grid));
    let head = model.head(&whole, Layout::Plain).unwrap();
    let parsed = crate::gguf::parse_head(&head.encode().unwrap(), head.file_bytes()).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in parsed.metadata {
        if key != "general.alignment" {
            writer.add(&key, change(&key, value)).unwrap();
        }
    }
    for t in head.tensors() {
        writer.add_tensor(&t.name, &t.dims, t.ty).unwrap();
    }
    let end = writer.tensors().last().map(|t| t.offset + t.bytes).unwrap();
    let bytes = writer.head();
    let length = bytes.len() as u64 + end;
    SliceHead::parse("foreign.gguf".into(), &bytes, length).unwrap_err()
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let (_folder, model, _) = whole_model(GgmlType::F16, 256);
    let set = |key: &'static str, to: Value| {
        foreign(&model, move |k, value| match k == key {
            true => to.clone(),
            false => value,
        })
        .to_string()
    };
    let layout = set("ds4.slice.layout", Value::String("x86-tiles".into()));
    assert!(
        layout.contains("x86-tiles") && layout.contains("foreign.gguf"),
        "{layout}"
    );
    let version = set("ds4.slice.version", Value::U32(7));
    assert!(version.contains("version 7"), "{version}");
    let tiles = |words: Vec<u32>| {
        set(
            "ds4.slice.tiles",
            Value::Array(crate::gguf::Array::U32(words)),
        )
    };
    assert!(tiles(vec![]).contains("no tiles"));
    assert!(tiles(vec![0, 0, 5]).contains("multiple of 5"));
    assert!(tiles(vec![9, 0, 5, 0, 1]).contains("layer 9"));
    assert!(tiles(vec![0, 0, 6, 0, 1]).contains("reaches outside"));
    assert!(tiles(vec![0, 0, 5, 0, 1]).contains("does not belong"));
    let other = (0..4).flat_map(|layer| [layer, 0, 4, 0, 1]).collect();
    assert!(tiles(other).contains("should be"));
    let hash = set(
        "ds4.slice.hashes",
        Value::Array(crate::gguf::Array::U8(vec![1])),
    );
    assert!(hash.contains("32 bytes for each"), "{hash}");
    let print = set("ds4.slice.fingerprint", Value::String("xyz".into()));
    assert!(print.contains("hex"), "{print}");
}

#[test]
fn who_else_writes_is_noticed_and_a_full_disk_is_named() {
    let (folder, model, _) = whole_model(GgmlType::F16, 256);
    let head = model
        .head(&random_holdings(model.grid(), 4, 1), Layout::Plain)
        .unwrap();
    let path = folder.path().join("node.gguf");
    let first = SliceWriter::open(&path, head.clone(), &mut |_| {}).unwrap();
    let second = SliceWriter::open(&path, head.clone(), &mut |_| {});
    assert!(matches!(second, Err(SliceError::Busy { .. })));
    assert!(matches!(first.finish(), Err(SliceError::Incomplete { .. })));
    assert!(!path.exists());
    let error = ensure_room(folder.path(), u64::MAX)
        .unwrap_err()
        .to_string();
    assert!(error.contains(&u64::MAX.to_string()), "{error}");
    assert!(ensure_room(folder.path(), 1).is_ok());
}

#[test]
fn a_tensor_must_come_whole_and_right() {
    let (folder, model, _) = whole_model(GgmlType::F16, 256);
    let head = model
        .head(&random_holdings(model.grid(), 4, 1), Layout::Plain)
        .unwrap();
    let path = folder.path().join("node.gguf");
    let mut writer = SliceWriter::open(&path, head, &mut |_| {}).unwrap();
    let bytes = writer.head().tensors()[0].bytes as usize;
    assert!(writer.end_tensor(None).is_err());
    assert!(writer.append(&vec![0; bytes + 1]).is_err());
    writer.append(&vec![0; bytes]).unwrap();
    assert!(writer.append(&[0]).is_err());
    let other = blake3::hash(b"other");
    let error = writer.end_tensor(Some(other)).unwrap_err();
    assert!(matches!(error, SliceError::TensorHash { .. }));
    assert_eq!(writer.position(), Some((0, 0)));
    writer.append(&vec![0; bytes]).unwrap();
    writer
        .end_tensor(Some(blake3::hash(&vec![0; bytes])))
        .unwrap();
    assert_eq!(writer.position(), Some((1, 0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_piece_of_a_cut_is_what_packing_gives(
        seed: u64,
        format in prop::sample::select(&[
            (GgmlType::Mxfp4, 608), (GgmlType::Iq2Xxs, 768), (GgmlType::Q4K, 768),
        ][..]),
        panels: bool, from: u32, len: u32,
    ) {
        let (ty, width) = format;
        let layout = if panels { Layout::Panels } else { Layout::Plain };
        let (_folder, model, tensors) = whole_model(ty, width);
        let head = model.head(&random_holdings(model.grid(), 4, seed), layout).unwrap();
        let hidden = model.hyper_params().hidden as u64;
        for tensor in head.tensors() {
            let layer = &tensors.layers[tensor.layer];
            let TileRect { experts, blocks } = tensor.rect;
            let source = match tensor.projection {
                Projection::Gate => &layer.gate_exps,
                Projection::Up => &layer.up_exps,
                Projection::Down => &layer.down_exps,
            };
            let (first, last) = (blocks.start as usize * 256, (blocks.end as usize * 256).min(width));
            let row = ty.row_bytes(source.dims()[0]).unwrap() as usize;
            let mut packed = Vec::new();
            for expert in experts.start as usize..experts.end as usize {
                if tensor.projection == Projection::Down {
                    let column = |c: usize| ty.row_bytes(c as u64).unwrap() as usize;
                    for r in 0..hidden as usize {
                        let start = (expert * hidden as usize + r) * row;
                        packed.extend(&source.bytes()[start + column(first)..start + column(last)]);
                    }
                } else {
                    let start = expert * width;
                    packed.extend(&source.bytes()[(start + first) * row..(start + last) * row]);
                }
            }
            prop_assert_eq!(tensor.layout == Layout::Panels, panels && ty == GgmlType::Q4K);
            if tensor.layout == Layout::Panels {
                let rows = packed.clone();
                to_panels(&rows, ty.row_bytes(tensor.dims[0]).unwrap() as usize, &mut packed);
            }
            let mut cut = model.cut(tensor);
            prop_assert_eq!(cut.bytes(), packed.len() as u64);
            prop_assert_eq!(tensor.bytes, packed.len() as u64);
            let from = from as usize % packed.len();
            let len = len as usize % (packed.len() - from + 1);
            let mut piece = vec![0; len];
            cut.read(from as u64, &mut piece).unwrap();
            prop_assert!(piece == packed[from..from + len]);
            prop_assert!(cut.read(from as u64, &mut vec![0; packed.len() - from + 1]).is_err());
        }
    }

    #[test]
    fn a_writer_that_was_killed_anywhere_ends_with_the_same_file(
        seed: u64, tensors in 0usize..40, more: u16, harm in prop::option::of(any::<u32>()),
        cut_short: bool,
    ) {
        let (folder, model, _) = whole_model(GgmlType::Q4K, 512);
        let holdings = random_holdings(model.grid(), 4, seed);
        let straight = folder.path().join("straight.gguf");
        let head = write_slice(&model, &holdings, &straight);
        let path = folder.path().join("killed.gguf");
        let clean = model.head(&holdings, Layout::Panels).unwrap();
        prop_assert_eq!(clean.identity(), head.identity());
        {
            let mut writer = SliceWriter::open(&path, clean.clone(), &mut |_| {}).unwrap();
            for _ in 0..tensors {
                copy_tensor(&model, &mut writer, &mut |_| {}).unwrap();
            }
            if let Some((next, _)) = writer.position() {
                let mut piece = vec![0; more as usize % head.tensors()[next].bytes as usize];
                model.cut(&head.tensors()[next]).read(0, &mut piece).unwrap();
                writer.append(&piece).unwrap();
            }
        }
        let part = part_path(&path);
        let mut bytes = fs::read(&part).unwrap();
        if let Some(at) = harm {
            let at = at as usize % bytes.len();
            bytes[at] ^= 0x10;
            if cut_short {
                bytes.truncate(at);
            }
            fs::write(&part, &bytes).unwrap();
        }
        let mut writer = SliceWriter::open(&path, clean, &mut |_| {}).unwrap();
        if harm.is_none() {
            let whole = head.tensors().len().min(tensors);
            prop_assert_eq!(writer.position().map_or(head.tensors().len(), |p| p.0), whole);
        }
        while writer.position().is_some() {
            copy_tensor(&model, &mut writer, &mut |_| {}).unwrap();
        }
        writer.finish().unwrap();
        prop_assert!(fs::read(&path).unwrap() == fs::read(&straight).unwrap());
    }

    #[test]
    fn any_bytes_are_no_slice_but_do_no_harm(
        seed: u64, changes in prop::collection::vec((any::<u32>(), any::<u8>()), 1..6),
    ) {
        let (_folder, model, _) = whole_model(GgmlType::F16, 256);
        let head = model.head(&random_holdings(model.grid(), 4, seed), Layout::Panels).unwrap();
        let mut bytes = head.encode().unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
        for (at, to) in changes {
            bytes[at as usize % used] = to;
        }
        if let Ok(found) = SliceHead::parse("any".into(), &bytes, head.file_bytes()) {
            prop_assert!(found.check_complete().is_err());
            prop_assert!(found.tensors().iter().all(|t| t.offset + t.bytes <= head.file_bytes()));
        }
    }
}
