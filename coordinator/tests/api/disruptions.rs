//! Clients that leave, queues that are full, servers that end, models that die.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use ds4_coordinator::scheduler::{Health, SchedulerLimits};

use crate::script::{Act, say};
use crate::server::{CHAT, COMPLETIONS, DEADLINE, Server, Setup, error_of, serve, until};

/// Sends a request and gives the task that waits for the answer.
fn send(server: &Server, body: Value) -> tokio::task::JoinHandle<(u16, Value)> {
    let url = format!("{}{COMPLETIONS}", server.url);
    let request = server.client.post(url).json(&body).send();
    tokio::spawn(async move {
        let response = request.await.expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().await.expect("JSON"))
    })
}

async fn finished<T>(task: tokio::task::JoinHandle<T>) -> T {
    let task = tokio::time::timeout(DEADLINE, task).await;
    task.expect("in time").expect("no panic")
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_work_inside_the_step() {
    for stream in [false, true] {
        let server = serve(|_| Act::HangUntilCancelled).await;
        let task = send(&server, json!({"prompt": "x", "stream": stream}));
        let probe = &server.probe;
        until("the model works", || {
            probe.hangs.load(Ordering::SeqCst) == 1
        })
        .await;
        task.abort();
        until("the model sees it", || {
            probe.cancels_seen.load(Ordering::SeqCst) == 1
        })
        .await;
        until("the place is free", || {
            server.scheduler.status().running == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_amid_a_stream_stops_the_answer() {
    let setup = Setup {
        script: |_| Act::Repeat("</think>on and on ".into()),
        pace: Duration::from_millis(1),
        context: 1_000_000,
        ..Setup::default()
    };
    let server = setup.serve().await;
    let messages = json!([{"role": "user", "content": "x"}]);
    let body = json!({"messages": messages, "stream": true});
    let mut stream = server.post(CHAT, &body).await.bytes_stream();
    for _ in 0..3 {
        stream.next().await.expect("a chunk").expect("no error");
    }
    assert_eq!(server.scheduler.status().running, 1);
    drop(stream);
    until("the place is free", || {
        server.scheduler.status().running == 0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_never_begun() {
    let setup = Setup {
        script: |_| Act::HangUntilReleased,
        limits: SchedulerLimits {
            max_sequences: 1,
            queue: 1,
            ..SchedulerLimits::default()
        },
        ..Setup::default()
    };
    let server = setup.serve().await;
    let first = send(&server, json!({"prompt": "first"}));
    until("the first runs", || {
        server.probe.hangs.load(Ordering::SeqCst) == 1
    })
    .await;
    let second = send(&server, json!({"prompt": "second"}));
    until("the second waits", || {
        server.scheduler.status().waiting == 1
    })
    .await;
    second.abort();
    // Its place in the queue is free once the server has seen it leave.
    let mut third = send(&server, json!({"prompt": "third"}));
    while finished_with(&mut third, 429).await {
        third = send(&server, json!({"prompt": "third"}));
    }
    server.probe.release();
    assert_eq!(finished(first).await.0, 200);
    assert_eq!(finished(third).await.0, 200);
    assert_eq!(server.probe.prompts().len(), 2);
}

/// Whether the request was answered with `status` soon.
async fn finished_with(task: &mut tokio::task::JoinHandle<(u16, Value)>, status: u16) -> bool {
    let answer = tokio::time::timeout(Duration::from_millis(200), task).await;
    answer.is_ok_and(|answer| answer.expect("no panic").0 == status)
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let setup = Setup {
        script: |_| Act::HangUntilReleased,
        limits: SchedulerLimits {
            max_sequences: 1,
            queue: 1,
            ..SchedulerLimits::default()
        },
        ..Setup::default()
    };
    let server = setup.serve().await;
    let first = send(&server, json!({"prompt": "first"}));
    until("the first runs", || {
        server.probe.hangs.load(Ordering::SeqCst) == 1
    })
    .await;
    let second = send(&server, json!({"prompt": "second"}));
    until("the second waits", || {
        server.scheduler.status().waiting == 1
    })
    .await;
    let health: Value = server.get("/health").await.json().await.expect("JSON");
    assert_eq!(
        (&health["running"], &health["waiting"]),
        (&json!(1), &json!(1))
    );
    for stream in [false, true] {
        let body = json!({"prompt": "third", "stream": stream});
        let response = server.post(COMPLETIONS, &body).await;
        let wait = response.headers()["retry-after"].to_str().expect("text");
        assert!((1..=60).contains(&wait.parse::<u64>().expect("a number")));
        assert_eq!(error_of(response, 429).await["code"], "queue_full");
    }
    server.probe.release();
    assert_eq!(finished(first).await.0, 200);
    assert_eq!(finished(second).await.0, 200);
}

#[tokio::test]
async fn who_waits_too_long_is_told_so() {
    let setup = Setup {
        script: |_| Act::Repeat("x".into()),
        pace: Duration::from_millis(2),
        limits: SchedulerLimits {
            max_sequences: 1,
            max_wait: Duration::from_millis(50),
            ..SchedulerLimits::default()
        },
        ..Setup::default()
    };
    let server = setup.serve().await;
    let long = send(&server, json!({"prompt": "x", "max_tokens": 9000}));
    until("it runs", || server.scheduler.status().running == 1).await;
    let late = server
        .refused(COMPLETIONS, &json!({"prompt": "y"}), 503)
        .await;
    assert_eq!(late["code"], "queue_timeout");
    long.abort();
}

#[tokio::test]
async fn a_closing_server_finishes_what_it_has_and_takes_no_more() {
    let mut server = serve(|_| Act::HangUntilReleased).await;
    let running = send(&server, json!({"prompt": "x"}));
    until("it runs", || server.probe.hangs.load(Ordering::SeqCst) == 1).await;
    server.scheduler.close();
    let refused = server
        .refused(COMPLETIONS, &json!({"prompt": "y"}), 503)
        .await;
    assert_eq!(refused["code"], "shutting_down");
    error_of_health(&server, "draining").await;
    server.close();
    let shutting_down = {
        let scheduler = server.scheduler.clone();
        tokio::spawn(async move { scheduler.shut_down(DEADLINE).await })
    };
    server.probe.release();
    assert_eq!(finished(running).await.0, 200);
    assert!(finished(shutting_down).await);
    server.closed().await;
}

async fn error_of_health(server: &Server, word: &str) {
    let response = server.get("/health").await;
    assert_eq!(response.status(), 503);
    let health: Value = response.json().await.expect("JSON");
    assert_eq!(health["status"], word);
}

#[tokio::test]
async fn what_is_not_finished_in_time_is_cut_off_with_an_answer() {
    let server = serve(|_| Act::HangUntilCancelled).await;
    let running = send(&server, json!({"prompt": "x"}));
    until("it runs", || server.probe.hangs.load(Ordering::SeqCst) == 1).await;
    assert!(!server.scheduler.shut_down(Duration::ZERO).await);
    let (status, answer) = finished(running).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (503, &json!("shutting_down"))
    );
    server.closed().await;
}

#[tokio::test]
async fn idle_connections_do_not_keep_a_closing_server() {
    let mut server = serve(|_| say("x")).await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let silent = TcpStream::connect(&address).await.expect("a connection");
    let mut idle = TcpStream::connect(&address).await.expect("a connection");
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("written");
    let mut answer = [0; 15];
    idle.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    server.close();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(DEADLINE, idle.read_to_end(&mut rest)).await;
    end.expect("the server hangs up").expect("no error");
    drop(silent);
    server.closed().await;
}

#[tokio::test]
async fn a_model_that_dies_is_reported_and_not_waited_for() {
    let server = serve(|_| Act::Panic).await;
    let error = server
        .refused(COMPLETIONS, &json!({"prompt": "x"}), 503)
        .await;
    assert_eq!(error["code"], "engine_stopped");
    until("it is known", || {
        server.scheduler.status().health == Health::Stopped
    })
    .await;
    server
        .refused(COMPLETIONS, &json!({"prompt": "x"}), 503)
        .await;
    error_of_health(&server, "stopped").await;
}
