//! Connections: how many there may be, how long one may take to say what it wants, what answers
//! it, and how all of them end.

use std::io;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::app::App;

/// Pause after a connection could not be taken, which is so when the process has too many files
/// open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

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
    let places = Arc::new(Semaphore::new(limits.connections));
    let ending = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout);
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, place) = tokio::select! {
            next = accept(&listener, &places) => next,
            () = &mut shutdown => break,
        };
        let site = site.clone();
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            TowerToHyperService::new(site.router()).call(request)
        });
        let connection = http.serve_connection(TokioIo::new(stream), answer);
        let connection = ending.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
            drop(place);
        });
    }
    drop(listener);
    ending.shutdown().await;
}

/// The next connection, once there is a place for it. The place is free again when it is dropped.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // Nobody closes the semaphore, so there is always a place in the end.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A token is a small packet that should not wait for the next one. A socket that
                // refuses works all the same.
                let _ = stream.set_nodelay(true);
                return (stream, place);
            }
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                tracing::error!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the client went away before it was taken.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}
