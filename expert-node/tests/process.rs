//! The binary as its users start and stop it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny-w/tiny-w.gguf")
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ds4-expert"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DS4_")) {
        command.env_remove(name);
    }
    command
}

fn output(args: &[&str]) -> Output {
    binary().args(args).output().expect("the binary runs")
}

/// A running node, killed if a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The numbers before each `MB` of a ready line.
fn megabytes(ready: &str) -> Vec<f64> {
    let words: Vec<&str> = ready.split_whitespace().collect();
    let numbers = words.windows(2).filter(|pair| pair[1] == "MB");
    numbers
        .map(|pair| pair[0].parse().expect("a number"))
        .collect()
}

#[test]
fn whole_experts_cost_what_they_weigh() {
    let mut child = binary()
        .args(["serve", "--listen", "127.0.0.1:0", "--threads", "1"])
        .args(["--log", "warn", "--tiles", "experts=0..1", "-m"])
        .arg(model())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("the binary runs");
    let mut lines = BufReader::new(child.0.stdout.take().expect("stdout")).lines();
    let ready = lines.next().expect("a line").expect("text");
    assert_eq!(megabytes(&ready).len(), 1, "{ready}");
}

#[test]
fn serve_is_ready_with_one_line_and_sigterm_stops_it() {
    let mut child = binary()
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--threads",
            "1",
            "--log",
            "warn",
        ])
        .args(["--tiles", "blocks=0..1"])
        .env("DS4_MODEL", model())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("the binary runs");
    let mut lines = BufReader::new(child.0.stdout.take().expect("stdout")).lines();
    let ready = lines.next().expect("a line").expect("text");
    assert!(
        ready.starts_with("ds4-expert ready on 127.0.0.1:"),
        "{ready}"
    );
    assert!(ready.contains("blocks 0..1"), "{ready}");
    let [weights, resident] = megabytes(&ready)[..] else {
        panic!("a strip of a whole file costs more than its weights: {ready}");
    };
    // One block of eight of gate, up and down against all of down.
    assert!(resident > 2.0 * weights, "{ready}");
    let address = ready
        .split_whitespace()
        .nth(3)
        .expect("address")
        .trim_end_matches(':');
    std::net::TcpStream::connect(address).expect("it listens");

    let kill = Command::new("sh")
        .args(["-c", &format!("kill -TERM {}", child.0.id())])
        .status();
    assert!(kill.expect("kill").success());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait().expect("status") {
            break status;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "SIGTERM was ignored"
        );
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "{status}");
    assert!(lines.next().is_none(), "more than one line");
}

#[test]
fn a_node_tells_systemd_its_state_and_survives_signals_that_are_no_end() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("notify");
    let heard = std::os::unix::net::UnixDatagram::bind(&path).expect("socket");
    let limit = Some(Duration::from_secs(60));
    heard.set_read_timeout(limit).expect("time limit");
    let next = || loop {
        let mut buffer = [0; 256];
        let length = heard.recv(&mut buffer).expect("message");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text != "WATCHDOG=1" {
            return text;
        }
    };
    let mut child = binary()
        .args(["serve", "--listen", "127.0.0.1:0", "--threads", "1"])
        .args(["--tiles", "blocks=0..1", "-m"])
        .arg(model())
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "100000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .expect("the binary runs");
    let signal = |name: &str| {
        let kill = format!("kill -{name} {}", child.0.id());
        let status = Command::new("sh").args(["-c", &kill]).status();
        assert!(status.expect("kill").success(), "{name}");
    };
    assert_eq!(next(), "READY=1");
    signal("USR1");
    signal("USR2");
    signal("HUP");
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\n"), "{reloading}");
    assert_eq!(next(), "READY=1");
    signal("TERM");
    assert_eq!(next(), "STOPPING=1");
    assert_eq!(child.0.wait().expect("status").code(), Some(0));
}

#[test]
fn errors_are_one_line_and_one_status() {
    let model = model();
    let model = model.to_str().expect("path");
    let text = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(text.path(), "no model").expect("written");
    let text = text.path().to_str().expect("path");
    for args in [
        vec!["serve", "-m", "/nowhere/model.gguf"],
        vec!["serve", "-m", text],
        vec!["serve", "-m", model, "--tiles", "experts=0..999"],
        vec!["serve", "-m", model, "--grid", "1x1", "--index", "5"],
        vec!["serve", "-m", model, "--listen", "192.0.2.1:1"],
        vec!["inspect", "-m", text],
    ] {
        let output = output(&[&args[..], &["--log", "error"]].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
        assert!(error.starts_with("ds4-expert: "), "{error}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(output(&["serve"]).status.code(), Some(2));
    assert_eq!(
        output(&["serve", "-m", "x", "--tiles", "junk"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn inspect_prints_the_grid() {
    let model = model();
    let output = output(&["inspect", "--model", model.to_str().expect("path")]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        text.contains("tile grid") && text.contains("x 8 blocks"),
        "{text}"
    );
    assert!(text.contains("scalar"), "{text}");
    assert!(text.contains("q4_k_panel_gemm_16rows"), "{text}");
}
