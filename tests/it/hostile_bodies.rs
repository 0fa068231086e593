//! Bodies made to cost much more than they are worth, against a real coordinator: what they cost in
//! memory, and what others notice of them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ds4_tests::process::{Server, peak_bytes, reset_peak, resident_bytes};
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const MIB: u64 = 1 << 20;

fn start(args: &[&str]) -> Server {
    let mut all = vec!["serve", "--listen=127.0.0.1:0"];
    all.extend(args);
    Server::start(COORD, &all).expect("coordinator")
}

fn client() -> Client {
    let builder = Client::builder().timeout(Duration::from_secs(120));
    builder.build().expect("client")
}

fn post(url: &str, path: &str, body: impl Into<Vec<u8>>) -> Response {
    let request = client().post(format!("{url}{path}"));
    request.body(body.into()).send().expect("an answer")
}

/// A chat request that must be answered.
fn hello(url: &str) {
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2});
    assert_eq!(post(url, CHAT, body.to_string()).status(), 200);
}

fn filled(head: &str, unit: &str, tail: &str, size: usize) -> String {
    let room = size - head.len() - tail.len() - 1;
    let mut body = String::with_capacity(size);
    body.push_str(head);
    while body.len() + unit.len() + 1 < head.len() + room {
        body.push_str(unit);
    }
    body.pop();
    body.push_str(tail);
    body
}

/// Bodies whose entries are as short as JSON allows, or one word, or nested as deep as they are long.
fn bombs(size: usize) -> Vec<(&'static str, &'static str, String)> {
    let fill = |head, unit, tail| filled(head, unit, tail, size);
    let one_word = |path, head, tail| (path, "one word", fill(head, "aaaaaaaaaaaaaaaa", tail));
    vec![
        (CHAT, "zeros", fill(r#"{"messages":["#, "0,", "]}")),
        (CHAT, "lists", fill(r#"{"messages":["#, "[],", "]}")),
        (
            CHAT,
            "unknown",
            fill(r#"{"messages":[],"x":["#, r#"{"":0},"#, "]}"),
        ),
        (CHAT, "names", fill(r#"{"messages":[],"#, r#""":0,"#, "}")),
        (
            CHAT,
            "messages",
            fill(r#"{"messages":["#, r#"{"role":"user","content":""},"#, "]}"),
        ),
        (
            CHAT,
            "parts",
            fill(
                r#"{"messages":[{"role":"user","content":["#,
                r#"{"type":"text","text":""},"#,
                "]}]}",
            ),
        ),
        (
            CHAT,
            "arguments",
            fill(
                r#"{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":["#,
                "0,",
                "]}}}]}]}",
            ),
        ),
        (
            CHAT,
            "tools",
            fill(
                r#"{"messages":[],"tools":[{"function":{"name":"f","parameters":{"a":["#,
                "0,",
                "]}}}]}",
            ),
        ),
        (CHAT, "depth", fill(r#"{"messages":"#, "[[", "}")),
        (
            CHAT,
            "stops",
            fill(r#"{"messages":[],"stop":["#, r#""a","#, "]}"),
        ),
        (
            CHAT,
            "a stop",
            fill(r#"{"messages":[],"stop":[""#, "aaaa", r#""]}"#),
        ),
        one_word(
            CHAT,
            r#"{"messages":[{"role":"user","content":""#,
            r#""}]}"#,
        ),
        (
            CHAT,
            "escapes",
            fill(
                r#"{"messages":[{"role":"user","content":""#,
                r"\u0061",
                r#"1"}]}"#,
            ),
        ),
        (TEXT, "ids", fill(r#"{"prompt":["#, "0,", "]}")),
        one_word(TEXT, r#"{"prompt":""#, r#""}"#),
        (TEXT, "words", fill(r#"{"prompt":""#, "a b ", r#""}"#)),
    ]
}

#[test]
fn a_body_takes_at_most_four_times_its_size() {
    let server = start(&["--body-limit=16MiB"]);
    let url = server.ready.as_str();
    hello(url);
    let size = 6 << 20;
    for (path, name, body) in bombs(size) {
        let before = resident_bytes(server.id()).expect("resident");
        reset_peak(server.id()).expect("reset");
        let reply = post(url, path, body);
        assert_eq!(reply.status(), 400, "{name}");
        assert!(reply.text().expect("text").len() < 1000, "{name}");
        let peak = peak_bytes(server.id())
            .expect("peak")
            .saturating_sub(before);
        println!("{name}: {} MiB", peak / MIB);
        assert!(
            peak <= 4 * size as u64 + 4 * MIB,
            "{name}: {} MiB",
            peak / MIB
        );
    }
    hello(url);
}

#[test]
fn bodies_of_many_clients_share_one_budget() {
    // Four bodies beside the least: 4 x 4 + 32 + 16 MiB.
    let budget = 64 * MIB;
    let server = start(&["--body-limit=4MiB", "--body-memory=64MiB"]);
    let url = server.ready.as_str();
    hello(url);
    let before = resident_bytes(server.id()).expect("resident");
    let text = "many words ".repeat((4 << 20) / 11 - 20);
    let body = json!({"prompt": text}).to_string();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..64)
            .map(|_| scope.spawn(|| post(url, TEXT, body.clone()).status().as_u16()))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("ends"))
            .collect()
    });
    // Too long for the context, or no room for it within the time that a body waits.
    assert!(
        statuses.iter().all(|status| [400, 503].contains(status)),
        "{statuses:?}"
    );
    assert!(statuses.contains(&400));
    let peak = peak_bytes(server.id()).expect("peak") - before;
    println!("{} MiB, {statuses:?}", peak / MIB);
    assert!(peak <= budget + budget / 10, "{} MiB", peak / MIB);
    hello(url);
}

/// A request whose body never ends.
fn unfinished(url: &str, length: usize, sent: usize) -> TcpStream {
    let address = url.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).expect("connected");
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .expect("timeout");
    let body = [head.as_bytes(), &vec![b' '; sent]].concat();
    // The server may take no more of it.
    let _ = stream.write_all(&body);
    stream
}

#[test]
fn senders_that_stall_hold_no_memory_from_others() {
    let budget = 64 * MIB;
    let server = start(&["--body-limit=4MiB", "--body-memory=64MiB"]);
    let url = server.ready.as_str();
    hello(url);
    let before = resident_bytes(server.id()).expect("resident");
    let mut stalled: Vec<TcpStream> = (0..12)
        .map(|_| unfinished(url, 4 << 20, (4 << 20) - 1))
        .collect();
    // A small request needs none of it, and a large one gets it from those who send nothing.
    hello(url);
    let text = "many words ".repeat(300_000);
    assert_eq!(
        post(url, TEXT, json!({"prompt": text}).to_string()).status(),
        400
    );
    let peak = peak_bytes(server.id()).expect("peak") - before;
    assert!(peak <= budget + budget / 10, "{} MiB", peak / MIB);
    // One of them learns why.
    let told = stalled.iter_mut().any(|stream| {
        let mut reply = [0; 200];
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("timeout");
        let read = stream.read(&mut reply).unwrap_or(0);
        String::from_utf8_lossy(&reply[..read]).contains("408")
    });
    assert!(told, "no sender was told");
}

/// Reads a stream of answers for as long as `go_on` says; returns the tokens and the longest gap.
fn watch(url: &str, tokens: usize) -> (Duration, Duration) {
    let body = json!({
        "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": true, "stream": true,
        "temperature": 0,
    });
    let mut reply = post(url, TEXT, body.to_string());
    assert_eq!(reply.status(), 200);
    let mut buffer = [0; 4096];
    let begun = Instant::now();
    let (mut last, mut longest) = (begun, Duration::ZERO);
    while reply.read(&mut buffer).expect("a stream") > 0 {
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    (begun.elapsed(), longest)
}

#[test]
fn a_stream_keeps_its_pace_and_health_answers_beside_hostile_bodies() {
    let server = start(&["--body-limit=16MiB"]);
    let url = server.ready.as_str();
    let (alone, _) = watch(url, 400);
    let over = AtomicBool::new(false);
    let bombs = bombs(8 << 20);
    let (beside, health) = std::thread::scope(|scope| {
        let attackers: Vec<_> = (0..2)
            .map(|at| {
                let (over, bombs) = (&over, &bombs);
                scope.spawn(move || {
                    let mut sent = 0;
                    for (path, _, body) in bombs.iter().cycle().skip(at * 7) {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        post(url, path, body.clone());
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        let prober = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            let client = client();
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let reply = client.get(format!("{url}/health")).send().expect("health");
                assert_eq!(reply.json::<Value>().expect("json")["status"], "ok");
                longest = longest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            longest
        });
        let beside = watch(url, 400);
        over.store(true, Ordering::Relaxed);
        let sent: usize = attackers.into_iter().map(|a| a.join().expect("ends")).sum();
        assert!(sent > 0);
        (beside, prober.join().expect("ends"))
    });
    println!("400 tokens: {alone:?} alone, {beside:?} beside, health {health:?}");
    // Generous, because this machine also runs the attackers: parsed on the async threads, or
    // matched against stop texts of megabytes, it was more than twenty times as long.
    let bound = 6 * alone + Duration::from_secs(1);
    assert!(beside.0 < bound, "{beside:?} beside, {alone:?} alone");
    assert!(health < bound, "{health:?}");
}
