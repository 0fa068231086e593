//! Connections: how many there may be, how long one may take to say what it wants, what answers
//! it, and how all of them end.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use ds4_proto::connections::BoundedListener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use super::app::App;

/// How much clients may take without having asked for anything.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at the same time; more wait in the listener's backlog.
    pub connections: usize,
    /// Time for the head of a request, which an idle connection has as well.
    pub header_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        ConnectionLimits {
            connections: 512,
            header_timeout: Duration::from_secs(30),
        }
    }
}

/// What answers requests: that the model is loading, until there is an [`App`].
#[derive(Clone, Debug)]
pub struct Site {
    loading: Router,
    app: Arc<OnceLock<Router>>,
}

impl Default for Site {
    fn default() -> Self {
        Site {
            loading: super::status::while_loading(),
            app: Arc::default(),
        }
    }
}

impl Site {
    /// The model is there: requests get to `app` from now on. Only the first call counts.
    pub fn open(&self, app: Arc<App>) {
        self.app.get_or_init(|| super::router(app));
    }

    fn router(&self) -> Router {
        self.app.get().unwrap_or(&self.loading).clone()
    }
}

/// Serves until `shutdown` resolves, then takes no new connection and ends when the last
/// response has been sent.
pub async fn serve(
    listener: TcpListener,
    site: Site,
    limits: ConnectionLimits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let listener = BoundedListener::new(listener, limits.connections);
    let ending = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout);
    let mut shutdown = pin!(shutdown);
    loop {
        let connection = tokio::select! {
            next = listener.accept() => next,
            () = &mut shutdown => break,
        };
        let site = site.clone();
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            TowerToHyperService::new(site.router()).call(request)
        });
        let connection = http.serve_connection(TokioIo::new(connection), answer);
        let connection = ending.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    drop(listener);
    ending.shutdown().await;
}
