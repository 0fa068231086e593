//! What commands do when the reader of their output has gone, or when it cannot be written: they
//! end in silence, or with one line.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::bad_input::{MODEL, TestFolder, text};
use crate::cluster::{COORD, NODE};

/// Runs `program` with `input` and with `stdout` as its standard output.
fn run_into(stdout: impl Into<Stdio>, program: &str, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .env("DS4_LOG", "error")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that does not read its input may have ended already.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// The exit code of `program` with a standard output that nothing reads; it must be silent.
fn code_without_reader(program: &str, args: &[&str]) -> Option<i32> {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = run_into(writer, program, args, "hello\n");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, "", "{args:?}");
    output.status.code()
}

#[test]
fn a_reader_that_has_gone_ends_every_command_in_silence() {
    let dir = TestFolder::new();
    let model = MODEL.model();
    let model = text(&model);
    let [slices, certs, synth] = ["slices", "certs", "synth.gguf"].map(|name| dir.path(name));
    let bench = ["bench", "-m", model, "--threads=1", "--embedded=0"];
    let chat = ["chat", "-m", model, "--threads=1", "--embedded=0"];
    let commands: [&[&str]; 12] = [
        &["--help"],
        &["--version"],
        &["serve", "--help"],
        &["inspect", "-m", model],
        &["plan", "--flash", "--node=name=a,memory=512G"],
        &["plan", "-m", model, "--node=name=a,memory=2G"],
        &["certs", "--out", text(&certs), "--node=a"],
        &["synth", "--preset=tiny", "--out", text(&synth)],
        &["slice", "-m", model, "--nodes=2", "--out", text(&slices)],
        &["slice", "-m", model, "--nodes=2", "--out", text(&slices)],
        &[&bench[..], &["--prompt=4", "--decode=2"]].concat(),
        &[&chat[..], &["--max-tokens=2", "--no-think"]].concat(),
    ];
    for args in commands {
        assert_eq!(code_without_reader(COORD, args), Some(0), "{args:?}");
    }
    let slice = slices.join("node-0.gguf");
    let commands: [&[&str]; 4] = [
        &["--help"],
        &["serve", "--help"],
        &["inspect", model],
        &["inspect", text(&slice)],
    ];
    for args in commands {
        assert_eq!(code_without_reader(NODE, args), Some(0), "{args:?}");
    }
}

#[test]
fn a_verification_that_nothing_reads_still_has_its_exit_code() {
    let dir = TestFolder::new();
    let model = MODEL.model();
    let cut = ["slice", "--nodes=2", "-m", text(&model), "--out"];
    let folder = text(dir.0.path());
    assert_eq!(
        code_without_reader(COORD, &[&cut[..], &[folder]].concat()),
        Some(0)
    );
    let [intact, damaged] = ["node-0.gguf", "node-1.gguf"].map(|name| dir.path(name));
    assert_eq!(
        code_without_reader(COORD, &["verify", text(&intact)]),
        Some(0)
    );
    let mut bytes = std::fs::read(&damaged).expect("a slice");
    // Far behind the head: a byte of a weight.
    let at = bytes.len() / 4 * 3;
    bytes[at] ^= 1;
    std::fs::write(&damaged, bytes).expect("written");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let args = ["verify", text(&damaged), text(&intact)];
    let output = run_into(writer, COORD, &args, "");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let model = MODEL.model();
    for program in [COORD, NODE] {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let args = ["inspect", text(&model)];
        let output = run_into(full.expect("a device"), program, &args, "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains("cannot write to standard output"), "{error}");
    }
}
