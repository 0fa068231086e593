use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ds4_common::quant::Layout;
use ds4_common::slice::{SliceWriter, WholeModel, copy_tensor};
use ds4_common::tiles::{Holdings, TileSet};
use tempfile::TempDir;

use super::*;

/// The longest wait of these tests.
const DEADLINE: Duration = Duration::from_secs(60);

fn reference() -> (GgufModel, HyperParams, ModelTensors) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny-w/tiny-w.gguf");
    let gguf = GgufModel::open(&path).expect("model");
    let hp = HyperParams::from_model(&gguf).expect("shape");
    let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
    (gguf, hp, tensors)
}

/// A file that was last written some time ago: clocks of file systems tick coarsely.
fn age(path: &Path) {
    let past = SystemTime::now() - Duration::from_secs(9);
    let file = File::options().write(true).open(path).expect("open");
    let times = FileTimes::new().set_modified(past);
    file.set_times(times).expect("times");
}

/// A slice with all tiles of the reference model.
fn slice() -> (TempDir, PathBuf) {
    let (gguf, hp, tensors) = reference();
    let model = WholeModel::new(gguf, hp, &tensors).expect("model");
    let whole = TileSet::whole(model.grid());
    let holdings = Holdings::uniform(model.grid(), model.layers(), whole);
    let folder = TempDir::new().expect("folder");
    let path = folder.path().join("node.gguf");
    let head = model.head(&holdings, Layout::Panels).expect("head");
    let mut writer = SliceWriter::open(&path, head, &mut |_| {}).expect("writer");
    while writer.position().is_some() {
        copy_tensor(&model, &mut writer, &mut |_| {}).expect("copied");
    }
    writer.finish().expect("finished");
    age(&path);
    (folder, path)
}

fn integrity(path: &Path, when: VerifyWhen) -> Arc<Integrity> {
    let gguf = GgufModel::open(path).expect("slice");
    let slice = Slice::of(gguf.clone()).expect("slice");
    Arc::new(Integrity::of_slice(&slice, &gguf, when).expect("tensors"))
}

/// Flips a bit of the first tensor of a layer in place; returns the tensor's name.
fn flip(path: &Path, layer: usize) -> String {
    let slice = Slice::open(path).expect("slice");
    let mut tensors = slice.head().tensors().iter();
    let victim = tensors.find(|t| t.layer == layer).expect("a tensor");
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("open");
    let at = victim.offset + 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
    victim.name.clone()
}

/// As [`flip`], but the time of modification is what it was.
fn flip_unseen(path: &Path, layer: usize) -> String {
    let modified = std::fs::metadata(path).expect("file").modified();
    let name = flip(path, layer);
    let file = File::options().write(true).open(path).expect("open");
    let times = FileTimes::new().set_modified(modified.expect("a time"));
    file.set_times(times).expect("times");
    name
}

fn plan(compare: bool, every: Option<Duration>) -> BackgroundPlan {
    BackgroundPlan {
        warm: Vec::new(),
        compare,
        every,
        rate: 1 << 30,
    }
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until the node is out of service for a reason that contains `part`.
fn wait_for_fault(integrity: &Integrity, part: &str) {
    wait_for(part, || {
        let fault = integrity.in_service().err();
        fault.is_some_and(|fault| fault.to_string().contains(part))
    });
    assert!(integrity.admit(0).is_err());
}

fn verified(integrity: &Integrity) -> Vec<bool> {
    let layers = integrity.layers.iter();
    layers.map(|l| l.verified.load(Ordering::Acquire)).collect()
}

#[test]
fn a_layer_is_compared_before_its_first_call_and_no_other_is() {
    let (_folder, path) = slice();
    let damaged = flip(&path, 1);
    age(&path);
    let used = integrity(&path, VerifyWhen::Use);
    // A node is ready before anything is read.
    assert!(!verified(&used).contains(&true));
    assert_eq!(used.admit(0), Ok(()));
    assert_eq!(used.release(), Ok(()));
    assert_eq!(verified(&used)[..2], [true, false]);
    let fault = used.admit(1).expect_err("damaged").to_string();
    for part in [
        &damaged[..],
        "node.gguf",
        "layer 1",
        "has the hash",
        ", not ",
    ] {
        assert!(fault.contains(part), "{fault}: {part}");
    }
    // From here on nothing is computed, not even with other layers.
    assert!(used.admit(0).is_err());
    // Calls that do not wait compute with the layer.
    assert_eq!(integrity(&path, VerifyWhen::Background).admit(1), Ok(()));
}

#[test]
fn the_background_finds_damage_and_names_it() {
    let (_folder, path) = slice();
    let damaged = flip(&path, 1);
    age(&path);
    let integrity = integrity(&path, VerifyWhen::Background);
    let _background = Background::start(Arc::clone(&integrity), plan(true, None));
    wait_for_fault(&integrity, &damaged);
}

#[test]
fn rows_do_not_leave_once_the_file_was_written_to_until_it_is_right_again() {
    let (_folder, path) = slice();
    let integrity = integrity(&path, VerifyWhen::Use);
    assert_eq!(integrity.admit(0), Ok(()));
    flip(&path, 1);
    let fault = integrity.release().expect_err("written to").to_string();
    assert!(fault.contains("it was written to"), "{fault}");
    assert!(integrity.admit(0).is_err());
    let _background = Background::start(Arc::clone(&integrity), plan(true, None));
    flip(&path, 1);
    wait_for("the node serves again", || integrity.in_service().is_ok());
    assert_eq!(integrity.admit(1), Ok(()));
    assert_eq!(integrity.release(), Ok(()));
}

#[test]
fn a_writer_that_sets_the_time_back_is_found_by_the_bytes() {
    let (_folder, path) = slice();
    let integrity = integrity(&path, VerifyWhen::Use);
    let _background = Background::start(Arc::clone(&integrity), plan(true, None));
    wait_for("all is compared", || !verified(&integrity).contains(&false));
    let damaged = flip_unseen(&path, 0);
    wait_for_fault(&integrity, &damaged);
}

#[test]
fn everything_is_compared_again_after_the_interval() {
    let (_folder, path) = slice();
    let integrity = integrity(&path, VerifyWhen::Use);
    let every = Some(Duration::from_millis(1));
    let _background = Background::start(Arc::clone(&integrity), plan(true, every));
    for round in 0..2 {
        wait_for(&format!("round {round}"), || {
            !verified(&integrity).contains(&false)
        });
        integrity.mark(false);
    }
}

#[test]
fn a_whole_model_is_compared_with_what_it_was() {
    let folder = TempDir::new().expect("folder");
    let path = folder.path().join("m.gguf");
    let (original, ..) = reference();
    std::fs::copy(original.name(), &path).expect("copied");
    age(&path);
    let gguf = GgufModel::open(&path).expect("model");
    let hp = HyperParams::from_model(&gguf).expect("shape");
    let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
    let grid = ds4_common::tiles::Grid::of(hp.experts, hp.expert_width);
    let integrity = Integrity::of_model(&gguf, &hp, &tensors, &[grid.whole()]);
    let held = integrity.tensors[0].tensor.clone();
    for tensor in &integrity.tensors {
        tensor.compare(true, &mut |_| Ok(())).expect("recorded");
    }
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    let offset = held.info().offset;
    file.write_all_at(&[held.bytes()[0] ^ 1], offset)
        .expect("written");
    let found = integrity.tensors[0].compare(true, &mut |_| Ok(()));
    let Err(Finding::Damaged(reason)) = found else {
        panic!("{found:?}");
    };
    assert!(reason.contains(held.name()), "{reason}");
    assert!(integrity.tensors[1].compare(true, &mut |_| Ok(())).is_ok());
}
