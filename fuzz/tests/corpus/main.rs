//! Replays the corpus, and inputs that are a few bytes away from it, through the fuzz bodies: on
//! stable Rust, without libFuzzer.

mod seeds;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ds4_fuzz::{Body, TARGETS};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Where the corpus has a folder for each target.
fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The files of one target, with what a fuzzer has added to them on this machine, in order.
fn files(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = corpus().join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("readable");
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_file_of_the_corpus_passes() {
    for (target, body) in TARGETS {
        let files = files(target);
        assert!(!files.is_empty(), "{target} has no corpus");
        for (path, bytes) in files {
            // Shown if the body panics.
            println!("{}", path.display());
            body(&bytes);
        }
    }
}

#[test]
fn seeds_are_what_todays_code_writes_and_are_accepted() {
    for seed in seeds::all() {
        let name = format!("{}/{}", seed.target, seed.name);
        let path = corpus().join(&name);
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(path.parent().expect("folder")).expect("created");
            std::fs::write(&path, &seed.bytes).expect("written");
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(
            committed == seed.bytes,
            "fuzz/corpus/{name} is stale: run UPDATE_CORPUS=1 cargo test -p ds4-fuzz seeds"
        );
        let target = TARGETS.iter().find(|(target, _)| *target == seed.target);
        let (_, body) = target.expect("a known target");
        assert!(body(&seed.bytes), "{name} is refused");
    }
}

/// What is mutated: the bodies with their files.
static SEEDS: LazyLock<Vec<(Body, Vec<Vec<u8>>)>> = LazyLock::new(|| {
    let of = |(target, body): (&str, Body)| {
        let files = files(target).into_iter();
        let inputs = files.map(|(_, bytes)| bytes);
        (body, inputs.filter(|bytes| !bytes.is_empty()).collect())
    };
    TARGETS.into_iter().map(of).collect()
});

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// Overwrites some bytes, inserts others, and cuts the end off.
    #[test]
    fn neighbours_of_the_corpus_pass(
        which in any::<Index>(),
        overwritten in vec((any::<Index>(), any::<u8>()), 0..6),
        inserted in vec(any::<u8>(), 0..4),
        inserted_at in any::<Index>(),
        kept in prop_oneof![Just(None), any::<Index>().prop_map(Some)],
    ) {
        for (body, files) in SEEDS.iter() {
            let mut bytes = which.get(files).clone();
            for (at, byte) in &overwritten {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let at = inserted_at.index(bytes.len());
            bytes.splice(at..at, inserted.iter().copied());
            if let Some(kept) = kept {
                bytes.truncate(kept.index(bytes.len()));
            }
            body(&bytes);
        }
    }
}
