mod api;
mod bad_flags;
mod bad_input;
mod cluster;
mod engine;
mod formats;
mod golden;
mod variants;
