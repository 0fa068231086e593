//! The program itself with its reference model: how it starts, answers and ends.

mod signals;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The longest wait of these tests.
const DEADLINE: Duration = Duration::from_secs(60);

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already unless a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(args: &[&str]) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_ds4-coord"));
        Self::launch(command, args)
    }

    /// As [`Self::start`], with a command that also says in which surroundings.
    fn launch(mut command: Command, args: &[&str]) -> Self {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DS4_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Process(child.expect("the program starts"))
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.0.id());
        let status = Command::new("sh").args(["-c", &kill]).status();
        assert!(status.expect("a shell").success());
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < until, "the program still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The first line of `pipe` that contains `wanted`. The rest is read and dropped.
    fn line(pipe: impl Read + Send + 'static, wanted: &'static str) -> String {
        let lines = Self::lines(pipe, wanted);
        lines.recv_timeout(DEADLINE).expect("the line")
    }

    /// The lines of `pipe` that contain `wanted`, as they come.
    fn lines(pipe: impl Read + Send + 'static, wanted: &'static str) -> mpsc::Receiver<String> {
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let found = |line: &String| line.contains(wanted);
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if found(&line) {
                    let _ = send.send(line);
                }
            }
        });
        lines
    }

    fn output(mut self) -> (ExitStatus, String, String) {
        // The output is small enough for the pipes, so it can be read after the end.
        let status = self.wait();
        let (mut out, mut err) = (String::new(), String::new());
        let mut stdout = self.0.stdout.take().expect("piped");
        stdout.read_to_string(&mut out).expect("text");
        let mut stderr = self.0.stderr.take().expect("piped");
        stderr.read_to_string(&mut err).expect("text");
        (status, out, err)
    }
}

const SERVE: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--threads", "1"];

fn serve() -> (Process, SocketAddr) {
    let mut process = Process::start(&SERVE);
    let stderr = process.0.stderr.take().expect("piped");
    std::thread::spawn(move || std::io::copy(&mut BufReader::new(stderr), &mut std::io::sink()));
    let address = address_of(&mut process);
    (process, address)
}

/// The address that a server prints when it is ready.
fn address_of(process: &mut Process) -> SocketAddr {
    let url = Process::line(process.0.stdout.take().expect("piped"), "http://");
    let address = url.strip_prefix("http://").expect("a URL");
    address.parse().expect("an address")
}

/// The response to a GET request, head and body.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = connect(address);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

/// A stream of this many tokens, of which the first has been read.
fn stream(address: SocketAddr, tokens: usize) -> BufReader<TcpStream> {
    let body = format!(
        "{{\"prompt\": \"a\", \"max_tokens\": {tokens}, \"ignore_eos\": true, \"stream\": true}}"
    );
    let mut stream = connect(address);
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("written");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a line") > 0);
    }
    reader
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a time limit");
    stream
}

#[test]
fn a_server_answers_and_ends_on_a_signal_with_idle_connections_open() {
    for signal in ["TERM", "INT"] {
        let (mut process, address) = serve();
        let body = r#"{"prompt": "a", "max_tokens": 3, "temperature": 0}"#;
        let mut used = connect(address);
        write!(
            used,
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("written");
        let mut status = String::new();
        let mut used = BufReader::new(used);
        used.read_line(&mut status).expect("a status line");
        assert_eq!(status, "HTTP/1.1 200 OK\r\n");
        let until = Instant::now() + DEADLINE;
        while !get(address, "/metrics").contains("\nds4_requests_running 0\n") {
            assert!(
                Instant::now() < until,
                "an idle server still counts a running request"
            );
        }
        let _silent = connect(address);
        let began = Instant::now();
        process.signal(signal);
        assert_eq!(process.wait().code(), Some(0), "{signal}");
        assert!(began.elapsed() < Duration::from_secs(10), "{signal}");
        drop(used);
    }
}

#[test]
fn a_running_answer_is_finished_and_a_second_signal_does_not_wait() {
    let (mut process, address) = serve();
    let (mut short, mut long) = (stream(address, 40), stream(address, 4000));
    process.signal("TERM");
    let mut rest = String::new();
    short.read_to_string(&mut rest).expect("the whole answer");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    process.signal("TERM");
    rest.clear();
    long.read_to_string(&mut rest).expect("an end");
    assert!(
        rest.contains("shutting_down"),
        "the second signal did not end the long answer"
    );
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_server_that_waits_for_its_nodes_reports_loading_and_can_be_stopped() {
    // Nothing listens on the discard port.
    let args = ["serve", "--listen", "127.0.0.1:0", "--nodes", "127.0.0.1:9"];
    let mut process = Process::start(&args);
    let stderr = process.0.stderr.take().expect("piped");
    let line = Process::line(stderr, "listening on http://");
    let address = line.split_once("http://").expect("a URL").1;
    let address = address.split_once(',').expect("more").0;
    let health = get(address.parse().expect("an address"), "/health");
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
    assert!(health.contains("\"loading\""), "{health}");
    process.signal("INT");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_conversation_through_a_pipe() {
    let args = [
        "chat",
        "--max-tokens",
        "4",
        "--temperature",
        "0",
        "--no-think",
        "--threads",
        "1",
    ];
    let ask = |lines: &str| {
        let mut process = Process::start(&args);
        let mut stdin = process.0.stdin.take().expect("piped");
        stdin.write_all(lines.as_bytes()).expect("written");
        drop(stdin);
        process.output()
    };
    let (status, once, reports) = ask("hello\n");
    assert_eq!(status.code(), Some(0), "{reports}");
    assert!(once.ends_with('\n') && once.len() > 1, "{once:?}");
    // Only the speed: there is no progress bar unless standard error is a terminal.
    assert_eq!(reports.lines().count(), 1, "{reports}");
    assert!(reports.contains("4 written"), "{reports}");
    let (status, twice, _) = ask("hello\n/reset\n\nhello");
    assert_eq!(status.code(), Some(0));
    assert_eq!(twice, once.repeat(2));

    let (status, _, reports) = ask(&"word ".repeat(6000));
    assert_eq!(status.code(), Some(1));
    assert_eq!(reports.lines().count(), 1, "{reports}");
    assert!(reports.contains("the context holds 4096"), "{reports}");
}

#[test]
fn start_up_errors_are_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    for (args, said) in [
        (vec!["serve", "--listen", &taken], "--listen"),
        (
            vec!["serve", "--listen", "127.0.0.1:0", "-m", "/nowhere.gguf"],
            "/nowhere.gguf",
        ),
        (vec!["chat", "-m", "/dev/null"], "/dev/null"),
        (vec!["chat", "--kv-memory", "64KiB"], "64KiB"),
    ] {
        let args = [args, vec!["--log", "error"]].concat();
        let (status, out, err) = Process::start(&args).output();
        assert_eq!(status.code(), Some(1), "{args:?}: {err}");
        assert_eq!(
            (out.as_str(), err.lines().count()),
            ("", 1),
            "{args:?}: {err}"
        );
        assert!(err.contains(said), "{args:?}: {err}");
    }
}
