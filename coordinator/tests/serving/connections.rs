//! Clients that connect and then misbehave.

use std::time::Duration;

use ds4_coordinator::http::{self, ConnectionLimits, HttpSettings, Site};
use ds4_coordinator::scheduler::SchedulerLimits;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::server::{Server, say};

/// No wait of these tests takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

async fn start(connections: usize, header_timeout: Duration) -> Server {
    let limits = ConnectionLimits {
        connections,
        header_timeout,
    };
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
    for beginning in ["", "GET /health HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let mut slow = connect(&server).await;
        slow.write_all(beginning.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut slow).await, "", "{beginning:?}");
    }
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
async fn connections_beyond_the_limit_wait_for_one_to_end() {
    let server = start(2, Duration::from_secs(60)).await;
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let idle = [connect(&server).await, connect(&server).await];
    let mut third = connect(&server).await;
    third.write_all(request).await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(200), third.read(&mut byte)).await;
    assert!(early.is_err(), "the limit does not hold");
    drop(idle);
    let answer = rest(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_server_without_its_model_reports_that_it_loads() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (limits, never) = (ConnectionLimits::default(), std::future::pending());
    let serving = tokio::spawn(http::serve(listener, Site::default(), limits, never));
    let client = reqwest::Client::new();
    let health = client.get(format!("{url}/health")).send().await.unwrap();
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.headers()["retry-after"], "5");
    assert_eq!(health.json::<Value>().await.unwrap()["status"], "loading");
    let chat = client.post(format!("{url}/v1/chat/completions"));
    let chat = chat.json(&say("x")).send().await.unwrap();
    assert_eq!(chat.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(chat.headers()["retry-after"], "5");
    let body: Value = chat.json().await.unwrap();
    assert_eq!(body["error"]["code"], "loading");
    serving.abort();
}
