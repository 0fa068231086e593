//! The HTTP side: OpenAI's API, health, metrics and the chat page.
//!
//! A handler reads the body into a checked request, hands it to the scheduler and writes the events
//! that come back as JSON. Nothing here computes.

mod answer_body;
mod answer_head;
mod app;
mod body;
mod chat;
mod chat_request;
mod chat_response;
mod completion_request;
mod completions;
mod connection;
mod connection_state;
mod error;
mod fields;
mod guard;
mod guarded_io;
mod host;
mod malformed;
mod messages;
mod options;
mod places;
mod request_metrics;
mod routes;
mod server;
mod server_metrics;
mod site;
mod status;
mod stream;
mod token_json;

pub use app::{App, CHAT_ALIAS, ExpertsReport, HttpSettings, ModelCard, REASONER_ALIAS};
pub use error::ApiError;
pub use host::HostRule;
pub use server::{ConnectionLimits, PeerAddr, serve};
pub use site::Site;

/// Registers the descriptions of all metrics of the HTTP side.
pub fn describe() {
    request_metrics::describe();
    server_metrics::describe();
}
