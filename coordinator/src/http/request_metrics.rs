//! The metrics of requests: their number by route and outcome, and their duration.

use std::time::Instant;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use super::error::ApiError;
use super::identity::Identity;
use crate::scheduler::RequestOrigin;

const REQUESTS: &str = "ds4_requests_total";
const DURATION: &str = "ds4_request_duration_seconds";

/// Registers the descriptions of the request metrics, and their counters at zero so that they are
/// exported from the start.
pub(super) fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests by route and outcome (ok, refused, failed, cancelled)."
    );
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "Time from a request's arrival to its end, by route."
    );
    for route in [GenerateRoute::Chat, GenerateRoute::Completions] {
        for outcome in ["ok", "refused", "failed", "cancelled"] {
            counter!(REQUESTS, "route" => route.path(), "outcome" => outcome).absolute(0);
        }
    }
}

/// The routes that generate text.
#[derive(Clone, Copy, Debug)]
pub(super) enum GenerateRoute {
    Chat,
    Completions,
}

impl GenerateRoute {
    fn path(self) -> &'static str {
        match self {
            GenerateRoute::Chat => "/v1/chat/completions",
            GenerateRoute::Completions => "/v1/completions",
        }
    }
}

/// Measures one request, and counts it when dropped: as cancelled by its client unless its end was
/// noted before.
#[derive(Debug)]
pub(super) struct RequestMeter {
    route: GenerateRoute,
    /// The name of the request in the log.
    origin: RequestOrigin,
    began: Instant,
    outcome: &'static str,
}

impl RequestMeter {
    pub(super) fn new(route: GenerateRoute, identity: &Identity) -> Self {
        RequestMeter {
            route,
            origin: identity.origin(),
            began: Instant::now(),
            outcome: "cancelled",
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.outcome = "ok";
    }

    pub(super) fn failed(&mut self, error: &ApiError) {
        self.outcome = if error.status.is_server_error() {
            "failed"
        } else {
            "refused"
        };
        tracing::info!(
            request = self.origin.id,
            client_request = self.origin.client_id,
            status = error.status.as_u16(),
            code = error.code,
            param = error.param,
            "request {}",
            self.outcome
        );
    }
}

impl Drop for RequestMeter {
    fn drop(&mut self) {
        let route = self.route.path();
        if self.outcome == "cancelled" {
            let (id, client_id) = (&self.origin.id, &self.origin.client_id);
            tracing::info!(
                request = id,
                client_request = client_id,
                "request cancelled"
            );
        }
        counter!(REQUESTS, "route" => route, "outcome" => self.outcome).increment(1);
        histogram!(DURATION, "route" => route).record(self.began.elapsed());
    }
}
