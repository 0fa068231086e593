//! The routes on a free port of loopback, over a scripted model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_coordinator::http::{self, App, HttpSettings, ModelCard};
use ds4_coordinator::prompt::Dialect;
use ds4_coordinator::scheduler::{Scheduler, SchedulerLimits};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::script::{Act, Probe, Script, ScriptedModel};
use crate::vocabulary::vocabulary;

/// No wait of these tests takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// What a server of a test is like.
pub(crate) struct Setup {
    pub(crate) script: Script,
    pub(crate) context: usize,
    pub(crate) pace: Duration,
    pub(crate) limits: SchedulerLimits,
    pub(crate) http: HttpSettings,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            script: |_| Act::Dream,
            context: 10_000,
            pace: Duration::ZERO,
            limits: SchedulerLimits::default(),
            http: HttpSettings::default(),
        }
    }
}

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) probe: Arc<Probe>,
    pub(crate) scheduler: Arc<Scheduler>,
    close: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

/// A server whose model follows `script`.
pub(crate) async fn serve(script: Script) -> Server {
    let setup = Setup {
        script,
        ..Setup::default()
    };
    setup.serve().await
}

impl Setup {
    pub(crate) async fn serve(self) -> Server {
        let (vocabulary, probe) = (vocabulary(), Arc::new(Probe::default()));
        let model = ScriptedModel {
            vocabulary: Arc::clone(&vocabulary),
            probe: Arc::clone(&probe),
            script: self.script,
            context: self.context,
            pace: self.pace,
        };
        let scheduler = Scheduler::start(model, Arc::clone(&vocabulary), self.limits)
            .expect("a thread can be started");
        let scheduler = Arc::new(scheduler);
        let card = ModelCard {
            id: "scripted".into(),
            aliases: vec!["other-name".into()],
            fingerprint: "fp".into(),
            dialect: Dialect::V0731,
        };
        let metrics = http::install_recorder().expect("the first recorder");
        let app = App::new(Arc::clone(&scheduler), vocabulary, card, self.http, metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (close, closing) = oneshot::channel();
        let task = tokio::spawn(http::serve(listener, Arc::new(app), async {
            let _ = closing.await;
        }));
        Server {
            url,
            client: Client::builder()
                .timeout(DEADLINE)
                .build()
                .expect("a client"),
            probe,
            scheduler,
            close: Some(close),
            task,
        }
    }
}

impl Server {
    pub(crate) async fn get(&self, path: &str) -> Response {
        let url = format!("{}{path}", self.url);
        self.client.get(url).send().await.expect("an answer")
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        let url = format!("{}{path}", self.url);
        let request = self.client.post(url).json(body);
        request.send().await.expect("an answer")
    }

    /// The JSON of an answer that must be 200.
    pub(crate) async fn ok(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let answer = response.json().await.expect("JSON");
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// The error object of an answer that must have `status`.
    pub(crate) async fn refused(&self, path: &str, body: &Value, status: u16) -> Value {
        error_of(self.post(path, body).await, status).await
    }

    /// The objects of a stream, which must end as the protocol says.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.text().await.expect("the whole stream");
        let mut data: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// Stops listening; resolves when the last response is out.
    pub(crate) async fn closed(mut self) {
        self.close.take();
        let task = tokio::time::timeout(DEADLINE, &mut self.task).await;
        task.expect("in time")
            .expect("no panic")
            .expect("no I/O error");
    }

    /// Begins to stop listening.
    pub(crate) fn close(&mut self) {
        self.close.take();
    }
}

/// The error object of an answer, whose status is checked.
pub(crate) async fn error_of(response: Response, status: u16) -> Value {
    let got = response.status();
    let text = response.text().await.expect("a body");
    assert_eq!(got.as_u16(), status, "{text}");
    let body: Value = serde_json::from_str(&text).expect("JSON");
    let error = &body["error"];
    assert!(
        error["message"].is_string() && error["type"].is_string(),
        "{text}"
    );
    error.clone()
}

/// Waits for something that other threads bring about.
pub(crate) async fn until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !happened() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
