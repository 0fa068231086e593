//! Which handler answers which path.

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::app::{App, MetricsText};
use super::error::{ApiError, shortened};
use super::{chat, completions, guard, status};

/// The paths that are answered whatever else happens.
pub(super) const PROBES: [&str; 4] = ["/health", "/ready", "/live", "/metrics"];

/// The routes of a server with a model.
pub(super) fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(status::page))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/live", get(status::live))
        .route("/metrics", get(status::metrics))
        .route("/v1/models", get(status::models))
        .route("/v1/models/{*id}", get(status::model))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// The routes of a server whose model is still loading, so that balancers and scripts that wait for
/// it receive an answer rather than a refused connection.
pub(super) fn loading_routes(metrics: MetricsText) -> Router {
    Router::new()
        .route("/health", get(status::loading_health))
        .route("/ready", get(status::loading_ready))
        .route("/live", get(status::live))
        .route("/metrics", get(async move || status::rendered(&metrics)))
        .fallback(async || ApiError::loading())
}

async fn unknown_path(uri: Uri) -> ApiError {
    let message = format!("unknown path `{}`", shortened(uri.path()));
    ApiError::status(StatusCode::NOT_FOUND, "unknown_path", message)
}

async fn wrong_method(method: Method) -> ApiError {
    let message = format!("the method {method} is not allowed for this path");
    ApiError::status(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}
