//! A network between coordinator and node that can be cut without notice, and that can end
//! connections as the system does when a process is killed.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Forwards bytes unless it is cut. While it is cut, nothing arrives and nothing is refused.
pub(super) struct Relay {
    pub(super) address: String,
    cut: Arc<watch::Sender<bool>>,
    dead: Arc<watch::Sender<bool>>,
}

impl Relay {
    /// Forwards to the node at `target` until the runtime ends.
    pub(super) fn start(runtime: &Runtime, target: String) -> Self {
        let cut = Arc::new(watch::channel(false).0);
        let dead = Arc::new(watch::channel(false).0);
        let states = [Arc::clone(&cut), Arc::clone(&dead)];
        let address = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
            let address = listener.local_addr().expect("address").to_string();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let [cut, mut dead] = states.each_ref().map(|state| state.subscribe());
                    let connection = connect(client, target.clone(), cut);
                    tokio::spawn(async move {
                        tokio::select! {
                            () = connection => {}
                            _ = dead.wait_for(|dead| *dead) => {}
                        }
                    });
                }
            });
            address
        });
        Relay { address, cut, dead }
    }

    pub(super) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// Ends all connections, and each new one at once.
    pub(super) fn kill(&self) {
        self.dead.send_replace(true);
    }
}

async fn connect(client: TcpStream, target: String, mut cut: watch::Receiver<bool>) {
    let _ = cut.wait_for(|cut| !cut).await;
    let Ok(node) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), node.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_node, to_node) = node.into_split();
    let there = pass(from_client, to_node, cut.clone());
    tokio::join!(there, pass(from_node, to_client, cut));
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let _ = cut.wait_for(|cut| !cut).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
}
