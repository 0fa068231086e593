//! The handlers that only report: page, health, metrics, models.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use super::app::{App, NodeCounts};
use super::error::ApiError;
use crate::cluster::node_metrics;
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

pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let status = app.scheduler.status();
    let (code, word) = match status.state {
        SchedulerState::Serving => (StatusCode::OK, "ok"),
        SchedulerState::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        SchedulerState::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
    };
    let mut body = json!({
        "status": word,
        "model": app.card.id,
        "running": status.running,
        "waiting": status.waiting,
    });
    if let Some(NodeCounts { up, total }) = app.node_counts() {
        body["nodes"] = json!({"up": up, "total": total});
    }
    (code, Json(body)).into_response()
}

/// Health before there is an [`App`].
pub(super) async fn loading_health() -> impl IntoResponse {
    let error = ApiError::loading();
    let body = Json(json!({"status": "loading"}));
    (error.status, error.retry_after(), body)
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let mut text = app.metrics.render();
    // Their series come and go, which the recorder's cannot.
    node_metrics::render(&mut text);
    ([(header::CONTENT_TYPE, kind)], text)
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
