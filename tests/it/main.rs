mod bad_flags;
mod bad_input;
mod engine;
mod formats;
mod golden;
mod variants;
