//! The gRPC service that offers and sends slices.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ds4_proto::gate::Peer;
use ds4_proto::limits::MAX_NAME_BYTES;
use ds4_proto::pb::slice_source_server::SliceSource;
use ds4_proto::wire::{
    SliceMismatch, Versions, WireError, check_offer_request, clip, decode_hash, seal,
};
use ds4_proto::{channel, pb};
use futures::stream::Stream;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::metrics::{FetchGuard, PullProgress};
use super::send::{FetchResult, Sending};
use super::{Share, Shares};

/// Chunks that may wait between the reader of the model and a node's stream.
const AHEAD: usize = 4;

/// Time that a fetch waits for a permit before it is refused; the node tries again later.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(20);

/// Most fetches that wait for a permit.
const QUEUE: usize = 256;

/// Limits of the service.
#[derive(Clone, Copy, Debug)]
pub struct ShareSettings {
    /// Tensors sent at once, over all nodes; 1 to 1024.
    pub fetches: usize,
}

impl Default for ShareSettings {
    fn default() -> Self {
        ShareSettings { fetches: 8 }
    }
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct SliceShare(Arc<ShareState>);

struct ShareState {
    shares: Shares,
    /// The progress of each share's node.
    progress: Vec<Arc<PullProgress>>,
    /// A permit for each tensor that is being sent.
    fetches: Arc<Semaphore>,
    /// A permit for each fetch that waits.
    queue: Arc<Semaphore>,
}

impl std::fmt::Debug for SliceShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SliceShare").field(&self.0.shares).finish()
    }
}

impl SliceShare {
    /// Serves `shares`. The process's metrics recorder must be installed before.
    #[must_use]
    pub fn new(shares: Shares, settings: ShareSettings) -> Self {
        let progress = shares
            .all()
            .iter()
            .map(|share| Arc::new(PullProgress::new(share)));
        SliceShare(Arc::new(ShareState {
            progress: progress.collect(),
            fetches: Arc::new(Semaphore::new(settings.fetches.clamp(1, 1024))),
            queue: Arc::new(Semaphore::new(QUEUE)),
            shares,
        }))
    }

    fn find(&self, node: &str) -> Result<(usize, &Share), Status> {
        let shares = &self.0.shares;
        let number = shares.find(node).ok_or_else(|| {
            Status::not_found(format!(
                "the plan has no node named {:?}; it has {}",
                clip(node, MAX_NAME_BYTES),
                clip(&shares.names(), MAX_NAME_BYTES)
            ))
        })?;
        Ok((number, &shares.all()[number]))
    }
}

#[tonic::async_trait]
impl SliceSource for SliceShare {
    async fn offer(
        &self,
        request: Request<pb::OfferRequest>,
    ) -> Result<Response<pb::OfferReply>, Status> {
        let request = request.into_inner();
        check_offer_request(&request).map_err(|error| match error {
            // FAILED_PRECONDITION would mean that the node's slice has changed.
            SliceMismatch::Version { .. } => Status::unimplemented(error.to_string()),
            // Damaged on its way: the node tries again.
            SliceMismatch::Wire(WireError::Checksum(_)) => Status::data_loss(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        })?;
        let (_, share) = self.find(&request.node)?;
        tracing::info!(
            node = request.node,
            share = share.node,
            software = clip(&request.software, MAX_NAME_BYTES),
            "a node requested its slice"
        );
        let head = share.head.encode();
        Ok(Response::new(seal(pb::OfferReply {
            protocol_version: Versions::OURS.newest,
            oldest_version: Versions::OURS.oldest,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            head: head
                .map_err(|error| Status::internal(error.to_string()))?
                .into(),
            file_bytes: share.head.file_bytes(),
            checksum: 0,
        })))
    }

    type FetchStream = ReceiverStream<FetchResult>;

    async fn fetch(
        &self,
        request: Request<pb::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let (number, share) = self.find(&request.node)?;
        let slice = decode_hash(&request.slice)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if slice != share.head.identity() {
            return Err(Status::failed_precondition(
                "the slice of this node has changed",
            ));
        }
        let (tensor, offset) = (request.tensor as usize, request.offset);
        let wanted = share.head.tensors().get(tensor);
        let wanted = wanted.filter(|t| offset <= t.bytes).ok_or_else(|| {
            Status::invalid_argument(format!("tensor {tensor} of the slice has no byte {offset}"))
        })?;
        let busy =
            || Status::resource_exhausted("too many tensors are being sent; try again later");
        let queued = Arc::clone(&self.0.queue).try_acquire_owned();
        let _queued = queued.map_err(|_| busy())?;
        let turn = Arc::clone(&self.0.fetches).acquire_owned();
        let turn = tokio::time::timeout(QUEUE_TIMEOUT, turn).await;
        let permit = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let progress = Arc::clone(&self.0.progress[number]);
        progress.begin(tensor, offset);
        let (replies, stream) = mpsc::channel(AHEAD);
        let sending = Sending {
            cut: self.0.shares.model().cut(wanted),
            tensor,
            offset,
            progress,
            replies,
            _permit: permit,
            _running: FetchGuard::new(),
        };
        tokio::spawn(sending.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Serves the connections of `incoming`, which admits only peers that may have slices, until `stop`
/// ends.
///
/// # Errors
/// The socket fails.
pub async fn serve(
    incoming: impl Stream<Item = io::Result<Peer>>,
    share: SliceShare,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    channel::server()
        .add_service(channel::slice_server(share))
        .serve_with_incoming_shutdown(incoming, stop)
        .await
}
