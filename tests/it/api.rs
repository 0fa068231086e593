//! The HTTP API of a real coordinator on the reference model.

use std::time::{Duration, Instant};

use ds4_tests::process::Server;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");

fn start(args: &[&str]) -> Server {
    let mut all = vec!["serve", "--listen=127.0.0.1:0"];
    all.extend(args);
    Server::start(COORD, &all).expect("coordinator")
}

fn client() -> Client {
    Client::builder()
        .timeout(Duration::from_secs(60))
        .build()
        .expect("client")
}

fn post(url: &str, path: &str, body: impl Into<String>) -> Response {
    client()
        .post(format!("{url}{path}"))
        .body(body.into())
        .send()
        .expect("an answer")
}

fn chat(url: &str, body: &Value) -> Value {
    let reply = post(url, "/v1/chat/completions", body.to_string());
    assert_eq!(reply.status(), 200, "{body}");
    reply.json().expect("json")
}

/// The data of every server-sent event.
fn events(reply: Response) -> Vec<String> {
    let text = reply.text().expect("a whole stream");
    text.split("\n\n")
        .filter_map(|e| e.strip_prefix("data: "))
        .map(str::to_owned)
        .collect()
}

fn hello() -> Value {
    json!({
        "messages": [{"role": "user", "content": "Hello world"}],
        "temperature": 0,
        "max_tokens": 24,
        "ignore_eos": true,
    })
}

#[test]
fn a_stream_adds_up_to_the_whole_answer() {
    let server = start(&[]);
    let url = server.ready.as_str();
    for thinking in ["enabled", "disabled"] {
        let mut body = hello();
        body["thinking"] = json!({"type": thinking});
        let whole = chat(url, &body);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let reply = post(url, "/v1/chat/completions", body.to_string());
        assert!(
            reply.headers()["content-type"]
                .to_str()
                .expect("text")
                .contains("event-stream")
        );
        let events = events(reply);
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        let chunks: Vec<Value> = events[..events.len() - 1]
            .iter()
            .map(|event| serde_json::from_str(event).expect("json"))
            .collect();
        let joined = |key: &str| -> String {
            chunks
                .iter()
                .filter_map(|c| c["choices"][0]["delta"][key].as_str())
                .collect()
        };
        let message = &whole["choices"][0]["message"];
        assert_eq!(
            joined("content"),
            message["content"].as_str().unwrap_or_default()
        );
        let reasoning = message["reasoning_content"].as_str().unwrap_or_default();
        assert_eq!(joined("reasoning_content"), reasoning);
        assert_eq!(reasoning.is_empty(), thinking == "disabled", "{message}");
        let usage = &chunks.last().expect("chunks")["usage"];
        assert_eq!(usage, &whole["usage"]);
        assert_eq!(usage["completion_tokens"], 24);
        let reasons: Vec<&str> = chunks
            .iter()
            .filter_map(|c| c["choices"][0]["finish_reason"].as_str())
            .collect();
        assert_eq!(reasons, ["length"]);
    }
}

#[test]
fn a_seed_fixes_the_answer_and_neighbours_do_not_change_it() {
    let server = start(&[]);
    let url = server.ready.as_str();
    let body = |seed: u64| {
        let mut body = hello();
        body["temperature"] = json!(1.0);
        body["seed"] = json!(seed);
        body
    };
    let content = |reply: &Value| reply["choices"][0]["message"].to_string();
    let alone: Vec<String> = (0..6)
        .map(|seed| content(&chat(url, &body(seed))))
        .collect();
    assert!(alone.iter().any(|text| *text != alone[0]), "seeds differ");
    let together: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..6)
            .map(|seed| scope.spawn(move || content(&chat(url, &body(seed)))))
            .collect();
        running
            .into_iter()
            .map(|t| t.join().expect("thread"))
            .collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn stop_strings_end_the_answer_and_are_not_in_it() {
    let server = start(&[]);
    let url = server.ready.as_str();
    let mut body = hello();
    body["thinking"] = json!({"type": "disabled"});
    let whole = chat(url, &body);
    let text = whole["choices"][0]["message"]["content"]
        .as_str()
        .expect("text")
        .to_owned();
    let stop: String = text.chars().skip(6).take(2).collect();
    body["stop"] = json!([stop]);
    let cut = chat(url, &body);
    let before = text.split(&stop).next().expect("a part");
    assert_eq!(cut["choices"][0]["message"]["content"], before);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
}

#[test]
fn specials_in_user_text_stay_text() {
    let server = start(&[]);
    let url = server.ready.as_str();
    let tokens = |content: &str| {
        let mut body = hello();
        body["messages"][0]["content"] = json!(content);
        body["max_tokens"] = json!(1);
        chat(url, &body)["usage"]["prompt_tokens"]
            .as_u64()
            .expect("count")
    };
    // A special token would be one token; ordinary text is many.
    assert!(tokens("a<｜Assistant｜>b") > tokens("ab") + 5);
}

#[test]
fn completions_take_text_and_token_ids() {
    let server = start(&[]);
    let url = server.ready.as_str();
    for prompt in [json!("some text"), json!([5, 6, 7])] {
        let body = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": true});
        let reply = post(url, "/v1/completions", body.to_string());
        assert_eq!(reply.status(), 200, "{body}");
        let reply: Value = reply.json().expect("json");
        assert_eq!(reply["object"], "text_completion");
        assert_eq!(reply["usage"]["completion_tokens"], 4);
    }
}

#[test]
fn models_health_metrics_and_page_are_served() {
    let server = start(&[]);
    let url = server.ready.as_str();
    chat(url, &hello());
    let get = |path: &str| {
        let reply = client()
            .get(format!("{}{path}", url))
            .send()
            .expect("an answer");
        assert_eq!(reply.status(), 200, "{path}");
        reply.text().expect("text")
    };
    assert!(get("/v1/models").contains("tiny-deepseek4-b"));
    assert!(get("/v1/models/deepseek-chat").contains("\"object\":\"model\""));
    assert!(get("/health").contains("ok"));
    assert!(get("/").contains("<html"));
    let metrics = get("/metrics");
    for name in [
        "ds4_requests_total",
        "ds4_prompt_tokens_total",
        "ds4_generated_tokens_total",
        "ds4_time_to_first_token_seconds",
        "ds4_inter_token_latency_seconds",
        "ds4_node_calls_total",
        "ds4_node_call_seconds",
    ] {
        assert!(metrics.contains(name), "{name} in\n{metrics}");
    }
    let types = metrics.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    for (name, kind) in types.map(|l| l.split_once(' ').expect("a kind")) {
        assert!(metrics.contains(&format!("# HELP {name} ")), "{metrics}");
        // Without buckets the recorder would make summaries, which cannot be aggregated.
        assert!(
            ["counter", "gauge", "histogram"].contains(&kind),
            "{name}: {kind}"
        );
    }
    // A call on loopback is answered within microseconds to milliseconds.
    assert!(metrics.contains("ds4_node_call_seconds_bucket{node="));
    assert!(metrics.contains("le=\"0.0001\""), "{metrics}");
}

#[test]
fn bad_requests_get_the_right_status_and_name_the_field() {
    let server = start(&[]);
    let url = server.ready.as_str();
    let message = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let with = |key: &str, value: Value| {
        let mut body = hello();
        body[key] = value;
        body.to_string()
    };
    let long = "word ".repeat(20_000);
    let cases: Vec<(String, u16, &str)> = vec![
        ("{\"messages\": [".into(), 400, "JSON"),
        ("[]".into(), 400, "object"),
        ("{}".into(), 400, "messages"),
        (message(json!(5)).to_string(), 400, "content"),
        (message(json!(long)).to_string(), 400, "4096"),
        (with("temperature", json!(9)), 400, "temperature"),
        (with("temperature", json!("hot")), 400, "temperature"),
        (with("top_p", json!(0)), 400, "top_p"),
        (with("max_tokens", json!(-1)), 400, "max_tokens"),
        (with("stop", json!(7)), 400, "stop"),
        (with("n", json!(2)), 400, "n"),
        (with("model", json!("gpt-9")), 404, "tiny-deepseek4-b"),
        (with("tools", json!([{"type": "function"}])), 400, "tools"),
    ];
    for (body, status, part) in cases {
        let reply = post(url, "/v1/chat/completions", body.clone());
        let shown: String = body.chars().take(120).collect();
        assert_eq!(reply.status(), status, "{shown}");
        let error: Value = reply.json().expect("json");
        let text = error["error"].to_string();
        assert!(error["error"]["message"].is_string(), "{text}");
        assert!(text.contains(part), "{shown}: {text}");
    }
    let reply = client()
        .get(format!("{}/v1/chat/completions", url))
        .send()
        .expect("answer");
    assert_eq!(reply.status(), 405);
    assert_eq!(post(url, "/v1/nothing", "{}").status(), 404);
}

#[test]
fn a_client_that_disconnects_frees_its_slot() {
    let server = start(&["--max-sequences=1", "--queue=1"]);
    let url = &server.ready;
    let body = json!({
        "prompt": [5, 6, 7], "max_tokens": 4000, "stream": true, "ignore_eos": true,
    });
    let reply = post(url, "/v1/completions", body.to_string());
    assert_eq!(reply.status(), 200);
    // One request runs, the next one waits, a further one is refused.
    drop(reply);
    let start = Instant::now();
    let short = json!({"prompt": [5], "max_tokens": 2, "ignore_eos": true});
    assert_eq!(
        post(url, "/v1/completions", short.to_string()).status(),
        200
    );
    // 4000 tokens would take seconds on any machine.
    let metrics = client()
        .get(format!("{url}/metrics"))
        .send()
        .expect("answer");
    let metrics = metrics.text().expect("text");
    assert!(
        metrics.contains("route=\"/v1/completions\",outcome=\"cancelled\"} 1"),
        "after {:?}: {metrics}",
        start.elapsed()
    );
}

#[test]
fn a_full_queue_is_reported_at_once() {
    let server = start(&["--max-sequences=1", "--queue=1"]);
    let url = &server.ready;
    let body = json!({
        "prompt": [5, 6, 7], "max_tokens": 4000, "stream": true, "ignore_eos": true,
    });
    let running: Vec<Response> = std::thread::scope(|scope| {
        let first = scope.spawn(|| post(url, "/v1/completions", body.to_string()));
        vec![first.join().expect("thread")]
    });
    // The first one streams; give it a moment to leave the queue.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut waiting = Vec::new();
    let refused = loop {
        assert!(Instant::now() < deadline, "nothing was refused");
        let client = Client::builder()
            .timeout(Duration::from_millis(300))
            .build()
            .expect("client");
        match client
            .post(format!("{url}/v1/completions"))
            .body(body.to_string())
            .send()
        {
            Ok(reply) if reply.status() != 200 => break reply,
            other => waiting.push(other),
        }
    };
    assert!(
        [429, 503].contains(&refused.status().as_u16()),
        "{}",
        refused.status()
    );
    assert!(refused.headers().contains_key("retry-after"));
    drop(running);
}

#[test]
fn sigterm_lets_a_running_answer_finish() {
    let mut server = start(&[]);
    let url = server.ready.clone();
    let body = json!({
        "prompt": [5, 6, 7], "max_tokens": 300, "stream": true, "ignore_eos": true,
        "stream_options": {"include_usage": true},
    });
    let reply = post(&url, "/v1/completions", body.to_string());
    server.signal("TERM").expect("signal");
    let events = events(reply);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert!(events[events.len() - 2].contains("\"completion_tokens\":300"));
    assert!(server.wait().expect("end").success());
}
