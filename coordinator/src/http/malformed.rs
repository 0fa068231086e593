//! Answers to what is no HTTP request, in the API's form. The HTTP library answers some of it with
//! an empty body, and some of it not at all.

use axum::http::StatusCode;

use super::connection_state::ConnectionState;
use super::error::ApiError;

/// First byte of a TLS connection: the type of a record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// The error behind a bare response of `status`.
pub(super) fn error(status: StatusCode, state: &ConnectionState) -> ApiError {
    if state.first_byte() == TLS_HANDSHAKE {
        return ApiError::status(
            StatusCode::BAD_REQUEST,
            "tls_on_plain_port",
            "the client began a TLS handshake, and this port speaks plain HTTP: use http://, or a \
             proxy that ends TLS",
        );
    }
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if !state.flags().line_ended => {
            error(StatusCode::URI_TOO_LONG, state)
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::status(
            status,
            "headers_too_large",
            "the head of the request has too many headers or too many bytes",
        ),
        StatusCode::URI_TOO_LONG => {
            ApiError::status(status, "uri_too_long", "the request's target is too long")
        }
        StatusCode::REQUEST_TIMEOUT => ApiError::status(
            status,
            "request_timeout",
            "the head of the request did not arrive in time",
        ),
        StatusCode::HTTP_VERSION_NOT_SUPPORTED => ApiError::status(
            status,
            "http_version",
            "the client began with HTTP/2, and this port speaks HTTP/1.1",
        ),
        _ => ApiError::status(
            status,
            "malformed_request",
            "the request is not valid HTTP/1.1",
        ),
    }
}

/// The bytes of a response after which the connection is closed.
pub(super) fn response(error: &ApiError) -> Vec<u8> {
    let body = error.body().to_string();
    let reason = error.status.canonical_reason().unwrap_or_default();
    let status = error.status.as_u16();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}
