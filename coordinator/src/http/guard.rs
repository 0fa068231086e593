//! What happens to every request before and after its handler: request ids, and the check which web
//! pages may use the API.
//!
//! Browsers send the origin of the page that makes a request. Pages of this server may use the API;
//! pages of other origins may not unless the operator named them, because any page on the web could
//! otherwise use the model through its visitors' browsers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::error::ApiError;
use super::identity::{Identity, REQUEST_ID};

pub(super) async fn guard(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let identity = Identity::of(&app, &request);
    let id = identity.header();
    request.extensions_mut().insert(identity);
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match &origin {
        Some(origin) if !is_same_origin(origin, request.headers()) => {
            if is_allowed(origin, &app.settings.cors) {
                let mut response = if request.method() == Method::OPTIONS {
                    preflight()
                } else {
                    next.run(request).await
                };
                let headers = response.headers_mut();
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                headers.insert(header::VARY, HeaderValue::from_static("origin"));
                response
            } else {
                ApiError::status(
                    StatusCode::FORBIDDEN,
                    "origin_not_allowed",
                    "web pages from this origin may not use the API; the server's --cors flag \
                     names the origins that may",
                )
                .into_response()
            }
        }
        _ => next.run(request).await,
    };
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Ignores the scheme: behind a proxy that ends TLS the page is https and this server http.
fn is_same_origin(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    matches!((origin, host), (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host))
}

fn is_allowed(origin: &HeaderValue, allowed: &[String]) -> bool {
    allowed
        .iter()
        .any(|name| name == "*" || name.as_bytes() == origin.as_bytes())
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, x-request-id",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}
