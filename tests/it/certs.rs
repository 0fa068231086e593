//! `ds4-coord certs`: which files it writes and which it leaves alone.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ds4_proto::tls::{CertificateFacts, Role, TlsFiles};

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

/// The ends of the certificates of these members.
fn ends(folder: &Path, names: &[&str]) -> Vec<u64> {
    let end = |name: &&str| {
        let pem = std::fs::read(folder.join(format!("{name}.pem"))).expect("a certificate");
        CertificateFacts::of_pem(&pem)[0].not_after
    };
    names.iter().map(end).collect()
}

#[test]
fn members_are_renewed_for_the_names_that_they_have() {
    let dir = TestFolder::new();
    let out = dir.path("certs");
    let members = ["--node", "a,10.0.0.1,*.nodes.lan", "--node", "b,fd00::2"];
    let coordinator = ["--coordinator", "coord.lan", "--days", "10"];
    let folder = ["--out", text(&out)];
    certs(&[&folder[..], &members, &coordinator].concat());
    // Not a member of this cluster.
    std::fs::write(out.join("note.pem"), "nothing").expect("written");
    let names = ["a", "b", "coordinator"];
    let before = ends(&out, &names);
    let end_days: std::collections::BTreeSet<u64> = before.iter().copied().collect();
    assert_eq!(end_days.len(), 3, "they do not end together: {before:?}");
    let old = contents(&out);
    let printed = certs(&[&folder[..], &["--renew", "--days", "20"]].concat());
    for line in [
        "node a, valid until 20",
        "as a, 10.0.0.1, *.nodes.lan:",
        "as b, fd00::2:",
        "as coord.lan:",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert!(
        ends(&out, &names)
            .iter()
            .zip(&before)
            .all(|(new, old)| new > old)
    );
    let new = contents(&out);
    assert_eq!(
        new.keys().collect::<Vec<_>>(),
        old.keys().collect::<Vec<_>>()
    );
    for (name, file) in &new {
        let same = matches!(name.as_str(), "ca.pem" | "ca.key" | "note.pem");
        assert_eq!(*file == old[name], same, "{name}");
        assert_eq!(file.0, old[name].0, "{name}");
    }
    let empty = dir.path("empty");
    std::fs::create_dir(&empty).expect("a folder");
    let nobody = [
        "certs",
        "--out",
        text(&empty),
        "--ca",
        text(&out),
        "--renew",
    ];
    assert_refused(&nobody, &["holds no member's certificate"]);
}

#[test]
fn an_authority_is_replaced_in_steps_that_leave_every_member_trusted() {
    let dir = TestFolder::new();
    let out = dir.path("certs");
    let folder = ["--out", text(&out)];
    let step = |flag: &str| certs(&[&folder[..], &[flag]].concat());
    certs(&[&folder[..], &["--node", "a", "--node", "b"]].concat());
    let load = |name: &str, role: Role| files(&out, name).load(role).map(drop);
    let all_good = |when: &str| {
        for (name, role) in [
            ("coordinator", Role::Coordinator),
            ("a", Role::Node),
            ("b", Role::Node),
        ] {
            load(name, role).unwrap_or_else(|error| panic!("{when}, {name}: {error}"));
        }
    };
    let old_key = contents(&out)["ca.key"].clone();
    let printed = step("--rotate-authority");
    assert!(printed.contains("--renew") && printed.contains("--finish-rotation"));
    all_good("both are trusted");
    let now = contents(&out);
    assert_eq!(now["ca.pem"].1.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(now["ca-old.key"].1, old_key.1);
    assert_ne!(now["ca.key"].1, old_key.1);
    assert_eq!(
        (now["ca.key"].0, now["ca-old.key"].0),
        (old_key.0, old_key.0)
    );
    let twice = [&["certs"], &folder[..], &["--rotate-authority"]].concat();
    assert_refused(&twice, &["being replaced already", "--finish-rotation"]);
    let early = [&["certs"], &folder[..], &["--finish-rotation"]].concat();
    assert_refused(&early, &["a.pem", "not signed", "--renew first"]);
    all_good("nothing was finished");
    step("--renew");
    all_good("all are renewed");
    // A member that joins meanwhile trusts both as well.
    certs(&[&folder[..], &["--ca", text(&out), "--node", "late"]].concat());
    step("--finish-rotation");
    all_good("the new one alone is trusted");
    load("late", Role::Node).expect("a member");
    let after = contents(&out);
    assert_eq!(after["ca.pem"].1.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(!after.contains_key("ca-old.key") && !after.contains_key("ca-alone.pem"));
}

#[test]
fn what_cannot_be_certified_is_refused_before_anything_is_written() {
    let dir = TestFolder::new();
    let out = dir.path("certs");
    let cases: [(&[&str], &[&str]); 10] = [
        (
            &["--node", "a,*.ds4-expert"],
            &["'*.ds4-expert'", "two labels"],
        ),
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
        &["--node", "a", "--renew"],
        &["--renew", "--rotate-authority"],
        &["--finish-rotation", "--ca", "x"],
        &[],
    ] {
        let all = [&["certs", "--out", text(&out)], args].concat();
        assert_eq!(coord(&all).code, Some(2), "{args:?}");
    }
    assert!(!out.exists());
    let file = dir.file("file", "");
    assert_refused(&["certs", "--out", text(&file), "--node", "a"], &["file"]);
}
