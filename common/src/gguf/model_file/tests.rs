use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::gguf::{GgufWriter, Value};
use crate::quant::GgmlType;

const ARCHITECTURE: &str = "general.architecture";

fn file(path: &Path, keys: &[(&str, Value)], tensors: &[&str]) {
    let mut w = GgufWriter::new();
    for (key, value) in keys {
        w.add(key, value.clone()).unwrap();
    }
    for name in tensors {
        w.add_tensor(name, &[4], GgmlType::F32).unwrap();
    }
    w.write_file(path, |t, out| {
        out.write_all(t.name.as_bytes().repeat(16)[..16].as_ref())
    })
    .unwrap();
}

fn split_keys(no: u16, count: u16, tensors: i32) -> Vec<(&'static str, Value)> {
    let mut keys = vec![
        ("split.no", Value::U16(no)),
        ("split.count", Value::U16(count)),
        ("split.tensors.count", Value::I32(tensors)),
    ];
    if no == 0 {
        keys.push((ARCHITECTURE, Value::String("x".into())));
    }
    keys
}

/// Three parts with one tensor each.
fn three_parts(dir: &Path) -> Vec<PathBuf> {
    (0..3u16)
        .map(|no| {
            let path = dir.join(format!("m-{:05}-of-00003.gguf", no + 1));
            file(
                &path,
                &split_keys(no, 3, 3),
                &[["a", "b", "c"][usize::from(no)]],
            );
            path
        })
        .collect()
}

fn message(result: Result<GgufModel, GgufError>) -> String {
    let text = result.unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn any_part_of_a_split_model_opens_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let paths = three_parts(dir.path());
    let all = [
        vec![paths[0].clone()],
        vec![paths[1].clone()],
        paths.clone(),
    ];
    for named in all {
        let model = GgufModel::open_parts(&named).unwrap();
        assert_eq!(model.paths(), paths);
        assert_eq!(model.tensors().len(), 3);
        assert_eq!(model.metadata().str(ARCHITECTURE), Ok("x"));
        assert_eq!(model.tensor("b").unwrap().bytes(), b"bbbbbbbbbbbbbbbb");
        assert_eq!(model.tensor("c").unwrap().file(), paths[2]);
    }
}

#[test]
fn a_missing_or_swapped_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let paths = three_parts(dir.path());
    fs::rename(&paths[2], dir.path().join("kept")).unwrap();
    let text = message(GgufModel::open(&paths[0]));
    assert!(
        text.contains("part 3 of 3") && text.contains("m-00003-of-00003.gguf"),
        "{text}"
    );
    fs::copy(&paths[1], &paths[2]).unwrap();
    let text = message(GgufModel::open(&paths[0]));
    assert!(
        text.contains("should be part 3 of 3") && text.contains("say part 2 of 3"),
        "{text}"
    );
    file(&paths[2], &[], &["c"]);
    assert!(message(GgufModel::open(&paths[0])).contains("say part 1 of 1"));
    fs::rename(&paths[0], dir.path().join("renamed.gguf")).unwrap();
    let text = message(GgufModel::open(&dir.path().join("renamed.gguf")));
    assert!(text.contains("-00001-of-00003.gguf"), "{text}");
}

#[test]
fn split_keys_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("m-00001-of-00002.gguf");
    let two = dir.path().join("m-00002-of-00002.gguf");
    file(&one, &split_keys(0, 2, 3), &["a"]);
    file(&two, &split_keys(1, 2, 3), &["b"]);
    assert!(message(GgufModel::open(&two)).contains("is 3, but the 2 parts hold 2 tensors"));
    file(&two, &split_keys(1, 2, 2), &["a"]);
    file(&one, &split_keys(0, 2, 2), &["a"]);
    let text = message(GgufModel::open(&one));
    assert!(
        text.contains("tensor a is in") && text.contains("00002-of"),
        "{text}"
    );
    file(&one, &split_keys(2, 2, 2), &["a"]);
    assert!(message(GgufModel::open(&one)).contains("split.no 2 is not below"));
    file(
        &one,
        &[
            ("split.no", Value::U16(0)),
            ("split.count", Value::U32(u32::MAX)),
        ],
        &["a"],
    );
    assert!(message(GgufModel::open(&one)).contains("at most 65535 parts"));
    file(&one, &[("split.count", Value::U16(2))], &["a"]);
    assert!(message(GgufModel::open(&one)).contains("split.no is missing"));
}

#[test]
fn layer_shards_are_joined_and_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let keys = |blocks| {
        [
            (ARCHITECTURE, Value::String("x".into())),
            ("x.block_count", Value::U32(blocks)),
        ]
    };
    file(&path("1"), &keys(2), &["a"]);
    file(&path("2"), &keys(2), &["b"]);
    file(&path("3"), &keys(3), &["c"]);
    let model = GgufModel::open_parts(&[path("1"), path("2")]).unwrap();
    assert!(model.tensor("a").is_some() && model.tensor("b").is_some());
    let bytes = fs::metadata(path("1")).unwrap().len() + fs::metadata(path("2")).unwrap().len();
    assert_eq!(model.file_bytes(), bytes);
    let text = message(GgufModel::open_parts(&[path("1"), path("3")]));
    assert!(text.contains("x.block_count differ"), "{text}");
    assert!(message(GgufModel::open_parts(&[path("1"), path("1")])).contains("given twice"));
    std::os::unix::fs::symlink(path("1"), path("link")).unwrap();
    assert!(message(GgufModel::open_parts(&[path("1"), path("link")])).contains("given twice"));
    fs::copy(path("1"), path("copy")).unwrap();
    assert!(message(GgufModel::open_parts(&[path("1"), path("copy")])).contains("tensor a is in"));
    assert!(message(GgufModel::open_parts(&[])).contains("no model file"));
}

#[test]
fn what_is_no_model_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    for (content, want) in [(&b""[..], "is empty"), (b"text", "magic"), (b"GG", "magic")] {
        fs::write(&path, content).unwrap();
        let text = message(GgufModel::open(&path));
        assert!(
            text.contains(want) && text.contains(path.to_str().unwrap()),
            "{text}"
        );
    }
    assert!(message(GgufModel::open(dir.path())).contains("not a regular file"));
    assert!(message(GgufModel::open(Path::new("/dev/null"))).contains("not a regular file"));
    assert!(message(GgufModel::open(&dir.path().join("none"))).contains("none: No such file"));
    file(&path, &[], &["a", "b"]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(message(GgufModel::open(&path)).contains("tensor b would end at"));
}

#[test]
fn a_foreign_type_is_an_error_only_where_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.gguf");
    file(&path, &[], &["a", "zz.tensor"]);
    let mut bytes = fs::read(&path).unwrap();
    let name = bytes.windows(9).position(|w| w == b"zz.tensor").unwrap();
    // Name, dimension count and one dimension stand before the type.
    bytes[name + 9 + 4 + 8] = 2;
    fs::write(&path, bytes).unwrap();
    let model = GgufModel::open(&path).unwrap();
    assert!(model.tensor("zz.tensor").is_none() && model.contains("zz.tensor"));
    assert_eq!(model.unsupported()[0].name, "zz.tensor");
    assert!(model.require("a").is_ok());
    let text = model.require("zz.tensor").unwrap_err().to_string();
    assert!(
        text.contains("zz.tensor") && text.contains("Q4_0"),
        "{text}"
    );
    assert!(
        model
            .require("none")
            .unwrap_err()
            .to_string()
            .contains("no tensor none")
    );
}

#[test]
fn reads_and_advice_stay_inside_of_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.gguf");
    file(&path, &[], &["a", "b"]);
    let model = GgufModel::open(&path).unwrap();
    let tensor = model.tensor("b").unwrap();
    let mut out = [0; 4];
    tensor.read_at(&mut out, 12).unwrap();
    assert_eq!(&out, b"bbbb");
    assert!(tensor.read_at(&mut out, 13).is_err());
    assert!(tensor.read_at(&mut out, u64::MAX).is_err());
    tensor.populate(0..16).unwrap();
    tensor.will_need(3..3).unwrap();
    assert!(tensor.populate(0..17).is_err());
    assert!(tensor.will_need(20..30).is_err());
}
