//! One function for each place where untrusted input enters, which must hold for any bytes:
//! libFuzzer calls it through `libfuzzer/`, and `cargo test` replays the corpus through it.
//!
//! A body panics where the input breaks what it promises. It returns whether the input was
//! accepted, so that a test can tell seeds that reach the code behind the parser.

pub mod chat_template;
pub mod gguf_parse;
pub mod kernels;
pub mod output_parser;
pub mod slice;
pub mod wire_reply;
pub mod wire_request;

/// A fuzz body: takes any bytes, returns whether they were accepted.
pub type Body = fn(&[u8]) -> bool;

/// Every body by the name of its target and of its folder under `fuzz/corpus`.
pub const TARGETS: [(&str, Body); 7] = [
    ("chat_template", chat_template::run),
    ("gguf_parse", gguf_parse::run),
    ("kernels", kernels::run),
    ("output_parser", output_parser::run),
    ("slice", slice::run),
    ("wire_reply", wire_reply::run),
    ("wire_request", wire_request::run),
];

/// The longest prefix of the bytes that is text.
fn text_of(bytes: &[u8]) -> &str {
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => return text,
        Err(error) => error.valid_up_to(),
    };
    std::str::from_utf8(&bytes[..valid]).unwrap_or_default()
}
