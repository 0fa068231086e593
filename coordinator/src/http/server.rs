//! Accepts connections, gives each its place, and ends them all.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::connection::{Connection, ConnectionLimits};
use super::connection_state::ConnectionState;
use super::places::Places;
use super::site::Site;

/// Pause after a connection could not be accepted, for example because the process has too many
/// files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The same if a connection was ended, whose file is free in a moment.
const EVICTION_PAUSE: Duration = Duration::from_millis(10);

/// Shortest time between two log lines about connections that could not be accepted.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Serves until `shutdown` resolves, then accepts no connection and returns when the last response
/// was sent.
pub async fn serve(
    listener: TcpListener,
    site: Site,
    limits: ConnectionLimits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let places = Places::new(limits.connections, limits.reserve);
    let (close, closing) = watch::channel(false);
    // Each connection holds a sender, and nobody sends: the channel ends with the last connection.
    let (open, mut all_ended) = mpsc::channel::<Infallible>(1);
    let mut shutdown = pin!(shutdown);
    let mut complaints = Complaints::default();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if complaints.refused(&error) {
                        let evicted = places.evict_idle();
                        let pause = if evicted { EVICTION_PAUSE } else { ACCEPT_PAUSE };
                        tokio::time::sleep(pause).await;
                    }
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        let connection = admit(stream, peer, &places, &site, limits, &closing);
        let open = open.clone();
        tokio::spawn(async move {
            connection.run().await;
            drop(open);
        });
    }
    drop((listener, open));
    close.send_replace(true);
    all_ended.recv().await;
}

fn admit(
    stream: TcpStream,
    peer: SocketAddr,
    places: &Arc<Places>,
    site: &Site,
    limits: ConnectionLimits,
    closing: &watch::Receiver<bool>,
) -> Connection {
    let state = Arc::new(ConnectionState::default());
    Connection {
        place: places.admit(peer.ip(), Arc::clone(&state)),
        stream,
        peer,
        state,
        site: site.clone(),
        limits,
        closing: closing.clone(),
    }
}

/// Connections that could not be accepted.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    count: usize,
}

impl Complaints {
    /// Notes an error; returns whether it is one of this process rather than of a client that has
    /// left again.
    fn refused(&mut self, error: &io::Error) -> bool {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        if matches!(
            error.kind(),
            ConnectionAborted | ConnectionRefused | ConnectionReset
        ) {
            return false;
        }
        self.count += 1;
        if self
            .last
            .is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL)
        {
            self.last = Some(Instant::now());
            tracing::error!(%error, times = self.count, "cannot accept connections");
            self.count = 0;
        }
        true
    }
}
