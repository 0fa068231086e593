//! The gRPC service of [`super`].

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ds4_proto::gate::Peer;
use ds4_proto::limits::MAX_NAME_BYTES;
use ds4_proto::pb::slice_source_server::SliceSource;
use ds4_proto::wire::{SliceMismatch, Versions, check_offer_request, clip, decode_hash};
use ds4_proto::{channel, pb};
use futures::stream::Stream;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::ledger::{Account, Running};
use super::send::{Reply, Sending};
use super::{Share, Shares};

/// Chunks between the reader of the model and a node's stream.
const AHEAD: usize = 4;

/// Time that a fetch waits for others to end before the node is sent away for now.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(20);

/// Fetches that may wait.
const QUEUE: usize = 256;

/// How much nodes may ask for.
#[derive(Clone, Copy, Debug)]
pub struct ShareSettings {
    /// Tensors on their way at once, to all nodes together.
    pub fetches: usize,
}

impl Default for ShareSettings {
    fn default() -> Self {
        ShareSettings { fetches: 8 }
    }
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct SliceShare(Arc<State>);

struct State {
    shares: Shares,
    /// One a share.
    accounts: Vec<Arc<Account>>,
    fetches: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

impl std::fmt::Debug for SliceShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SliceShare").field(&self.0.shares).finish()
    }
}

impl SliceShare {
    /// The process's recorder must be installed before.
    #[must_use]
    pub fn new(shares: Shares, settings: ShareSettings) -> Self {
        let accounts = shares
            .all()
            .iter()
            .map(|share| Arc::new(Account::new(share)));
        SliceShare(Arc::new(State {
            accounts: accounts.collect(),
            fetches: Arc::new(Semaphore::new(settings.fetches.clamp(1, 1024))),
            queue: Arc::new(Semaphore::new(QUEUE)),
            shares,
        }))
    }

    fn find(&self, node: &str) -> Result<(usize, &Share), Status> {
        let shares = &self.0.shares;
        let number = shares.find(node).ok_or_else(|| {
            Status::not_found(format!(
                "the plan has no node {:?}, but {}",
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
            // Not FAILED_PRECONDITION, which means that it would be another slice now.
            SliceMismatch::Version { .. } => Status::unimplemented(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        })?;
        let (_, share) = self.find(&request.node)?;
        tracing::info!(
            node = request.node,
            share = share.node,
            software = clip(&request.software, MAX_NAME_BYTES),
            "a node asks for its slice"
        );
        let head = share.head.encode();
        Ok(Response::new(pb::OfferReply {
            protocol_version: Versions::OURS.newest,
            oldest_version: Versions::OURS.oldest,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            head: head
                .map_err(|error| Status::internal(error.to_string()))?
                .into(),
            file_bytes: share.head.file_bytes(),
        }))
    }

    type FetchStream = ReceiverStream<Reply>;

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
                "the slice of this node is another one now",
            ));
        }
        let (tensor, offset) = (request.tensor as usize, request.offset);
        let wanted = share.head.tensors().get(tensor);
        let wanted = wanted.filter(|t| offset <= t.bytes).ok_or_else(|| {
            Status::invalid_argument(format!("the slice has no byte {offset} of tensor {tensor}"))
        })?;
        let busy = || Status::resource_exhausted("too many tensors are on their way");
        let queued = Arc::clone(&self.0.queue).try_acquire_owned();
        let _queued = queued.map_err(|_| busy())?;
        let turn = Arc::clone(&self.0.fetches).acquire_owned();
        let turn = tokio::time::timeout(QUEUE_TIMEOUT, turn).await;
        let permit = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let account = Arc::clone(&self.0.accounts[number]);
        account.begin(tensor, offset);
        let (replies, stream) = mpsc::channel(AHEAD);
        let sending = Sending {
            cut: self.0.shares.model().cut(wanted),
            tensor,
            offset,
            account,
            replies,
            _permit: permit,
            _running: Running::new(),
        };
        tokio::spawn(sending.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Serves connections of whoever may have slices until `stop` ends.
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
