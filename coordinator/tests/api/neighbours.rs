//! Requests that run at the same time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use ds4_coordinator::scheduler::SchedulerLimits;

use crate::script::Act;
use crate::server::{COMPLETIONS, Server, Setup};

async fn server(max_sequences: usize) -> Server {
    let setup = Setup {
        script: |_| Act::Dream,
        // Long enough that requests meet in a step.
        pace: Duration::from_millis(1),
        limits: SchedulerLimits {
            max_sequences,
            chunk: 16,
            ..SchedulerLimits::default()
        },
        ..Setup::default()
    };
    setup.serve().await
}

fn requests() -> Vec<Value> {
    let request = |i: usize| {
        let prompt = format!("{i}").repeat(1 + 13 * i);
        json!({"prompt": prompt, "max_tokens": 20 + i, "seed": i, "temperature": 1.1,
            "top_k": 50, "logprobs": 2})
    };
    (0..10).map(request).collect()
}

fn choice(answer: &Value) -> (Value, Value) {
    (answer["choices"][0].clone(), answer["usage"].clone())
}

#[tokio::test]
async fn each_gets_exactly_what_it_gets_alone() {
    let alone = server(1).await;
    let mut expected = Vec::new();
    for request in requests() {
        expected.push(choice(&alone.ok(COMPLETIONS, &request).await));
    }
    assert_eq!(alone.probe.shared_steps.load(Ordering::SeqCst), 0);

    // Places for all, and fewer places than requests.
    for places in [10, 3] {
        let together = server(places).await;
        let all = requests();
        let answers = join_all(all.iter().map(|body| together.ok(COMPLETIONS, body))).await;
        let answers: Vec<_> = answers.iter().map(choice).collect();
        assert_eq!(answers, expected);
        assert!(together.probe.shared_steps.load(Ordering::SeqCst) > 20);
    }
}

#[tokio::test]
async fn a_short_question_does_not_wait_for_a_long_document() {
    let server = server(2).await;
    // At least 500 steps of prefill.
    let long = json!({"prompt": "long ".repeat(1600), "max_tokens": 1});
    let short = json!({"prompt": "short", "max_tokens": 3});
    let (url, client) = (format!("{}{COMPLETIONS}", server.url), &server.client);
    let reading = tokio::spawn(client.post(&url).json(&long).send());
    crate::server::until("the long prompt is being read", || {
        server.probe.steps.load(Ordering::SeqCst) > 2
    })
    .await;
    server.ok(COMPLETIONS, &short).await;
    assert!(!reading.is_finished());
    assert!(server.probe.steps.load(Ordering::SeqCst) < 100);
    let long = reading.await.expect("no panic").expect("an answer");
    assert_eq!(long.status(), 200);
}
