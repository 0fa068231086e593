//! The HTTP side: OpenAI's API, health, metrics and the chat page.
//!
//! A handler reads the body into a checked request, hands it to the scheduler and writes the
//! events that come back. Nothing here computes.

mod app;
mod body;
mod chat;
mod chat_request;
mod chat_response;
mod completion_request;
mod completions;
mod error;
mod fields;
mod guard;
mod messages;
mod meter;
mod options;
mod server;
mod status;
mod stream;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

pub use app::{App, CHAT_ALIAS, HttpSettings, ModelCard, REASONER_ALIAS};
pub use error::ApiError;
pub use meter::describe;
pub use server::{ConnectionLimits, Site, serve};

/// The routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(status::page))
        .route("/health", get(status::health))
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

async fn unknown_path(uri: axum::http::Uri) -> ApiError {
    let message = format!("there is nothing at `{}`", error::shortened(uri.path()));
    ApiError::status(StatusCode::NOT_FOUND, "unknown_path", message)
}

async fn wrong_method(method: axum::http::Method) -> ApiError {
    let message = format!("the method {method} is not allowed here");
    ApiError::status(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}
