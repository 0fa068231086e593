//! Every error that a client can meet, in the shape of OpenAI's API, in one table.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::scheduler::{AdmissionError, GenerateError};

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    /// The class of error, `type` in the JSON.
    pub kind: &'static str,
    pub message: String,
    /// The field that is to blame, such as `messages[2].content`.
    pub param: Option<String>,
    /// A stable word for programs.
    pub code: Option<&'static str>,
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        ApiError {
            status,
            kind,
            message,
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    /// 400 without a field.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400 about the field at `param`.
    #[must_use]
    pub fn invalid_field(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.into()),
            code: Some("invalid_value"),
            ..Self::invalid(message)
        }
    }

    /// 400 about a field that exists in the API and that this server does not serve: better than
    /// an answer that silently ignored it.
    #[must_use]
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            code: Some("unsupported_parameter"),
            ..Self::invalid_field(param, message)
        }
    }

    /// 404 about a model, naming those that are served.
    #[must_use]
    pub fn unknown_model(asked: &str, known: &[String]) -> Self {
        let message = format!(
            "the model `{}` is not served here; known names: {}",
            shortened(asked),
            known.join(", ")
        );
        ApiError {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    /// Any other status.
    #[must_use]
    pub fn status(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let kind = if status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        ApiError {
            code: Some(code),
            ..Self::new(status, kind, message)
        }
    }

    /// 503 until the model is there.
    #[must_use]
    pub fn loading() -> Self {
        unavailable("loading", "the model is still loading".to_owned())
    }

    /// The header that says when to come back.
    #[must_use]
    pub fn retry_after(&self) -> HeaderMap {
        let value = self.retry_after_s.map(HeaderValue::from);
        let header = value.map(|seconds| (header::RETRY_AFTER, seconds));
        header.into_iter().collect()
    }

    /// Blames the field `param` if no other is blamed.
    #[must_use]
    pub fn about(mut self, param: &str) -> Self {
        if self.status == StatusCode::BAD_REQUEST && self.param.is_none() {
            self.param = Some(param.to_owned());
        }
        self
    }

    /// The JSON body, also sent inside a stream.
    #[must_use]
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// At most 64 characters of something a client sent, for an error message.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, self.retry_after(), Json(self.body())).into_response()
    }
}

impl From<AdmissionError> for ApiError {
    fn from(error: AdmissionError) -> Self {
        let message = error.to_string();
        match error {
            AdmissionError::QueueFull { retry_after_s, .. } => ApiError {
                code: Some("queue_full"),
                retry_after_s: Some(retry_after_s),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            },
            AdmissionError::PromptTooLong { .. } => ApiError {
                code: Some("context_length_exceeded"),
                ..Self::invalid(message)
            },
            AdmissionError::KvMemory {
                prompt, longest, ..
            } => ApiError {
                code: Some("context_length_exceeded"),
                // A shorter answer helps unless the prompt alone is too long.
                param: (prompt < longest).then(|| "max_tokens".to_owned()),
                ..Self::invalid(message)
            },
            AdmissionError::EmptyPrompt | AdmissionError::UnknownToken { .. } => {
                Self::invalid(message)
            }
            AdmissionError::Parameter(error) => Self::invalid_field(error.field, message),
            AdmissionError::ShuttingDown => unavailable("shutting_down", message),
            AdmissionError::Stopped => unavailable("engine_stopped", message),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::Experts(_) => unavailable("experts_unavailable", message),
            GenerateError::Engine(_) => {
                Self::status(StatusCode::INTERNAL_SERVER_ERROR, "engine_error", message)
            }
            GenerateError::WaitedTooLong(_) => unavailable("queue_timeout", message),
            GenerateError::ShuttingDown => unavailable("shutting_down", message),
            GenerateError::Stopped => unavailable("engine_stopped", message),
        }
    }
}

fn unavailable(code: &'static str, message: String) -> ApiError {
    ApiError {
        retry_after_s: Some(5),
        ..ApiError::status(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }
}
