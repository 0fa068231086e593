//! Connections: how many may be open, how long a client may take to send a request, which routes
//! answer it, and how all connections end.

use std::net::SocketAddr;
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
use super::routes::{loading_routes, routes};

/// Limits on clients that have not yet sent a request.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at the same time; more wait in the listener's backlog.
    pub connections: usize,
    /// Longest time for the head of a request, and for an idle connection.
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

/// Where a request comes from: an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// What answers requests: the error that the model is loading, until there is an [`App`].
#[derive(Clone, Debug)]
pub struct Site {
    loading: Router,
    app: Arc<OnceLock<Router>>,
}

impl Default for Site {
    fn default() -> Self {
        Site {
            loading: loading_routes(),
            app: Arc::default(),
        }
    }
}

impl Site {
    /// Hands all later requests to `app`, whose model is loaded. Only the first call has an effect.
    pub fn open(&self, app: Arc<App>) {
        self.app.get_or_init(|| routes(app));
    }

    fn routes(&self) -> Router {
        self.app.get().unwrap_or(&self.loading).clone()
    }
}

/// Serves until `shutdown` resolves, then accepts no connection and returns when the last response
/// was sent.
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
        let (connection, peer) = tokio::select! {
            next = listener.accept() => next,
            () = &mut shutdown => break,
        };
        let site = site.clone();
        let answer = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(PeerAddr(peer));
            TowerToHyperService::new(site.routes()).call(request)
        });
        let connection = http.serve_connection(TokioIo::new(connection), answer);
        let connection = ending.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection failed");
            }
        });
    }
    drop(listener);
    ending.shutdown().await;
}
