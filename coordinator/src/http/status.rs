//! The handlers that only report: page, health, readiness, metrics, models.
//!
//! `/live` says that the process works. `/health` says in one word how it is; its status is that of
//! `/ready`, which says whether a request would succeed, and if not, why.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use super::app::{App, ExpertsReport, MetricsText};
use super::error::ApiError;
use crate::scheduler::SchedulerState;

const PAGE: &str = include_str!("chat_page.html");

pub(super) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'";
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(PAGE))
}

/// How the server is.
struct Condition {
    word: &'static str,
    /// Whether a request would be served.
    ready: bool,
    degraded: Vec<&'static str>,
}

impl Condition {
    fn of(app: &App, state: SchedulerState) -> Self {
        let experts = app.experts();
        let obstacle = match state {
            SchedulerState::Serving => experts.and_then(|experts| experts.obstacle()),
            SchedulerState::Draining => Some("draining"),
            SchedulerState::Stopped => Some("stopped"),
        };
        let degraded = experts.map_or_else(Vec::new, |experts| experts.degradations());
        Condition {
            word: obstacle.unwrap_or(if degraded.is_empty() {
                "ok"
            } else {
                "degraded"
            }),
            ready: obstacle.is_none(),
            degraded,
        }
    }

    fn response(&self, body: Value) -> Response {
        if self.ready {
            return Json(body).into_response();
        }
        (StatusCode::SERVICE_UNAVAILABLE, retry_later(), Json(body)).into_response()
    }
}

fn retry_later() -> HeaderMap {
    ApiError::loading().retry_after()
}

pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let status = app.scheduler.status();
    let condition = Condition::of(&app, status.state);
    let mut body = json!({
        "status": condition.word,
        "degraded": condition.degraded,
        "model": app.card.id,
        "running": status.running,
        "waiting": status.waiting,
    });
    if let Some(ExpertsReport { up, total, .. }) = app.experts() {
        body["nodes"] = json!({"up": up, "total": total});
    }
    condition.response(body)
}

pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let condition = Condition::of(&app, app.scheduler.status().state);
    let reason = (!condition.ready).then_some(condition.word);
    condition.response(json!({"ready": condition.ready, "reason": reason}))
}

/// The process works: it is not to be restarted for what it waits for.
pub(super) async fn live() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// Health before there is an [`App`].
pub(super) async fn loading_health() -> impl IntoResponse {
    let body = json!({"status": "loading", "degraded": []});
    (StatusCode::SERVICE_UNAVAILABLE, retry_later(), Json(body))
}

/// Readiness before there is an [`App`].
pub(super) async fn loading_ready() -> impl IntoResponse {
    let body = json!({"ready": false, "reason": "loading"});
    (StatusCode::SERVICE_UNAVAILABLE, retry_later(), Json(body))
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    rendered(&app.metrics)
}

/// All metrics as text.
pub(super) fn rendered(metrics: &MetricsText) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics()).into_response()
}

pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let entries: Vec<Value> = app
        .card
        .names()
        .iter()
        .map(|name| entry(&app, name))
        .collect();
    Json(json!({"object": "list", "data": entries}))
}

pub(super) async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    // A path that is not UTF-8 names no model.
    let id = id.map_or_else(|_| "\u{fffd}".to_owned(), |Path(id)| id);
    app.card.check(Some(&id))?;
    Ok(Json(entry(&app, &id)))
}

fn entry(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.started,
        "owned_by": "ds4",
        "root": app.card.id,
        "max_model_len": app.scheduler.context(),
    })
}
