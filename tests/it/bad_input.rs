//! Invalid models on the command line: one readable line, a failure code, and no long wait.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ds4_common::gguf::{Array, Value};
use ds4_common::quant::GgmlType;
use ds4_tests::golden::Reference;
use ds4_tests::process::run;
use ds4_tests::rewrite::Draft;
use tempfile::TempDir;

pub(crate) const MODEL: Reference = Reference("tiny-w");
/// Loading takes well under a second; the rest is for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn coord(args: &[&str]) -> Outcome {
    let start = Instant::now();
    let output = run(env!("CARGO_BIN_EXE_coord_under_test"), args).expect("it ends");
    assert!(start.elapsed() < TIMEOUT, "{args:?}");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Asserts that the command fails with one line that contains all of `parts`.
pub(crate) fn assert_refused(args: &[&str], parts: &[&str]) {
    let Outcome { code, stderr, .. } = coord(args);
    println!("{}", stderr.trim_end());
    assert_eq!(code, Some(1), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("ds4-coord: "), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert!(stderr.len() < 2000, "{args:?}: {stderr}");
    let causes: Vec<&str> = stderr.trim_end().split(": ").collect();
    assert!(causes.windows(2).all(|w| w[0] != w[1]), "twice: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A folder for the files of one test.
pub(crate) struct TestFolder(pub(crate) TempDir);

impl TestFolder {
    pub(crate) fn new() -> Self {
        TestFolder(tempfile::tempdir().expect("folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("write");
        path
    }

    /// Asserts that `inspect` and `logits` refuse the model.
    fn assert_model_refused(&self, model: &Path, parts: &[&str]) {
        assert_refused(&["inspect", "--log", "off", "-m", text(model)], parts);
        let tokens = self.file("tokens.json", "[1,2,3]");
        let out = self.path("out.npy");
        let flags = ["logits", "--log", "off", "-m", text(model)];
        let files = ["--tokens", text(&tokens), "--out", text(&out)];
        assert_refused(&[&flags[..], &files[..]].concat(), parts);
        assert!(!out.exists());
    }

    /// Asserts that both commands refuse the model that `change` makes of the good one.
    fn assert_change_refused(&self, change: impl FnOnce(&mut Draft), parts: &[&str]) {
        let mut draft = Draft::read(&MODEL.model()).expect("reference");
        change(&mut draft);
        let path = self.path("changed.gguf");
        draft.write(&path).expect("write");
        let parts = [parts, &["changed.gguf"]].concat();
        self.assert_model_refused(&path, &parts);
    }

    /// Asserts that `logits` on the good model refuses these tokens or flags.
    pub(crate) fn assert_logits_refused(&self, tokens: &str, flags: &[&str], parts: &[&str]) {
        let tokens = self.file("ids.json", tokens);
        let out = self.path("out.npy");
        let model = MODEL.model();
        let always = ["logits", "--log", "off", "-m", text(&model)];
        let files = ["--tokens", text(&tokens), "--out", text(&out)];
        assert_refused(&[&always[..], &files[..], flags].concat(), parts);
    }
}

/// The header's bytes of a GGUF file: magic, version, counts.
fn head(tensors: u64, keys: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes
}

fn tensor_entry(name: &str, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut bytes = (name.len() as u64).to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    bytes.extend(ty.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

/// The commands accept good input, so the failures below have the causes that they test.
#[test]
fn good_input_is_accepted() {
    let dir = TestFolder::new();
    let tokens = dir.file("ids.json", "[1, 2, 3]");
    let out = dir.path("out.npy");
    let model = MODEL.model();
    let files = ["--tokens", text(&tokens), "--out", text(&out)];
    let good = coord(&[&["logits", "-m", text(&model), "--log", "off"], &files[..]].concat());
    assert_eq!(good.code, Some(0), "{}", good.stderr);
    assert_eq!(good.stderr, "");
    assert!(std::fs::metadata(&out).expect("written").len() > 3 * 512 * 4);
    let inspected = coord(&["inspect", "-m", text(&model), "--log", "off"]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
    assert!(inspected.stdout.contains("fingerprint"));
}

#[test]
fn files_that_are_not_models() {
    let dir = TestFolder::new();
    let cases: [(&str, &[u8], &str); 5] = [
        (
            "text.gguf",
            b"once upon a time there was a model\n",
            "magic",
        ),
        ("short.gguf", b"GG", "magic"),
        ("empty.gguf", b"", "empty"),
        (
            "version.gguf",
            b"GGUF\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "version 9",
        ),
        (
            "big.gguf",
            b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "big-endian",
        ),
    ];
    for (name, bytes, part) in cases {
        let path = dir.file(name, bytes);
        dir.assert_model_refused(&path, &[name, part]);
    }
    let folder = dir.0.path().to_path_buf();
    dir.assert_model_refused(&folder, &["not a regular file"]);
    let gone = dir.path("nowhere.gguf");
    dir.assert_model_refused(&gone, &["nowhere.gguf", "No such file"]);
    dir.assert_model_refused(
        &dir.file("bare.gguf", head(0, 0)),
        &["general.architecture"],
    );
}

#[test]
fn truncated_files() {
    let dir = TestFolder::new();
    let whole = std::fs::read(MODEL.model()).expect("reference");
    let ends = [4, 7, 15, 24, 40, 300, 4000, 12_000, 40_000, 200_000];
    for end in ends.into_iter().chain([whole.len() / 2, whole.len() - 1]) {
        let path = dir.file("cut.gguf", &whole[..end]);
        dir.assert_model_refused(&path, &["cut.gguf"]);
    }
    // The error says what is missing, where, and how long the file is.
    for (end, parts) in [
        (16, ["truncated", "the key count at byte 16", "16 bytes"]),
        (300, ["truncated", "the tensor count", "300 bytes"]),
        (4000, ["truncated", "an array length", "4000 bytes"]),
        (
            whole.len() - 1,
            ["tensor ", "would end at byte", "truncated"],
        ),
    ] {
        let path = dir.file("cut.gguf", &whole[..end]);
        dir.assert_model_refused(&path, &parts);
    }
}

#[test]
fn absurd_counts() {
    let dir = TestFolder::new();
    let huge = u64::MAX;
    let mut long_name = head(0, 1);
    long_name.extend(huge.to_le_bytes());
    let mut long_array = head(0, 1);
    long_array.extend(1u64.to_le_bytes());
    long_array.extend(b"k");
    long_array.extend(9u32.to_le_bytes());
    long_array.extend(4u32.to_le_bytes());
    long_array.extend((1u64 << 61).to_le_bytes());
    let cases = [
        ("tensors.gguf", head(huge, 0), "tensor count"),
        ("keys.gguf", head(0, huge), "key count"),
        ("many.gguf", head(1 << 19, 3), "tensor count"),
        ("name.gguf", long_name, "metadata key"),
        ("array.gguf", long_array, "array length"),
    ];
    for (name, mut bytes, part) in cases {
        bytes.extend([0; 64]);
        dir.assert_model_refused(&dir.file(name, bytes), &[name, part]);
    }
}

#[test]
fn tensors_in_impossible_places() {
    let dir = TestFolder::new();
    let cases: [(&str, Vec<Vec<u8>>, &str); 7] = [
        (
            "out.gguf",
            vec![tensor_entry("a", &[32], 0, 1 << 40)],
            "tensor a",
        ),
        (
            "wrap.gguf",
            vec![tensor_entry("a", &[32], 0, u64::MAX - 31)],
            "tensor a",
        ),
        (
            "dims.gguf",
            vec![tensor_entry("a", &[1 << 40, 1 << 40], 0, 0)],
            "too large",
        ),
        (
            "zero.gguf",
            vec![tensor_entry("a", &[0, 3], 0, 0)],
            "dimension of 0",
        ),
        (
            "skew.gguf",
            vec![tensor_entry("a", &[1], 0, 3)],
            "alignment",
        ),
        ("part.gguf", vec![tensor_entry("a", &[100], 12, 0)], "Q4_K"),
        (
            "over.gguf",
            vec![
                tensor_entry("a", &[32], 0, 0),
                tensor_entry("b", &[8], 0, 64),
            ],
            "overlap",
        ),
    ];
    for (name, entries, part) in cases {
        let mut bytes = head(entries.len() as u64, 0);
        bytes.extend(entries.concat());
        bytes.extend([0; 512]);
        dir.assert_model_refused(&dir.file(name, bytes), &[name, part]);
    }
}

#[test]
fn other_architectures() {
    let dir = TestFolder::new();
    for name in ["llama", "deepseek41", "deepseek2", ""] {
        let set = |draft: &mut Draft| {
            draft.set("general.architecture", Value::String(name.into()));
        };
        dir.assert_change_refused(set, &[name, "deepseek4"]);
    }
    // Text from the file must not break the line either.
    let set = |draft: &mut Draft| {
        draft.set("general.architecture", Value::String("a\nb".into()));
    };
    dir.assert_change_refused(set, &["a\\nb"]);
}

#[test]
fn keys_that_fit_no_model() {
    let dir = TestFolder::new();
    let text = || Value::String("many\nlines".into());
    let cases: [(&str, Value, &[&str]); 16] = [
        ("block_count", text(), &["string"]),
        ("block_count", Value::U32(0), &["0"]),
        ("block_count", Value::U32(u32::MAX), &["4294967295"]),
        ("embedding_length", Value::I32(-4), &["-4"]),
        ("embedding_length", Value::F32(256.0), &["f32"]),
        ("vocab_size", Value::U64(1 << 50), &[]),
        ("context_length", Value::U32(0), &["0"]),
        ("attention.output_group_count", Value::U32(3), &["3"]),
        ("rope.dimension_count", Value::U32(31), &["31"]),
        (
            "attention.compress_ratios",
            Value::Array(Array::U32(vec![4, 7])),
            &["7"],
        ),
        (
            "attention.compress_ratios",
            Value::Array(Array::U32(vec![4])),
            &["1 entries"],
        ),
        ("attention.compress_ratios", Value::U32(4), &["u32"]),
        ("expert_used_count", Value::U32(500), &["500"]),
        ("expert_gating_func", Value::U32(1), &["1"]),
        ("rope.scaling.type", text(), &["many\\nlines"]),
        ("rope.freq_base", Value::F32(f32::NAN), &["NaN"]),
    ];
    for (key, value, parts) in cases {
        let key = format!("deepseek4.{key}");
        let parts = [parts, &[key.as_str()]].concat();
        dir.assert_change_refused(|draft| draft.set(&key, value), &parts);
    }
    let key = "deepseek4.expert_count";
    let remove = |draft: &mut Draft| {
        draft.remove(key).expect("was there");
    };
    dir.assert_change_refused(remove, &[key, "missing"]);
}

#[test]
fn missing_tensors_are_listed() {
    let dir = TestFolder::new();
    let names = [
        "blk.0.attn_kv.weight",
        "blk.1.attn_kv.weight",
        "output_norm.weight",
    ];
    let remove = |draft: &mut Draft| draft.tensors.retain(|t| !names.contains(&t.name.as_str()));
    let parts = [
        "lacks tensors",
        "blk.{0-1}.attn_kv.weight",
        "output_norm.weight",
    ];
    dir.assert_change_refused(remove, &parts);
}

#[test]
fn wrong_shapes_and_types_are_named() {
    let dir = TestFolder::new();
    let transpose = |name: &'static str| {
        move |draft: &mut Draft| draft.tensor_mut(name).expect("tensor").dims.reverse()
    };
    let name = "blk.1.hc_ffn_fn.weight";
    dir.assert_change_refused(transpose(name), &[name, "[24, 1024]", "[1024, 24]"]);
    let grow = |draft: &mut Draft| draft.set("deepseek4.embedding_length", Value::U32(512));
    dir.assert_change_refused(grow, &["token_embd.weight", "[256, 512]", "[512, 512]"]);
    let tables = |draft: &mut Draft| {
        let table = draft.tensor_mut("blk.0.ffn_gate_tid2eid.weight");
        table.expect("table").ty = GgmlType::F32;
    };
    dir.assert_change_refused(tables, &["blk.0.ffn_gate_tid2eid.weight", "F32", "I32"]);
    let quantised = |draft: &mut Draft| {
        let norm = draft.tensor_mut("blk.0.attn_norm.weight").expect("norm");
        norm.ty = GgmlType::Q8_0;
        norm.bytes.truncate(256 / 32 * 34);
    };
    dir.assert_change_refused(quantised, &["blk.0.attn_norm.weight", "Q8_0"]);
    let integers = |draft: &mut Draft| {
        let norm = draft.tensor_mut("blk.0.attn_norm.weight").expect("norm");
        norm.ty = GgmlType::I32;
    };
    dir.assert_change_refused(integers, &["blk.0.attn_norm.weight", "I32"]);
    let twice = |draft: &mut Draft| {
        let mut copy = draft
            .tensor_mut("blk.0.attn_kv.weight")
            .expect("kv")
            .clone();
        copy.name = "blk.0.attn_kv_latent.weight".into();
        draft.tensors.push(copy);
    };
    dir.assert_change_refused(twice, &["attn_kv.weight", "attn_kv_latent.weight"]);
    let narrow = |draft: &mut Draft| draft.set("deepseek4.expert_used_count", Value::U32(4));
    dir.assert_change_refused(narrow, &["tid2eid", "4"]);
}

#[test]
fn values_that_no_model_has() {
    let dir = TestFolder::new();
    let route = |draft: &mut Draft| {
        let table = draft.tensor_mut("blk.0.ffn_gate_tid2eid.weight");
        table.expect("table").bytes[..4].copy_from_slice(&999i32.to_le_bytes());
    };
    dir.assert_change_refused(route, &["blk.0.ffn_gate_tid2eid.weight", "999"]);
    let tokens = "[1]";
    let mut draft = Draft::read(&MODEL.model()).expect("reference");
    let norm = draft.tensor_mut("blk.1.attn_norm.weight").expect("norm");
    norm.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = dir.path("nan.gguf");
    draft.write(&path).expect("write");
    let flags = ["-m", text(&path)];
    let tokens = dir.file("one.json", tokens);
    let out = dir.path("out.npy");
    let files = ["--tokens", text(&tokens), "--out", text(&out)];
    let args = [&["logits", "--log", "off"], &flags[..], &files[..]].concat();
    assert_refused(&args, &["nan.gguf", "blk.1.attn_norm.weight", "NaN"]);
}

#[test]
fn split_files_that_are_missing_or_do_not_belong_together() {
    let dir = TestFolder::new();
    let draft = Draft::read(&MODEL.model()).expect("reference");
    let parts = draft.write_split(dir.0.path(), "m", 3).expect("write");
    let second = "m-00002-of-00003.gguf";
    let renamed = dir.file("renamed.gguf", std::fs::read(&parts[0]).expect("part"));
    dir.assert_model_refused(&renamed, &["renamed.gguf", "-00001-of-00003.gguf"]);
    std::fs::copy(&parts[0], &parts[1]).expect("copy");
    dir.assert_model_refused(&parts[2], &[second]);
    std::fs::remove_file(&parts[1]).expect("remove");
    for part in [&parts[0], &parts[2]] {
        dir.assert_model_refused(part, &[second, "part 2 of 3"]);
    }
    let [first, _] = draft.write_shards(dir.0.path(), 1).expect("write");
    dir.assert_model_refused(&first, &["lacks tensors", "output.weight"]);
    let twice = format!("{0},{0}", text(&first));
    dir.assert_model_refused(Path::new(&twice), &["given twice"]);
    let overlapping = format!("{},{}", text(&first), text(&MODEL.model()));
    dir.assert_model_refused(Path::new(&overlapping), &["tensor", "first.gguf"]);
}
