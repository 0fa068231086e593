//! What answers requests at each moment: the error that the model is loading, the API, or the
//! refusals of a server that has no place or only answers probes.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use ds4_proto::tls::ServerIdentity;
use hyper::body::Incoming;
use hyper_util::service::TowerToHyperService;

use super::app::{App, MetricsText};
use super::connection_state::PlaceKind;
use super::error::ApiError;
use super::host::HostRule;
use super::routes::{PROBES, loading_routes, routes};
use crate::scheduler::SchedulerState;

/// What answers requests: the error that the model is loading, until there is an [`App`].
#[derive(Clone, Debug)]
pub struct Site {
    loading: Router,
    app: Arc<OnceLock<(Router, Arc<App>)>>,
    hosts: Arc<HostRule>,
    /// Whether only probes are answered.
    probes_only: bool,
    /// The certificate of the listener; `None` for plain text.
    tls: Option<ServerIdentity>,
}

impl Site {
    /// A site whose model is loading. Requests for hosts that `hosts` does not allow are refused.
    #[must_use]
    pub fn new(metrics: MetricsText, hosts: HostRule) -> Self {
        Site {
            loading: loading_routes(metrics),
            app: Arc::default(),
            hosts: Arc::new(hosts),
            probes_only: false,
            tls: None,
        }
    }

    /// The same site for clients that come over TLS.
    #[must_use]
    pub fn over_tls(self, identity: ServerIdentity) -> Self {
        Site {
            tls: Some(identity),
            ..self
        }
    }

    pub(super) fn tls(&self) -> Option<&ServerIdentity> {
        self.tls.as_ref()
    }

    /// The same site on a listener that answers health and metrics only, in plain text.
    #[must_use]
    pub fn probes(&self, hosts: HostRule) -> Self {
        Site {
            hosts: Arc::new(hosts),
            probes_only: true,
            tls: None,
            ..self.clone()
        }
    }

    /// Hands all later requests to `app`, whose model is loaded. Only the first call has an effect.
    pub fn open(&self, app: Arc<App>) {
        self.app.get_or_init(|| (routes(Arc::clone(&app)), app));
    }

    fn is_ending(&self) -> bool {
        let app = self.app.get();
        app.is_some_and(|(_, app)| app.scheduler.status().state != SchedulerState::Serving)
    }

    /// Answers a request that came over a connection of this kind.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        kind: PlaceKind,
    ) -> Response<Body> {
        let probe = PROBES.contains(&request.uri().path());
        let mut response = if !self.hosts.allows(request.uri(), request.headers(), probe) {
            refused_host().into_response()
        } else if probe || (kind == PlaceKind::Api && !self.probes_only) {
            let router = self.app.get().map_or(&self.loading, |(router, _)| router);
            let service = TowerToHyperService::new(router.clone());
            match hyper::service::Service::call(&service, request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        } else if self.probes_only {
            only_probes().into_response()
        } else {
            no_place().into_response()
        };
        if self.is_ending() || kind == PlaceKind::Probe {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

fn refused_host() -> ApiError {
    ApiError::status(
        StatusCode::FORBIDDEN,
        "host_not_allowed",
        "the request names a host that this server does not answer to; the server's \
         --allowed-hosts flag names further ones",
    )
}

fn no_place() -> ApiError {
    ApiError {
        retry_after_s: Some(1),
        ..ApiError::status(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            "all connections of the server are in use",
        )
    }
}

fn only_probes() -> ApiError {
    let message = format!("this address answers {} only", PROBES.join(", "));
    ApiError::status(StatusCode::NOT_FOUND, "unknown_path", message)
}
