//! One function for each place where untrusted input enters, which must hold for any bytes:
//! libFuzzer calls it through `libfuzzer/`, and `cargo test` replays the corpus through it.
//!
//! A body panics where the input breaks what it promises. It returns whether the input was
//! accepted, so that a test can tell seeds that reach the code behind the parser.

use ds4_coordinator::http::ApiError;

pub mod chat_body;
pub mod chat_template;
pub mod completion_body;
pub mod gguf_parse;
pub mod kernels;
pub mod output_parser;
pub mod slice;
pub mod wire_reply;
pub mod wire_request;

/// A fuzz body: takes any bytes, returns whether they were accepted.
pub type Body = fn(&[u8]) -> bool;

/// Every body by the name of its target and of its folder under `fuzz/corpus`.
pub const TARGETS: [(&str, Body); 9] = [
    ("chat_body", chat_body::run),
    ("chat_template", chat_template::run),
    ("completion_body", completion_body::run),
    ("gguf_parse", gguf_parse::run),
    ("kernels", kernels::run),
    ("output_parser", output_parser::run),
    ("slice", slice::run),
    ("wire_reply", wire_reply::run),
    ("wire_request", wire_request::run),
];

/// A body is refused as the client's fault, in a few words however long it is.
fn check_refusal(error: &ApiError) {
    assert!(error.status.is_client_error(), "{error:?}");
    assert!((1..600).contains(&error.message.len()), "{error:?}");
    assert!(error.param.as_ref().is_none_or(|param| param.len() < 200));
}

/// The longest prefix of the bytes that is text.
fn text_of(bytes: &[u8]) -> &str {
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => return text,
        Err(error) => error.valid_up_to(),
    };
    std::str::from_utf8(&bytes[..valid]).unwrap_or_default()
}
