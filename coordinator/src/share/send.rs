//! One tensor on its way to a node.

use std::sync::Arc;

use bytes::Bytes;
use ds4_common::slice::{CutTensor, Hasher, SliceError};
use ds4_proto::limits::{SLICE_CHUNK_BYTES, SLICE_STALL};
use ds4_proto::pb::{self, fetch_reply};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::ledger::{Account, Running};

pub(super) type Reply = Result<pb::FetchReply, Status>;

/// A tensor that is being sent, with the permit that it takes.
pub(super) struct Sending {
    pub(super) cut: CutTensor,
    pub(super) tensor: usize,
    pub(super) offset: u64,
    pub(super) account: Arc<Account>,
    pub(super) replies: mpsc::Sender<Reply>,
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _running: Running,
}

/// What the blocking thread and the async task hand to each other.
struct Reader {
    cut: CutTensor,
    hasher: Hasher,
    at: u64,
}

impl Reader {
    /// The next bytes, at most a chunk; none at the end.
    fn next(&mut self) -> Result<Vec<u8>, SliceError> {
        let left = self.cut.bytes() - self.at;
        let mut chunk = vec![0; left.min(SLICE_CHUNK_BYTES as u64) as usize];
        self.cut.read(self.at, &mut chunk)?;
        self.hasher.update(&chunk);
        self.at += chunk.len() as u64;
        Ok(chunk)
    }
}

impl Sending {
    /// Sends the tensor and its hash. Ends early if the model cannot be read, or the node is gone
    /// or takes nothing for too long.
    pub(super) async fn run(self) {
        let mut reader = Reader {
            cut: self.cut.clone(),
            hasher: Hasher::new(),
            at: 0,
        };
        loop {
            let step = tokio::task::spawn_blocking(move || {
                let chunk = reader.next();
                (reader, chunk)
            });
            let chunk;
            (reader, chunk) = match step.await {
                Ok(step) => step,
                Err(_) => return,
            };
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    tracing::error!(%error, "a slice cannot be cut");
                    // Whoever is gone needs no status.
                    let _ = self
                        .replies
                        .try_send(Err(Status::internal(error.to_string())));
                    return;
                }
            };
            if chunk.is_empty() {
                let hash = reader.hasher.finalize().as_bytes().to_vec().into();
                self.send(fetch_reply::Kind::End(pb::FetchEnd { hash }))
                    .await;
                return;
            }
            // What the node has already counts for the hash alone.
            let known = self.offset.saturating_sub(reader.at - chunk.len() as u64);
            let Ok(known) = usize::try_from(known) else {
                return;
            };
            if known >= chunk.len() {
                if self.replies.is_closed() {
                    return;
                }
                continue;
            }
            let data = Bytes::from(chunk).slice(known..);
            let bytes = data.len() as u64;
            if !self.send(fetch_reply::Kind::Data(data)).await {
                return;
            }
            self.account.sent(self.tensor, reader.at, bytes);
        }
    }

    /// Whether the node took it in time.
    async fn send(&self, kind: fetch_reply::Kind) -> bool {
        let reply = Ok(pb::FetchReply { kind: Some(kind) });
        self.replies.send_timeout(reply, SLICE_STALL).await.is_ok()
    }
}
