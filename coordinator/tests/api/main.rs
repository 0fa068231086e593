//! The HTTP API over a scripted model, through real sockets.

mod anything;
mod chat;
mod completions;
mod disruptions;
mod errors;
mod information;
mod neighbours;
mod script;
mod server;
mod tools;
mod vocabulary;
