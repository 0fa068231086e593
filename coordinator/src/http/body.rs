//! JSON bodies: requests are read within bounds of size and time, responses carry text that was
//! serialised before.

use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::Value;

use super::error::ApiError;

/// A body must arrive within this time.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) async fn read_json(body: Body, limit: usize) -> Result<Value, ApiError> {
    let bytes = tokio::time::timeout(DEADLINE, read(body, limit))
        .await
        .map_err(|_| {
            let message = format!("the body did not arrive within {} s", DEADLINE.as_secs());
            ApiError::status(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })??;
    serde_json::from_slice(&bytes).map_err(|error| ApiError {
        code: Some("malformed_json"),
        ..ApiError::invalid(format!("the body is not valid JSON: {error}"))
    })
}

/// A response of JSON text.
pub(super) fn json_response(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut stream = body.into_data_stream();
    while let Some(frame) = stream.next().await {
        let frame = frame
            .map_err(|error| ApiError::invalid(format!("the body could not be read: {error}")))?;
        if bytes.len() + frame.len() > limit {
            let message = format!("the body exceeds the limit of {limit} bytes");
            return Err(ApiError::status(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                message,
            ));
        }
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes)
}
