//! The HTTP side: OpenAI's API, health, metrics and the chat page.
//!
//! A handler reads the body into a checked request, hands it to the scheduler and writes the events
//! that come back as JSON. Nothing here computes but the threads that read requests, at a low
//! priority (`reading_threads.rs`).

mod answer_body;
mod answer_head;
mod app;
mod body;
mod body_memory;
mod body_pace;
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
mod identity;
mod intake;
mod json_slices;
mod malformed;
mod messages;
mod options;
mod places;
mod reading_threads;
mod request_metrics;
mod routes;
mod server;
mod server_metrics;
mod site;
mod status;
mod stream;
mod token_json;

pub use app::{
    App, CHAT_ALIAS, ExpertsReport, HttpSettings, MetricsText, ModelCard, REASONER_ALIAS,
};
pub use body_memory::{default_body_memory, least_body_memory};
pub use chat_request::read_chat_body;
pub use completion_request::read_completion_body;
pub use connection::ConnectionLimits;
pub use connection_state::PeerAddr;
pub use error::ApiError;
pub use host::HostRule;
pub use server::serve;
pub use site::Site;

/// Registers the descriptions of all metrics of the HTTP side.
pub fn describe() {
    request_metrics::describe();
    server_metrics::describe();
}
