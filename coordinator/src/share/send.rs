//! Sends one tensor to a node.

use std::sync::Arc;

use bytes::Bytes;
use ds4_common::slice::{CutTensor, Hasher, SliceError};
use ds4_proto::limits::{SLICE_CHUNK_BYTES, SLICE_STALL};
use ds4_proto::pb::{self, fetch_reply};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::metrics::{FetchGuard, PullProgress};

/// One message of a fetch stream.
pub(super) type FetchResult = Result<pb::FetchReply, Status>;

/// A tensor that is being sent, and the permit that it holds.
pub(super) struct Sending {
    pub(super) cut: CutTensor,
    /// Position of the tensor in the slice.
    pub(super) tensor: usize,
    /// First byte that the node wants.
    pub(super) offset: u64,
    pub(super) progress: Arc<PullProgress>,
    pub(super) replies: mpsc::Sender<FetchResult>,
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _running: FetchGuard,
}

/// Reads the tensor; handed back and forth between the async task and blocking threads.
struct Reader {
    cut: CutTensor,
    hasher: Hasher,
    /// Bytes read so far.
    at: u64,
}

impl Reader {
    /// The next chunk; empty at the end.
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
    /// Sends the tensor and its hash. Ends early if the model cannot be read, or if the node has
    /// gone or accepts nothing for [`SLICE_STALL`].
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
                    tracing::error!(%error, "cannot read a tensor from the model");
                    // If the node has gone, it needs no status.
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
            // Bytes that the node has already are only hashed.
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
            self.progress.sent(self.tensor, reader.at, bytes);
        }
    }

    /// Returns whether the node accepted the message in time.
    async fn send(&self, kind: fetch_reply::Kind) -> bool {
        let reply = Ok(pb::FetchReply { kind: Some(kind) });
        self.replies.send_timeout(reply, SLICE_STALL).await.is_ok()
    }
}
