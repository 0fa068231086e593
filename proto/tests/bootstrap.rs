//! Holds the committed Rust to the `.proto` files, without protoc and without a build script.

use std::path::{Path, PathBuf};

#[test]
fn committed_code_is_what_the_proto_files_generate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = root.join("proto");
    let sources = ["expert.proto", "slice.proto"].map(|name| protos.join("ds4/v1").join(name));
    let files = protox::compile(sources, [&protos]).expect("protos");
    let out = tempfile::tempdir().expect("temporary folder");
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(files)
        .expect("code generation");

    let fresh = rust_files(out.path());
    assert!(!fresh.is_empty(), "nothing was generated");
    for name in fresh {
        let text = std::fs::read_to_string(out.path().join(&name)).expect("generated file");
        let kept = root.join("src/gen").join(&name);
        if std::env::var_os("UPDATE_GEN").is_some() {
            std::fs::create_dir_all(root.join("src/gen")).expect("src/gen");
            std::fs::write(&kept, &text).expect("write generated file");
        }
        let committed = std::fs::read_to_string(&kept).unwrap_or_default();
        assert!(
            committed == text,
            "{} is stale: run UPDATE_GEN=1 cargo test -p ds4-proto --test bootstrap",
            kept.display()
        );
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| PathBuf::from(entry.expect("entry").file_name()))
        .filter(|name| name.extension().is_some_and(|ext| ext == "rs"))
        .collect();
    names.sort();
    names
}
