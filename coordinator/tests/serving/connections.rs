//! Clients that connect and then misbehave.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ds4_coordinator::commands::metrics;
use ds4_coordinator::http::{self, ConnectionLimits, HostRule, HttpSettings, Site};
use ds4_coordinator::scheduler::SchedulerLimits;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::server::{Server, say, with};

/// No wait of these tests takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

async fn start(connections: usize, header_timeout: Duration) -> Server {
    limited(ConnectionLimits {
        connections,
        header_timeout,
        ..ConnectionLimits::default()
    })
    .await
}

async fn limited(limits: ConnectionLimits) -> Server {
    let (scheduling, settings) = (SchedulerLimits::default(), HttpSettings::default());
    Server::connected(scheduling, settings, limits).await
}

async fn connect(server: &Server) -> TcpStream {
    let address = server.url.strip_prefix("http://").unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// What comes until the server closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut text)).await;
    // A reset is a closed connection as well.
    let _ = read.expect("the server closes the connection");
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_request_whose_head_never_ends_is_closed() {
    let server = start(64, Duration::from_millis(100)).await;
    let mut silent = connect(&server).await;
    assert_eq!(rest(&mut silent).await, "");
    let mut slow = connect(&server).await;
    let beginning = "GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
    slow.write_all(beginning.as_bytes()).await.unwrap();
    let answer = rest(&mut slow).await;
    assert_error(&answer, 408, "request_timeout");
    // One byte now and then does not help.
    let mut slow = connect(&server).await;
    let dripping = async {
        slow.write_all(b"GET /health HTTP/1.1\r\n").await?;
        loop {
            slow.write_all(b"a").await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        #[expect(unreachable_code, reason = "names the type")]
        Ok::<(), std::io::Error>(())
    };
    let ended = tokio::time::timeout(DEADLINE, dripping).await;
    assert!(ended.expect("the connection is closed").is_err());
}

#[tokio::test]
async fn a_slow_answer_does_not_count_as_a_slow_request() {
    let server = start(64, Duration::from_millis(50)).await;
    server.controls.hold();
    let answer = server.chat(say("worth it"));
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.controls.release();
    };
    let (answer, ()) = tokio::join!(answer, release);
    assert_eq!(answer["choices"][0]["message"]["content"], "worth it");
}

#[tokio::test]
async fn silent_connections_delay_nobody() {
    let server = start(2, Duration::from_secs(600)).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(connect(&server).await);
    }
    for _ in 0..3 {
        let answer = ask(&server, "GET /v1/models").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // The first ones have lost their places.
    assert_eq!(rest(&mut silent[0]).await, "");
}

/// The whole answer to a request without a body.
async fn ask(server: &Server, what: &str) -> String {
    let mut client = connect(server).await;
    let request = format!("{what} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    rest(&mut client).await
}

/// A request for an answer of `text`, as bytes.
fn request(text: &str, more: Value) -> String {
    let body = with(say(text), more).to_string();
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// Checks that `answer` is an error of the API.
fn assert_error(answer: &str, status: u16, code: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(head.contains("content-type: application/json"), "{answer}");
    let body: Value = serde_json::from_str(body).expect(answer);
    assert_eq!(body["error"]["code"], code, "{answer}");
    assert!(body["error"]["message"].is_string(), "{answer}");
}

#[tokio::test]
async fn health_and_metrics_have_places_of_their_own() {
    let server = limited(ConnectionLimits {
        connections: 2,
        reserve: 2,
        ..ConnectionLimits::default()
    })
    .await;
    server.controls.hold();
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut client = connect(&server).await;
        let request = request("at last", json!({}));
        client.write_all(request.as_bytes()).await.unwrap();
        busy.push(client);
    }
    // Both in the step that is held, or one that waits for the next.
    let begun = std::time::Instant::now();
    while {
        let status = server.scheduler.status();
        status.running + status.waiting < 2
    } {
        assert!(begun.elapsed() < DEADLINE, "the requests do not arrive");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Silent clients do not get the reserve to themselves either.
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(connect(&server).await);
    }
    for path in ["/health", "/ready", "/live", "/metrics"] {
        let answer = ask(&server, &format!("GET {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let mut client = connect(&server).await;
    let refused = request("no place", json!({}));
    client.write_all(refused.as_bytes()).await.unwrap();
    let answer = rest(&mut client).await;
    assert_error(&answer, 503, "too_many_connections");
    assert!(answer.contains("\r\nretry-after: "), "{answer}");
    server.controls.release();
    for mut client in busy {
        let answer = rest(&mut client).await;
        assert!(answer.contains("at last"), "{answer}");
    }
    let answer = ask(&server, "GET /v1/models").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_client_that_never_reads_loses_its_place_and_its_work() {
    let server = limited(ConnectionLimits {
        write_timeout: Duration::from_millis(500),
        ..ConnectionLimits::default()
    })
    .await;
    server.controls.layer_ms.store(1, Ordering::Relaxed);
    let socket = TcpSocket::new_v4().unwrap();
    // So that a few events fill what the system takes for a client.
    socket.set_recv_buffer_size(2048).unwrap();
    let address = server.url.strip_prefix("http://").unwrap();
    let mut client = socket.connect(address.parse().unwrap()).await.unwrap();
    let endless = request("on and on ", json!({"stream": true, "ignore_eos": true}));
    client.write_all(endless.as_bytes()).await.unwrap();
    server.wait_counts(1, 0).await;
    server.wait_idle().await;
    // By itself the answer would have ended only with the context.
    let steps = server.controls.step_count();
    assert!(steps < server.scheduler.context() / 2, "{steps} steps");
}

#[tokio::test]
async fn a_client_that_sends_nothing_more_gets_its_whole_answer() {
    let server = Server::start().await;
    server.controls.layer_ms.store(20, Ordering::Relaxed);
    for stream in [false, true] {
        let mut client = connect(&server).await;
        let request = request("to the very end", json!({"stream": stream}));
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = rest(&mut client).await;
        // An interim answer asks whether the client is still there.
        let whole = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n");
        let whole = whole.unwrap_or(&answer);
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let end = if stream {
            "data: [DONE]"
        } else {
            "to the very end"
        };
        assert!(whole.contains(end), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_request_is_answered_in_the_form_of_the_api() {
    let server = Server::start().await;
    let long = |n: usize| "x".repeat(n);
    let headers: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    let chunked = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n\
                   transfer-encoding: chunked\r\n";
    let cases: Vec<(String, u16, &str)> = vec![
        ("nonsense\r\n\r\n".into(), 400, "malformed_request"),
        ("GET / HTTP/9.9\r\n\r\n".into(), 400, "malformed_request"),
        (
            "GET /a b c HTTP/1.1\r\n\r\n".into(),
            400,
            "malformed_request",
        ),
        (
            "GET / HTTP/1.1\r\nno colon\r\n\r\n".into(),
            400,
            "malformed_request",
        ),
        (
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".into(),
            400,
            "malformed_request",
        ),
        (
            "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n".into(),
            400,
            "malformed_request",
        ),
        (
            format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", long(100_000)),
            414,
            "uri_too_long",
        ),
        (format!("GET /{}", long(1_000_000)), 414, "uri_too_long"),
        (
            format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", long(1_000_000)),
            431,
            "headers_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\n{headers}\r\n"),
            431,
            "headers_too_large",
        ),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".into(),
            505,
            "http_version",
        ),
        (
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{7f}\u{3}\u{3}".into(),
            400,
            "tls_on_plain_port",
        ),
    ];
    for (bytes, status, code) in cases {
        let mut client = connect(&server).await;
        // The server may have answered and closed before it has read everything.
        let _ = client.write_all(bytes.as_bytes()).await;
        let answer = rest(&mut client).await;
        assert_error(&answer, status, code);
    }
    // The body is read by the API, and so are its errors.
    for body in ["zz\r\n", "ffffffffffffffffff\r\n", "-1\r\n"] {
        let mut client = connect(&server).await;
        let bytes = format!("{chunked}\r\n{body}");
        client.write_all(bytes.as_bytes()).await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body}: {answer}");
        let json = answer.split_once("\r\n\r\n").unwrap_or_default().1;
        let json: Value = serde_json::from_str(json).expect(&answer);
        assert!(json["error"]["message"].is_string(), "{body}: {answer}");
    }
    // An answer before the malformed request is not touched by it.
    let mut client = connect(&server).await;
    let two = "GET /live HTTP/1.1\r\nhost: localhost\r\n\r\nnonsense\r\n\r\n";
    client.write_all(two.as_bytes()).await.unwrap();
    let answer = rest(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
}

#[tokio::test]
async fn a_length_beside_chunks_is_not_a_way_to_smuggle_requests() {
    let server = Server::start().await;
    let mut client = connect(&server).await;
    let bytes = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\
                 transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /live HTTP/1.1\r\n\
                 host: localhost\r\nconnection: close\r\n\r\n";
    client.write_all(bytes.as_bytes()).await.unwrap();
    let answer = rest(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("\"error\""), "{answer}");
}

#[tokio::test]
async fn a_page_that_calls_this_machine_by_its_own_name_gets_nothing() {
    let server = Server::start().await;
    let port = server.url.rsplit_once(':').unwrap().1.to_owned();
    let ask = async |host: &str, path: &str| {
        let request = server.client.get(format!("{}{path}", server.url));
        let origin = format!("http://{host}");
        let request = request.header("host", host).header("origin", origin);
        request.send().await.unwrap()
    };
    for path in ["/", "/health", "/metrics", "/v1/models", "/nothing"] {
        let response = ask(&format!("evil.example:{port}"), path).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], "host_not_allowed", "{path}");
    }
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let response = ask(&format!("{host}:{port}"), "/v1/models").await;
        assert_eq!(response.status(), StatusCode::OK, "{host}");
    }
    // HTTP/1.0 knows no hosts.
    let mut client = connect(&server).await;
    client
        .write_all(b"GET /live HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let answer = rest(&mut client).await;
    assert!(
        answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_server_without_its_model_reports_that_it_loads() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    let (limits, never) = (ConnectionLimits::default(), std::future::pending());
    let metrics = metrics::text(metrics::install_recorder().unwrap());
    let site = Site::new(metrics, HostRule::new(address.ip(), &[]));
    let serving = tokio::spawn(http::serve(listener, site, limits, never));
    let client = reqwest::Client::new();
    let health = client.get(format!("{url}/health")).send().await.unwrap();
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.headers()["retry-after"], "5");
    assert_eq!(health.json::<Value>().await.unwrap()["status"], "loading");
    let ready = client.get(format!("{url}/ready")).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json::<Value>().await.unwrap()["reason"], "loading");
    let live = client.get(format!("{url}/live")).send().await.unwrap();
    assert_eq!(live.status(), StatusCode::OK);
    let metrics = client.get(format!("{url}/metrics")).send().await.unwrap();
    assert_eq!(metrics.status(), StatusCode::OK);
    let metrics = metrics.text().await.unwrap();
    for name in ["ds4_fallback_pieces_total 0", "ds4_fallback_seconds"] {
        assert!(
            metrics.contains(name),
            "{name} is not exported from the start"
        );
    }
    let chat = client.post(format!("{url}/v1/chat/completions"));
    let chat = chat.json(&say("x")).send().await.unwrap();
    assert_eq!(chat.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(chat.headers()["retry-after"], "5");
    let body: Value = chat.json().await.unwrap();
    assert_eq!(body["error"]["code"], "loading");
    serving.abort();
}
