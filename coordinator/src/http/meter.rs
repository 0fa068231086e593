//! Counts requests by route and by how they ended.

use std::time::Instant;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use super::error::ApiError;

const REQUESTS: &str = "ds4_requests_total";
const DURATION: &str = "ds4_request_duration_seconds";

/// Registers what the metrics of requests mean.
pub fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests by route and outcome (ok, refused, failed, cancelled)."
    );
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "From a request's arrival to its end, by route."
    );
    for route in [Route::Chat, Route::Completions] {
        for outcome in ["ok", "refused", "failed", "cancelled"] {
            counter!(REQUESTS, "route" => route.name(), "outcome" => outcome).absolute(0);
        }
    }
}

/// The routes that generate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    Chat,
    Completions,
}

impl Route {
    fn name(self) -> &'static str {
        match self {
            Route::Chat => "/v1/chat/completions",
            Route::Completions => "/v1/completions",
        }
    }
}

/// Watches one request. One that is dropped without a word was given up by its client.
#[derive(Debug)]
pub(super) struct Meter {
    route: Route,
    began: Instant,
    outcome: &'static str,
}

impl Meter {
    pub(super) fn new(route: Route) -> Self {
        Meter {
            route,
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
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let route = self.route.name();
        counter!(REQUESTS, "route" => route, "outcome" => self.outcome).increment(1);
        histogram!(DURATION, "route" => route).record(self.began.elapsed());
    }
}
