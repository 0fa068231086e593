//! The load: generations that run all the time, each with a known answer.

use std::io::{BufRead, BufReader};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::blocking::Client;
use serde_json::{Value, json};

/// The longest time for one answer, more than any number of events may cost it.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Number of different requests.
pub(crate) const REQUESTS: usize = 8;

/// All that a client sees of an answer, except its times.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    text: String,
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    finish: Value,
    usage: Value,
}

/// One answered request.
#[derive(Clone, Debug)]
pub(crate) struct Timed {
    pub(crate) request: usize,
    pub(crate) took: Duration,
    /// Times from one token to the next.
    pub(crate) gaps: Vec<Duration>,
}

/// The results of all requests to one coordinator.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) answered: Vec<Timed>,
    /// Requests that were not answered, with their errors.
    pub(crate) failed: Vec<String>,
    /// Requests whose answer is not the expected one, with both answers.
    pub(crate) differing: Vec<String>,
}

impl Outcome {
    pub(crate) fn tokens(&self) -> usize {
        self.answered.iter().map(|timed| timed.gaps.len() + 1).sum()
    }
}

/// A request that always has the same answer: greedy, or drawn with a fixed seed.
fn body(request: usize) -> Value {
    const PROMPTS: [&str; REQUESTS / 2] = [
        "Some text that the model reads before it goes on",
        "Hello",
        "A prompt of many words, so that the nodes get batches of many tokens and not only single \
         ones; it goes on for a while, says nothing, and ends here, or rather here.",
        "1 2 3 4 5 6 7 8 9",
    ];
    let mut body = json!({
        "prompt": PROMPTS[request / 2],
        "max_tokens": 16 + 5 * (request % 5),
        "temperature": 0,
        "ignore_eos": true,
        "logprobs": 2,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if request % 2 == 1 {
        body["temperature"] = json!(1.0);
        body["seed"] = json!(request);
    }
    body
}

/// Sends a request and reads the stream to its end.
pub(crate) fn ask(client: &Client, url: &str, request: usize) -> Result<(Answer, Timed)> {
    let start = Instant::now();
    let mut last = start;
    let (mut answer, mut gaps) = (Answer::default(), Vec::new());
    let sent = client
        .post(format!("{url}/v1/completions"))
        .json(&body(request))
        .send()?;
    let status = sent.status();
    ensure!(status.is_success(), "{status}: {}", sent.text()?);
    let mut whole = false;
    for line in BufReader::new(sent).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        whole = data == "[DONE]";
        if whole {
            break;
        }
        let event: Value = serde_json::from_str(data).with_context(|| data.to_owned())?;
        ensure!(event.get("error").is_none(), "{data}");
        let tokens = answer.tokens.len();
        take(&mut answer, &event);
        if answer.tokens.len() > tokens {
            let now = Instant::now();
            if tokens > 0 {
                gaps.push(now - last);
            }
            last = now;
        }
    }
    ensure!(whole, "the stream ended without [DONE]: {answer:?}");
    let took = start.elapsed();
    Ok((
        answer,
        Timed {
            request,
            took,
            gaps,
        },
    ))
}

fn take(answer: &mut Answer, event: &Value) {
    if !event["usage"].is_null() {
        answer.usage = event["usage"].clone();
    }
    let choice = &event["choices"][0];
    answer.text += choice["text"].as_str().unwrap_or_default();
    if !choice["finish_reason"].is_null() {
        answer.finish = choice["finish_reason"].clone();
    }
    for (key, all) in [
        ("tokens", &mut answer.tokens),
        ("token_logprobs", &mut answer.logprobs),
    ] {
        all.extend(
            choice["logprobs"][key]
                .as_array()
                .into_iter()
                .flatten()
                .cloned(),
        );
    }
}

pub(crate) fn client() -> Client {
    let client = Client::builder()
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(16);
    client.build().expect("client")
}

/// Keeps `streams` requests running until `done`, and compares each answer with the expected one.
pub(crate) fn run(url: &str, streams: usize, expected: &[Answer], done: &AtomicBool) -> Outcome {
    let outcome = Mutex::new(Outcome::default());
    let next = AtomicUsize::new(0);
    let client = client();
    let stream = || {
        while !done.load(Ordering::SeqCst) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let request = number % REQUESTS;
            let found = ask(&client, url, request);
            let mut outcome = outcome.lock().expect("no panic");
            match found {
                Ok((answer, timed)) => {
                    if answer != expected[request] {
                        let wanted = &expected[request];
                        let text = format!("{number}: {answer:?} instead of {wanted:?}");
                        outcome.differing.push(text);
                    }
                    outcome.answered.push(timed);
                }
                Err(error) => {
                    outcome.failed.push(format!("{number}: {error:#}"));
                    // Keeps a lasting failure from being reported a thousand times.
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(stream);
        }
    });
    outcome.into_inner().expect("no panic")
}
