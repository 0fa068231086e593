//! Clients that leave, queues that fill, servers that stop.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ds4_coordinator::http::HttpSettings;
use ds4_coordinator::scheduler::{SchedulerLimits, SchedulerState};
use futures::StreamExt;
use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::script::PANIC;
use crate::server::{Server, say, with};

const CHAT: &str = "/v1/chat/completions";

fn endless() -> Value {
    with(say("on and on "), json!({"ignore_eos": true}))
}

fn one_place(queue: usize) -> SchedulerLimits {
    SchedulerLimits {
        max_sequences: 1,
        queue,
        ..SchedulerLimits::default()
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_stops_the_work() {
    let server = Server::start().await;
    server.controls.layer_ms.store(5, Ordering::Relaxed);
    let body = with(endless(), json!({"stream": true}));
    let mut bytes = server.post(CHAT, &body).await.bytes_stream();
    bytes.next().await.unwrap().unwrap();
    drop(bytes);
    server.wait_idle().await;
    let steps = server.controls.step_count();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.controls.step_count(), steps);
}

#[tokio::test]
async fn a_client_that_leaves_during_prefill_stops_it_within_a_layer() {
    let server = Server::start().await;
    server.controls.hold();
    let asking = {
        let request = server
            .client
            .post(format!("{}{CHAT}", server.url))
            .json(&say("x"));
        tokio::spawn(request.send())
    };
    server.controls.wait_busy().await;
    asking.abort();
    let _ = asking.await;
    // Until the server has seen that the connection is gone and not only half closed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.controls.release();
    server.wait_idle().await;
    assert_eq!(server.controls.cancelled_chunks.load(Ordering::Relaxed), 1);
    // The layer in which it happened, and none after it.
    assert_eq!(
        server.controls.layers_after_cancel.load(Ordering::Relaxed),
        1
    );
    assert_eq!(server.controls.step_count(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_forgotten() {
    let server = Server::limited(one_place(1)).await;
    server.controls.hold();
    let first = tokio::spawn(
        server
            .client
            .post(format!("{}{CHAT}", server.url))
            .json(&say("a"))
            .send(),
    );
    server.controls.wait_busy().await;
    let second = tokio::spawn(
        server
            .client
            .post(format!("{}{CHAT}", server.url))
            .json(&say("b"))
            .send(),
    );
    server.wait_counts(1, 1).await;
    second.abort();
    let _ = second.await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Its place in the queue is free although the runner is busy.
    let third = tokio::spawn(
        server
            .client
            .post(format!("{}{CHAT}", server.url))
            .json(&say("c"))
            .send(),
    );
    server.wait_counts(1, 1).await;
    server.controls.release();
    for answer in [first, third] {
        assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let server = Arc::new(Server::limited(one_place(2)).await);
    server.controls.hold();
    let accepted: Vec<_> = (0..3)
        .map(|i| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.chat(say(&format!("answer {i}"))).await })
        })
        .collect();
    server.wait_counts(1, 2).await;
    let begun = Instant::now();
    let response = server.post(CHAT, &say("too many")).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&seconds));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "queue_full");
    server.controls.release();
    for (i, answer) in join_all(accepted).await.into_iter().enumerate() {
        let content = format!("answer {i}");
        assert_eq!(answer.unwrap()["choices"][0]["message"]["content"], content);
    }
}

#[tokio::test]
async fn one_client_cannot_hold_all_places() {
    let other = reqwest::Client::new();
    all_places_are_shared(|_| "greedy".into(), &other).await;
}

#[tokio::test]
async fn made_up_keys_cannot_hold_all_places() {
    let other = reqwest::Client::builder().local_address(IpAddr::from([127, 0, 0, 2]));
    all_places_are_shared(|i| format!("made up {i}"), &other.build().unwrap()).await;
}

/// Requests with the keys of `greedy_key` fill the queue; then one of `other` comes, with its own key.
async fn all_places_are_shared(greedy_key: impl Fn(usize) -> String, other: &reqwest::Client) {
    let server = Arc::new(Server::limited(one_place(4)).await);
    server.controls.hold();
    let ask = |client: &reqwest::Client, key: String, text: String| {
        let request = client
            .post(format!("{}{CHAT}", server.url))
            .bearer_auth(key)
            .json(&say(&text));
        tokio::spawn(async move { request.send().await.unwrap() })
    };
    let mut greedy = Vec::new();
    for i in 0..5 {
        greedy.push(ask(&server.client, greedy_key(i), format!("mine {i}")));
        server.wait_counts(1, i).await;
    }
    // The queue is full: the newest request of the client with the most gives way.
    let newcomer = ask(other, "newcomer".into(), "a short word".into());
    let refused = greedy.pop().unwrap().await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(
        refused.json::<Value>().await.unwrap()["error"]["code"],
        "queue_full"
    );
    server.wait_counts(1, 4).await;
    server.controls.release();
    assert_eq!(newcomer.await.unwrap().status(), StatusCode::OK);
    for answer in greedy {
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    }
    // The newcomer got the first place that was free, before three that had come earlier: its
    // prompt is the only one of its length.
    let steps = server.controls.steps.lock().unwrap();
    let prompts: Vec<usize> = steps
        .iter()
        .flatten()
        .map(|chunk| chunk.0)
        .filter(|tokens| *tokens > 1)
        .collect();
    let longest = prompts.iter().max();
    assert_eq!((prompts.len(), prompts.get(1)), (5, longest), "{prompts:?}");
}

#[tokio::test]
async fn requests_at_the_same_time_get_their_own_answers() {
    let server = Server::limited(SchedulerLimits {
        max_sequences: 5,
        chunk: 7,
        ..SchedulerLimits::default()
    })
    .await;
    let texts: Vec<String> = (0..16)
        .map(|i| format!("{}{i}", "word ".repeat(1 + i % 5)))
        .collect();
    let answers = join_all(texts.iter().enumerate().map(|(i, text)| {
        let server = &server;
        async move {
            if i % 2 == 0 {
                let answer = server.chat(say(text)).await;
                answer["choices"][0]["message"]["content"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            } else {
                server.stream(CHAT, say(text)).await.joined("content")
            }
        }
    }));
    assert_eq!(answers.await, texts);
    let steps = server.controls.steps.lock().unwrap();
    assert!(
        steps.iter().any(|step| step.len() > 1),
        "nothing ran together"
    );
    assert!(steps.iter().all(|step| step.len() <= 5));
}

#[tokio::test]
async fn a_long_prompt_keeps_its_stream_alive() {
    let settings = HttpSettings {
        keep_alive: Duration::from_millis(20),
        ..HttpSettings::default()
    };
    let server = Arc::new(Server::with(SchedulerLimits::default(), settings).await);
    server.controls.hold();
    let stream = {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.stream(CHAT, say("at last")).await })
    };
    server.controls.wait_busy().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.controls.release();
    let stream = stream.await.unwrap();
    assert!(stream.comments >= 3, "{} comments", stream.comments);
    assert_eq!(stream.joined("content"), "at last");
}

#[tokio::test]
async fn a_stopping_server_finishes_what_runs_and_takes_nothing_new() {
    let server = Arc::new(Server::start().await);
    server.controls.layer_ms.store(2, Ordering::Relaxed);
    let running = {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.stream(CHAT, say("to the very end")).await })
    };
    server.wait_counts(1, 0).await;
    server.scheduler.close();
    let response = server.get("/health").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        response.json::<Value>().await.unwrap()["status"],
        "draining"
    );
    let refused = server.post(CHAT, &say("late")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "shutting_down");
    assert!(server.scheduler.shut_down(Duration::from_secs(20)).await);
    assert_eq!(running.await.unwrap().joined("content"), "to the very end");
    assert_eq!(server.scheduler.status().state, SchedulerState::Stopped);
}

#[tokio::test]
async fn a_server_whose_grace_ends_cuts_requests_off_and_tells_them() {
    let server = Arc::new(Server::limited(one_place(5)).await);
    server.controls.layer_ms.store(2, Ordering::Relaxed);
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.stream(CHAT, endless()).await })
        })
        .collect();
    server.wait_counts(1, 1).await;
    let begun = Instant::now();
    assert!(!server.scheduler.shut_down(Duration::from_millis(50)).await);
    assert!(begun.elapsed() < Duration::from_secs(2));
    for client in clients {
        let stream = client.await.unwrap();
        assert_eq!(stream.errors[0]["error"]["code"], "shutting_down");
        assert!(stream.done);
    }
}

#[tokio::test]
async fn a_dead_engine_is_reported_to_all_and_by_health() {
    let server = Arc::new(Server::limited(one_place(5)).await);
    server.controls.hold();
    let ask = |text: &'static str| {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.post(CHAT, &say(text)).await.status() })
    };
    let fatal = ask(PANIC);
    server.wait_counts(1, 0).await;
    let behind = ask("waits behind it");
    server.wait_counts(1, 1).await;
    server.controls.release();
    for status in [fatal, behind] {
        assert_eq!(status.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    }
    server.scheduler.stopped().await;
    let response = server.post(CHAT, &say("still running")).await;
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "engine_stopped");
    assert_eq!(
        server.get("/health").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
}
