//! A network between coordinator and node that can be cut without anybody being told.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Passes bytes on while it is not cut. While it is, nothing arrives and nothing is refused.
pub(super) struct Relay {
    pub(super) address: String,
    cut: Arc<watch::Sender<bool>>,
}

impl Relay {
    /// To the node at `target`, until the runtime ends.
    pub(super) fn start(runtime: &Runtime, target: String) -> Self {
        let cut = Arc::new(watch::channel(false).0);
        let state = Arc::clone(&cut);
        let address = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
            let address = listener.local_addr().expect("address").to_string();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(connect(client, target.clone(), state.subscribe()));
                }
            });
            address
        });
        Relay { address, cut }
    }

    pub(super) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
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
    tokio::spawn(pass(from_client, to_node, cut.clone()));
    pass(from_node, to_client, cut).await;
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
