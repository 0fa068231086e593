//! Signals, what systemd hears, and limits of the system.

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use super::{DEADLINE, Process, SERVE, address_of, connect, get, serve, stream};

#[test]
fn signals_that_are_no_end_cut_no_stream() {
    let (mut process, address) = serve();
    let mut answer = stream(address, 200);
    for signal in ["HUP", "USR1", "USR2", "HUP"] {
        process.signal(signal);
    }
    let mut rest = String::new();
    answer.read_to_string(&mut rest).expect("the whole answer");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert!(get(address, "/health").starts_with("HTTP/1.1 200"));
    // As nginx and others read it: finish, then end.
    let mut answer = stream(address, 40);
    process.signal("QUIT");
    rest.clear();
    answer.read_to_string(&mut rest).expect("the whole answer");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn draining_can_be_seen_until_the_end() {
    let (mut process, address) = serve();
    let mut running = stream(address, 4000);
    process.signal("TERM");
    let mut health = get(address, "/health");
    while health.starts_with("HTTP/1.1 200") {
        // The signal is on its way.
        health = get(address, "/health");
    }
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
    assert!(health.contains("\"status\":\"draining\""), "{health}");
    assert!(health.contains("\r\nretry-after: "), "{health}");
    assert!(health.contains("\r\nconnection: close"), "{health}");
    let ready = get(address, "/ready");
    assert!(ready.contains("\"reason\":\"draining\""), "{ready}");
    assert!(get(address, "/live").starts_with("HTTP/1.1 200"));
    assert!(get(address, "/metrics").contains("\nds4_requests_running 1\n"));
    let mut late = connect(address);
    let body = r#"{"prompt": "a"}"#;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut late, request.as_bytes()).expect("written");
    let mut refused = String::new();
    late.read_to_string(&mut refused).expect("an answer");
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("shutting_down"), "{refused}");
    process.signal("TERM");
    let mut rest = String::new();
    running.read_to_string(&mut rest).expect("an end");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn the_log_filter_is_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("filter");
    std::fs::write(&path, "warn\n").expect("written");
    let file = format!("@{}", path.display());
    let mut process = Process::start(&[&SERVE[..], &["--log", &file]].concat());
    let stderr = process.0.stderr.take().expect("piped");
    let reloads = Process::lines(stderr, "log filter");
    address_of(&mut process);
    std::fs::write(&path, "info # everything\n").expect("written");
    process.signal("HUP");
    let line = reloads.recv_timeout(DEADLINE).expect("a line");
    assert!(line.contains("reload of the log filter: info"), "{line}");
    std::fs::write(&path, "a=b=c\n").expect("written");
    process.signal("HUP");
    let line = reloads.recv_timeout(DEADLINE).expect("a line");
    assert!(line.contains("cannot reload the log filter"), "{line}");
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn systemd_hears_of_every_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let heard = UnixDatagram::bind(&path).expect("a socket");
    heard
        .set_read_timeout(Some(DEADLINE))
        .expect("a time limit");
    let mut watchdog = 0;
    let mut next = || loop {
        let mut buffer = [0; 256];
        let length = heard.recv(&mut buffer).expect("a message");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text != "WATCHDOG=1" {
            return (text, watchdog);
        }
        watchdog += 1;
    };
    // Names of this program's variables are removed, others are not.
    let mut command = Command::new("env");
    command
        .arg(format!("NOTIFY_SOCKET={}", path.display()))
        .arg("WATCHDOG_USEC=100000")
        .arg(env!("CARGO_BIN_EXE_ds4-coord"));
    let mut process = Process::launch(command, &SERVE);
    assert_eq!(next().0, "READY=1");
    process.signal("HUP");
    let reloading = next().0;
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(next().0, "READY=1");
    // Some signs of life.
    std::thread::sleep(std::time::Duration::from_millis(500));
    process.signal("TERM");
    let (stopping, signs_of_life) = next();
    assert_eq!(stopping, "STOPPING=1");
    assert!(signs_of_life > 0, "no sign of life");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn connections_are_cut_to_the_files_that_the_process_may_open() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_ds4-coord"));
    let mut process = Process::launch(command, &SERVE);
    let stderr = process.0.stderr.take().expect("piped");
    let lines = Process::lines(stderr, "");
    let address = address_of(&mut process);
    let silent: Vec<_> = (0..120).map(|_| connect(address)).collect();
    let health = get(address, "/health");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    drop(silent);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    let log: Vec<String> = lines.iter().collect();
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("--max-connections is cut"), 1, "{log:?}");
    // Connections that have lost their places close a moment later than others come.
    assert!(count("cannot accept") <= 1, "{log:?}");
}

#[test]
fn more_memory_for_caches_than_there_is_is_warned_of() {
    let mut process = Process::start(&[&SERVE[..], &["--kv-memory", "900TiB"]].concat());
    let line = Process::line(process.0.stderr.take().expect("piped"), "--kv-memory");
    assert!(line.contains("exceeds the memory"), "{line}");
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
}
