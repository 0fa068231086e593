//! `ds4-coord certs`: which files it writes and which it leaves alone.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ds4_proto::tls::{Role, TlsFiles};

use crate::bad_input::{Outcome, TestFolder, assert_refused, coord, text};

/// Runs `ds4-coord certs`, which must succeed, and returns what it prints.
pub(crate) fn certs(args: &[&str]) -> String {
    let Outcome {
        code,
        stdout,
        stderr,
    } = coord(&[&["certs"], args].concat());
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    stdout
}

pub(crate) fn files(folder: &Path, name: &str) -> TlsFiles {
    TlsFiles {
        ca: folder.join("ca.pem"),
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    }
}

/// By name, the mode and text of all files in a folder.
fn contents(folder: &Path) -> BTreeMap<String, (u32, String)> {
    let entries = std::fs::read_dir(folder).expect("folder");
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        let name = entry.file_name().into_string().expect("UTF-8");
        let text = std::fs::read_to_string(entry.path()).expect("text");
        (name, (mode, text))
    };
    entries.map(entry).collect()
}

#[test]
fn keys_are_private_and_files_replaced_on_request_only() {
    let dir = TestFolder::new();
    let out = dir.path("certs");
    let nodes = ["--node", "node-1,10.0.0.1", "--node", "node-2,*.nodes.lan"];
    let args = [&["--out", text(&out)], &nodes[..]].concat();
    let printed = certs(&args);
    let first = contents(&out);
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    let wanted = [
        "ca.key",
        "ca.pem",
        "coordinator.key",
        "coordinator.pem",
        "node-1.key",
        "node-1.pem",
        "node-2.key",
        "node-2.pem",
    ];
    assert_eq!(names, wanted);
    for (name, (mode, pem)) in &first {
        let (kind, bits) = match name.ends_with(".key") {
            true => ("-----BEGIN PRIVATE KEY-----", 0o077),
            false => ("-----BEGIN CERTIFICATE-----", 0o022),
        };
        assert_eq!(mode & bits, 0, "{name}: {mode:o}");
        assert!(pem.starts_with(kind), "{name}");
        assert_eq!(pem.matches("-----BEGIN").count(), 1, "{name}");
    }
    assert!(printed.contains(&format!("--tls-key {}/node-2.key", text(&out))));
    assert!(printed.contains("10.0.0.1") && printed.contains("*.nodes.lan"));
    for (name, role) in [
        ("coordinator", Role::Coordinator),
        ("node-1", Role::Node),
        ("node-2", Role::Node),
    ] {
        files(&out, name).load(role).expect(name);
    }
    let again = [&["certs"], &args[..]].concat();
    assert_refused(&again, &["already exists", "--force", text(&out)]);
    assert_eq!(contents(&out), first);
    certs(&[&args[..], &["--force"]].concat());
    let second = contents(&out);
    assert_eq!(second.len(), first.len());
    assert!(second.iter().all(|(name, file)| first[name].0 == file.0));
    assert!(second.iter().all(|(name, file)| first[name].1 != file.1));
}

#[test]
fn an_authority_certifies_further_members() {
    let dir = TestFolder::new();
    let (home, other) = (dir.path("home"), dir.path("other"));
    certs(&["--out", text(&home), "--node", "a"]);
    let before = contents(&home);
    let ca = ["--ca", text(&home)];
    certs(&[&["--out", text(&other), "--node", "b"], &ca[..]].concat());
    let made = contents(&other);
    let names: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(names, ["b.key", "b.pem", "ca.pem"]);
    assert_eq!(made["ca.pem"].1, before["ca.pem"].1);
    files(&other, "b").load(Role::Node).expect("a member");
    let beside = ["--out", text(&home), "--node", "c", "--coordinator", "x"];
    let taken = [&["certs"], &beside[..], &ca[..]].concat();
    assert_refused(&taken, &["coordinator.pem", "already exists"]);
    assert_eq!(contents(&home), before);
    certs(&[&["--out", text(&home), "--node", "c"], &ca[..]].concat());
    let after = contents(&home);
    assert!(before.iter().all(|(name, file)| after[name] == *file));
    files(&home, "c").load(Role::Node).expect("a member");
    // A folder with the files of another authority is left alone.
    let third = dir.path("third");
    certs(&["--out", text(&third), "--node", "a"]);
    let mixed = ["certs", "--out", text(&third), "--node", "d"];
    assert_refused(
        &[&mixed[..], &ca[..]].concat(),
        &["ca.pem", "another authority"],
    );
}

#[test]
fn what_cannot_be_certified_is_refused_before_anything_is_written() {
    let dir = TestFolder::new();
    let out = dir.path("certs");
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--node", "a,b c"], &["'b c'", "DNS name"]),
        (&["--node", "a,*"], &["'*'", "DNS name"]),
        (&["--node", "a,b.*.c"], &["'b.*.c'", "DNS name"]),
        (&["--node", "../a"], &["../a", "letters"]),
        (&["--node", "*.a"], &["*.a", "letters"]),
        (&["--node", "ca"], &["authority"]),
        (&["--node", "a", "--node", "a,b"], &["a", "twice"]),
        (&["--node", "coordinator"], &["coordinator", "twice"]),
        (
            &["--node", "a", "--ca", "/nowhere"],
            &["/nowhere/ca.pem", "No such file"],
        ),
    ];
    for (args, parts) in cases {
        let all = [&["certs", "--out", text(&out)], args].concat();
        assert_refused(&all, parts);
        assert!(!out.exists(), "{args:?}");
    }
    for args in [
        &["--node", ""][..],
        &["--node", "a,,b"],
        &["--node", "a", "--days", "0"],
        &[],
    ] {
        let all = [&["certs", "--out", text(&out)], args].concat();
        assert_eq!(coord(&all).code, Some(2), "{args:?}");
    }
    assert!(!out.exists());
    let file = dir.file("file", "");
    assert_refused(&["certs", "--out", text(&file), "--node", "a"], &["file"]);
}
