//! Transport errors as one line of text for logs and error messages.

use std::error::Error;

use tonic::Status;

use crate::limits::MAX_TEXT_BYTES;
use crate::tls;
use crate::wire::clip;

/// An error with its causes, at most [`MAX_TEXT_BYTES`] long. The outermost text of a transport
/// error alone says little; where TLS is the cause, the text says what to do.
#[must_use]
pub fn error_text(error: &(dyn Error + 'static)) -> String {
    if let Some(text) = tls::explain(error) {
        return clip(&text, MAX_TEXT_BYTES);
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    clip(&text, MAX_TEXT_BYTES)
}

/// A status as text: its causes where it comes from the transport, else the peer's message, or the
/// description of its code where the message is empty.
#[must_use]
pub fn status_text(status: &Status) -> String {
    // A status without a cause came from the peer.
    if status.source().is_some() {
        return error_text(status);
    }
    match status.message() {
        "" => status.code().description().to_owned(),
        message => clip(message, MAX_TEXT_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_once_and_an_empty_message_gives_the_code() {
        let inner = std::io::Error::other("no route");
        let outer = std::io::Error::other(inner);
        assert_eq!(error_text(&outer), "no route");
        assert_eq!(status_text(&Status::unavailable("draining")), "draining");
        let silent = status_text(&Status::unavailable(""));
        assert_eq!(silent, tonic::Code::Unavailable.description());
        assert!(status_text(&Status::internal("x".repeat(5000))).len() <= MAX_TEXT_BYTES);
    }
}
