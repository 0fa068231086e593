//! The HTTP side: OpenAI's API, health, metrics and the chat page.
//!
//! A handler reads the body into a checked request, hands it to the scheduler and writes the events
//! that come back as JSON. Nothing here computes.

mod answer_head;
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
mod options;
mod request_metrics;
mod routes;
mod server;
mod status;
mod stream;
mod token_json;

pub use app::{App, CHAT_ALIAS, HttpSettings, ModelCard, NodeCounts, REASONER_ALIAS};
pub use error::ApiError;
pub use request_metrics::describe;
pub use server::{ConnectionLimits, PeerAddr, Site, serve};
