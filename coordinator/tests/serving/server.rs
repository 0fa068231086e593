//! A server over the scripted model, and a client for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ds4_coordinator::commands::metrics;
use ds4_coordinator::http::{
    self, App, ConnectionLimits, ExpertsReport, HostRule, HttpSettings, ModelCard, Site,
};
use ds4_coordinator::prompt::Dialect;
use ds4_coordinator::scheduler::{Scheduler, SchedulerLimits};
use ds4_proto::tls::ServerIdentity;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::script::{Controls, Scripted, vocabulary};

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) controls: Arc<Controls>,
    pub(crate) scheduler: Arc<Scheduler>,
    /// What the server is told of its experts.
    pub(crate) experts: Arc<Mutex<ExpertsReport>>,
    pub(crate) client: Client,
    _close: oneshot::Sender<()>,
}

/// All experts are on a node that is up.
pub(crate) const ALL_THERE: ExpertsReport = ExpertsReport {
    up: 1,
    total: 1,
    covered: true,
    own_file: false,
};

/// A stream that was read to its end.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) chunks: Vec<Value>,
    /// Data of `event: error` messages.
    pub(crate) errors: Vec<Value>,
    pub(crate) done: bool,
    /// Comments, which say nothing but that the server lives.
    pub(crate) comments: usize,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(SchedulerLimits::default(), HttpSettings::default()).await
    }

    pub(crate) async fn limited(limits: SchedulerLimits) -> Self {
        Self::with(limits, HttpSettings::default()).await
    }

    pub(crate) async fn with(limits: SchedulerLimits, settings: HttpSettings) -> Self {
        Self::connected(limits, settings, ConnectionLimits::default()).await
    }

    pub(crate) async fn connected(
        limits: SchedulerLimits,
        settings: HttpSettings,
        connections: ConnectionLimits,
    ) -> Self {
        Self::build(limits, settings, connections, None).await
    }

    /// A server over TLS, for clients of their own.
    pub(crate) async fn over_tls(identity: ServerIdentity, connections: ConnectionLimits) -> Self {
        let (limits, settings) = (SchedulerLimits::default(), HttpSettings::default());
        Self::build(limits, settings, connections, Some(identity)).await
    }

    async fn build(
        limits: SchedulerLimits,
        settings: HttpSettings,
        connections: ConnectionLimits,
        tls: Option<ServerIdentity>,
    ) -> Self {
        let metrics = metrics::text(metrics::install_recorder().unwrap());
        let (vocabulary, controls) = (vocabulary(), Arc::new(Controls::default()));
        let model = Scripted::new(Arc::clone(&vocabulary), Arc::clone(&controls));
        let scheduler = Scheduler::start(model, Arc::clone(&vocabulary), limits).unwrap();
        let scheduler = Arc::new(scheduler);
        let card = ModelCard {
            id: "scripted".into(),
            aliases: vec!["script".into()],
            fingerprint: "f00d-full".into(),
            dialect: Dialect::default(),
        };
        let experts = Arc::new(Mutex::new(ALL_THERE));
        let report = Arc::clone(&experts);
        let app = App::new(
            Arc::clone(&scheduler),
            vocabulary,
            card,
            settings,
            metrics.clone(),
        )
        .unwrap()
        .with_experts(move || *report.lock().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("http://{address}");
        let (close, closing) = oneshot::channel::<()>();
        let site = Site::new(metrics, HostRule::new(address.ip(), &[]));
        let site = match tls {
            Some(identity) => site.over_tls(identity),
            None => site,
        };
        site.open(Arc::new(app));
        tokio::spawn(http::serve(listener, site, connections, async {
            let _ = closing.await;
        }));
        let client = Client::builder()
            .timeout(Duration::from_secs(30))
            .build()
            .unwrap();
        Server {
            url,
            controls,
            scheduler,
            experts,
            client,
            _close: close,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.client
            .post(format!("{}{path}", self.url))
            .json(body)
            .send()
            .await
            .unwrap()
    }

    /// A chat request that must succeed.
    pub(crate) async fn chat(&self, body: Value) -> Value {
        expect_ok(self.post("/v1/chat/completions", &body).await).await
    }

    /// A completion request that must succeed.
    pub(crate) async fn complete(&self, body: Value) -> Value {
        expect_ok(self.post("/v1/completions", &body).await).await
    }

    /// A streamed request, read to the end.
    pub(crate) async fn stream(&self, path: &str, mut body: Value) -> Stream {
        body["stream"] = true.into();
        let response = self.post(path, &body).await;
        assert_eq!(response.status(), StatusCode::OK);
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        read_stream(&response.text().await.unwrap())
    }

    /// Waits until nothing waits or runs.
    pub(crate) async fn wait_idle(&self) {
        self.wait_counts(0, 0).await;
    }

    pub(crate) async fn wait_counts(&self, running: usize, waiting: usize) {
        let begun = Instant::now();
        loop {
            let status = self.scheduler.status();
            if (status.running, status.waiting) == (running, waiting) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn expect_ok(response: Response) -> Value {
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

fn read_stream(text: &str) -> Stream {
    let mut stream = Stream::default();
    for message in text.split("\n\n").filter(|message| !message.is_empty()) {
        assert!(!stream.done, "something comes after the end: {message}");
        let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
        let Some(data) = field("data: ") else {
            assert!(message.starts_with(':'), "{message}");
            stream.comments += 1;
            continue;
        };
        match (field("event: "), data) {
            (None, "[DONE]") => stream.done = true,
            (Some("error"), data) => stream.errors.push(serde_json::from_str(data).unwrap()),
            (None, data) => stream.chunks.push(serde_json::from_str(data).unwrap()),
            (Some(other), _) => panic!("an event named {other}"),
        }
    }
    stream
}

impl Stream {
    /// All deltas' strings of this name, joined.
    pub(crate) fn joined(&self, name: &str) -> String {
        let delta = |chunk: &Value| Some(chunk["choices"][0]["delta"][name].as_str()?.to_owned());
        self.chunks.iter().filter_map(delta).collect()
    }

    pub(crate) fn finish_reason(&self) -> &str {
        let reasons: Vec<&str> = self
            .chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str())
            .collect();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons[0]
    }
}

/// A chat request without thinking whose answer is `answer`.
pub(crate) fn say(answer: &str) -> Value {
    json!({
        "messages": [{"role": "user", "content": format!("say:{answer}")}],
        "thinking": {"type": "disabled"},
    })
}

/// `base` with the fields of `more` added or replaced.
pub(crate) fn with(mut base: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("not an object")
    };
    for (key, value) in more {
        base[key] = value;
    }
    base
}
