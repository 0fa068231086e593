//! All errors that a client can receive, in the form of OpenAI's API. The two `From` blocks are the
//! table from the scheduler's errors to status and code.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::scheduler::{AdmissionError, GenerateError};

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Status of the response; the events of a stream do not carry it.
    pub status: StatusCode,
    /// The class of error, `type` in the JSON.
    pub kind: &'static str,
    /// The cause for people, without a full stop.
    pub message: String,
    /// Path of the field at fault, such as `messages[2].content`.
    pub param: Option<String>,
    /// A stable word for programs.
    pub code: Option<&'static str>,
    /// Seconds after which a retry may succeed.
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

    /// 400 for the field at `param`.
    #[must_use]
    pub fn invalid_field(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.into()),
            code: Some("invalid_value"),
            ..Self::invalid(message)
        }
    }

    /// 400 for a field of the API that this server does not implement: better than an answer that
    /// silently ignores it.
    #[must_use]
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            code: Some("unsupported_parameter"),
            ..Self::invalid_field(param, message)
        }
    }

    /// 404 for a model's name, listing the `served` ones.
    #[must_use]
    pub fn unknown_model(requested: &str, served: &[String]) -> Self {
        let message = format!(
            "the model `{}` is not served here; available models: {}",
            shortened(requested),
            served.join(", ")
        );
        ApiError {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    /// An error with any other status.
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

    /// 503 until the model is loaded.
    #[must_use]
    pub fn loading() -> Self {
        unavailable("loading", "the model is still loading".to_owned())
    }

    /// The `retry-after` header, if there is one.
    #[must_use]
    pub fn retry_after(&self) -> HeaderMap {
        let value = self.retry_after_s.map(HeaderValue::from);
        let header = value.map(|seconds| (header::RETRY_AFTER, seconds));
        header.into_iter().collect()
    }

    /// Names `param` as the field at fault if the error is a 400 that names none.
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

/// At most 64 characters of a client's text, for an error message.
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
            AdmissionError::ExpertsUnavailable => unavailable("experts_unavailable", message),
            AdmissionError::ShuttingDown => unavailable("shutting_down", message),
            AdmissionError::Stopped => unavailable("engine_stopped", message),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            // Nodes may come back: a later attempt may succeed. Which node it was, and what the
            // operating system said, is for the log.
            GenerateError::Experts(_) => {
                let message = "not all experts of the model can be reached at the moment";
                unavailable("experts_unavailable", message.to_owned())
            }
            GenerateError::Engine(_) | GenerateError::Sampling(_) => Self::status(
                StatusCode::INTERNAL_SERVER_ERROR,
                "engine_error",
                "the engine failed to compute the answer; the server's log has the cause",
            ),
            GenerateError::Displaced { retry_after_s } => ApiError {
                code: Some("queue_full"),
                retry_after_s: Some(retry_after_s),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            },
            GenerateError::ExpertsUnavailable => unavailable("experts_unavailable", message),
            GenerateError::QueueTimeout { .. } => unavailable("queue_timeout", message),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ds4_common::expert::BatchError;
    use ds4_common::gguf::GgufModel;
    use ds4_common::kernels::Matrix;
    use ds4_common::model::ModelError;
    use ds4_common::quant::GgmlType;
    use ds4_common::tiles::{Grid, TileError};

    use super::*;
    use crate::engine::{EngineError, ExpertError};
    use crate::sampling::{ParamError, SampleError};

    /// Status, type, code and `retry-after` of an error as the client sees it.
    fn seen(error: impl Into<ApiError>) -> (u16, &'static str, Option<&'static str>, Option<u64>) {
        let error = error.into();
        assert_eq!(error.body()["error"]["message"], error.message);
        let status = error.status.as_u16();
        (status, error.kind, error.code, error.retry_after_s)
    }

    const INVALID: &str = "invalid_request_error";
    const SERVER: &str = "server_error";

    #[test]
    fn every_admission_error_has_its_status_and_code() {
        let parameter = ParamError {
            field: "top_p",
            value: 2.0,
            range: "0 to 1",
        };
        let prompt = 8;
        for (error, param, expected) in [
            (
                AdmissionError::QueueFull {
                    waiting: 9,
                    own: 3,
                    retry_after_s: 7,
                },
                None,
                (429, "rate_limit_error", Some("queue_full"), Some(7)),
            ),
            (
                AdmissionError::PromptTooLong {
                    prompt,
                    exact: true,
                    context: 8,
                },
                None,
                (400, INVALID, Some("context_length_exceeded"), None),
            ),
            (
                AdmissionError::KvMemory {
                    prompt,
                    answer: 5,
                    bytes: 130,
                    budget: 100,
                    longest: 10,
                },
                Some("max_tokens"),
                (400, INVALID, Some("context_length_exceeded"), None),
            ),
            (
                AdmissionError::KvMemory {
                    prompt,
                    answer: 1,
                    bytes: 90,
                    budget: 80,
                    longest: 8,
                },
                None,
                (400, INVALID, Some("context_length_exceeded"), None),
            ),
            (
                AdmissionError::EmptyPrompt,
                None,
                (400, INVALID, None, None),
            ),
            (
                AdmissionError::UnknownToken { token: 9, vocab: 9 },
                None,
                (400, INVALID, None, None),
            ),
            (
                AdmissionError::Parameter(parameter),
                Some("top_p"),
                (400, INVALID, Some("invalid_value"), None),
            ),
            (
                AdmissionError::ExpertsUnavailable,
                None,
                (503, SERVER, Some("experts_unavailable"), Some(5)),
            ),
            (
                AdmissionError::ShuttingDown,
                None,
                (503, SERVER, Some("shutting_down"), Some(5)),
            ),
            (
                AdmissionError::Stopped,
                None,
                (503, SERVER, Some("engine_stopped"), Some(5)),
            ),
        ] {
            assert_eq!(ApiError::from(error.clone()).param.as_deref(), param);
            assert_eq!(seen(error.clone()), expected, "{error}");
        }
    }

    fn expert_errors() -> Vec<ExpertError> {
        let (node, reason) = ("node-1:50052".to_owned(), "connection reset".to_owned());
        let tiles = "experts 0 to 7, all blocks".to_owned();
        vec![
            ExpertError::Batch(BatchError::Empty),
            ExpertError::Refused {
                node: node.clone(),
                reason: reason.clone(),
            },
            ExpertError::Unreachable {
                node: node.clone(),
                reason: reason.clone(),
                layer: 3,
                tiles: tiles.clone(),
                deadline_ms: 100,
            },
            ExpertError::Deadline {
                node: node.clone(),
                layer: 3,
                tiles,
                deadline_ms: 100,
            },
            ExpertError::Malformed { node, reason },
            ExpertError::InputNotFinite { layer: 3 },
            ExpertError::NotFinite {
                layer: 3,
                tiles: "experts 0 to 7".to_owned(),
                computed_by: "node-1:50052".to_owned(),
            },
            ExpertError::Contradiction {
                layer: 3,
                tiles: "experts 0 to 7".to_owned(),
                computed_by: "node-1:50052 (07)".to_owned(),
            },
            ExpertError::TooLarge,
            ExpertError::GivenUp,
            ExpertError::Tiles(TileError::TooManyNodes {
                nodes: 9,
                grid: Grid {
                    experts: 4,
                    blocks: 2,
                },
            }),
            ExpertError::Incomplete,
        ]
    }

    #[test]
    fn failing_experts_are_unavailable_and_tell_clients_nothing_of_addresses() {
        for error in expert_errors() {
            let message = error.to_string();
            let error = GenerateError::from(EngineError::Experts(error));
            assert!(matches!(error, GenerateError::Experts(_)), "{error}");
            assert!(error.to_string().ends_with(&message), "{error}");
            let unavailable = (503, SERVER, Some("experts_unavailable"), Some(5));
            assert_eq!(seen(error.clone()), unavailable, "{message}");
            let told = ApiError::from(error).message;
            assert!(
                !told.contains("node-1") && !told.contains("reset"),
                "{told}"
            );
        }
    }

    #[test]
    fn a_failing_engine_is_an_internal_error_and_the_log_has_its_message() {
        let missing = GgufModel::open("/no/such/model.gguf".as_ref()).unwrap_err();
        let failed = (500, SERVER, Some("engine_error"), None);
        for error in [
            EngineError::Weight {
                tensor: "output.weight".to_owned(),
                problem: Matrix::new(GgmlType::F32, 1, 1, &[]).unwrap_err(),
            },
            EngineError::Streams {
                streams: 9,
                limit: 8,
            },
            EngineError::Token { token: 9, vocab: 9 },
            EngineError::Context {
                position: 9,
                tokens: 2,
                context: 10,
            },
            EngineError::ContextLimit {
                wanted: 11,
                limit: 10,
            },
            EngineError::EmptyChunk,
            EngineError::BrokenSequence,
            EngineError::Model(ModelError::Gguf(missing)),
        ] {
            let message = error.to_string();
            let error = GenerateError::from(error);
            assert!(error.to_string().ends_with(&message), "{error}");
            // Callers can still branch on the engine's own variant.
            assert!(
                matches!(&error, GenerateError::Engine(inner) if Arc::strong_count(inner) == 1)
            );
            assert_eq!(seen(error.clone()), failed, "{message}");
            assert!(!ApiError::from(error).message.contains(&message));
        }
        for error in [
            SampleError::Empty,
            SampleError::NotFinite(3),
            SampleError::NothingPossible,
        ] {
            assert_eq!(seen(GenerateError::from(error)), failed, "{error}");
        }
    }

    #[test]
    fn a_request_that_gave_its_place_to_another_client_is_one_too_many() {
        let error = GenerateError::Displaced { retry_after_s: 9 };
        let expected = (429, "rate_limit_error", Some("queue_full"), Some(9));
        assert_eq!(seen(error), expected);
    }

    #[test]
    fn a_request_that_ends_early_is_unavailable() {
        for (error, code) in [
            (
                GenerateError::QueueTimeout { limit_s: 600 },
                "queue_timeout",
            ),
            (GenerateError::ExpertsUnavailable, "experts_unavailable"),
            (GenerateError::ShuttingDown, "shutting_down"),
            (GenerateError::Stopped, "engine_stopped"),
        ] {
            let expected = (503, SERVER, Some(code), Some(5));
            assert_eq!(seen(error.clone()), expected, "{error}");
        }
    }
}
