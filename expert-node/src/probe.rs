//! Measures this machine and its link for coordinators, one measurement at a time, so that none
//! disturbs another.

use std::sync::Arc;
use std::time::Duration;

use ds4_common::measure::{MachineRates, Measurement};
use ds4_common::memory_limit;
use ds4_proto::limits::{PROBE_CHUNK_BYTES, PROBE_TIMEOUT};
use ds4_proto::pb;
use ds4_proto::pb::node_probe_server::NodeProbe;
use ds4_proto::wire::{
    WireError, check_measure, check_source, count_probe_bytes, encode_rates, probe_noise,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::service::NodeService;
use crate::state::Phase;
use crate::worker::MeasureTurn;

/// A message to the other end of a link, or the status that ends the stream.
type ProbeItem = Result<pb::ProbeData, Status>;

/// Pause before a turn that found the queue full is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(10);

impl NodeService {
    fn begin_probe(&self) -> Result<OwnedSemaphorePermit, Status> {
        if *self.0.phase.borrow() != Phase::Serving {
            return Err(Status::unavailable("this node is shutting down"));
        }
        let turn = Arc::clone(&self.0.probe).try_acquire_owned();
        turn.map_err(|_| Status::resource_exhausted("another measurement is running"))
    }

    /// Measures turn by turn through the queue, behind the work that waits there.
    async fn measure_machine(&self, budget: Duration) -> Result<MachineRates, Status> {
        let memory = memory_limit::available();
        let mut measurement = Measurement::new(budget);
        loop {
            let (done, outcome) = oneshot::channel();
            let mut turn = Box::new(MeasureTurn { measurement, done });
            while let Err(refused) = self.0.queue.submit_turn(turn) {
                tokio::time::sleep(FULL_PAUSE).await;
                turn = refused;
            }
            let outcome = outcome.await;
            let outcome = outcome.map_err(|_| Status::internal("the measurement failed"))?;
            match outcome.rates {
                Some(rates) => return Ok(MachineRates::of(rates, outcome.kernels, memory)),
                None => measurement = outcome.measurement,
            }
        }
    }
}

#[tonic::async_trait]
impl NodeProbe for NodeService {
    type SourceStream = ReceiverStream<ProbeItem>;

    async fn measure(
        &self,
        request: Request<pb::MeasureRequest>,
    ) -> Result<Response<pb::MeasureReply>, Status> {
        let budget = check_measure(request.get_ref()).map_err(invalid)?;
        let _alone = self.begin_probe()?;
        let rates = within_timeout(self.measure_machine(budget)).await?;
        tracing::info!(
            gigabytes_per_second = rates.read as f64 / 1e9,
            "measured this machine"
        );
        Ok(Response::new(encode_rates(&rates)))
    }

    async fn sink(
        &self,
        request: Request<Streaming<pb::ProbeData>>,
    ) -> Result<Response<pb::SinkReply>, Status> {
        let _alone = self.begin_probe()?;
        let mut inbound = request.into_inner();
        let receive = async {
            let mut bytes = 0;
            while let Some(data) = inbound.message().await? {
                bytes = count_probe_bytes(bytes, &data).map_err(invalid)?;
            }
            Ok::<_, Status>(bytes)
        };
        let bytes = within_timeout(receive).await?;
        Ok(Response::new(pb::SinkReply { bytes }))
    }

    async fn source(
        &self,
        request: Request<pb::SourceRequest>,
    ) -> Result<Response<Self::SourceStream>, Status> {
        let bytes = check_source(request.get_ref()).map_err(invalid)?;
        let alone = self.begin_probe()?;
        let (data, outbound) = mpsc::channel(1);
        // A peer that does not read is not waited for: the stream ends early.
        let sending = tokio::time::timeout(PROBE_TIMEOUT, send(bytes, data, alone));
        tokio::spawn(sending);
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

async fn send(mut left: u64, data: mpsc::Sender<ProbeItem>, alone: OwnedSemaphorePermit) {
    let mut alone = Some(alone);
    while left > 0 {
        let bytes = left.min(PROBE_CHUNK_BYTES as u64);
        left -= bytes;
        if left == 0 {
            // With the last message received, the peer may begin the next measurement.
            drop(alone.take());
        }
        let message = pb::ProbeData {
            data: probe_noise().slice(..bytes as usize),
        };
        if data.send(Ok(message)).await.is_err() {
            return;
        }
    }
}

async fn within_timeout<T>(work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let result = tokio::time::timeout(PROBE_TIMEOUT, work).await;
    result.map_err(|_| late())?
}

fn late() -> Status {
    let seconds = PROBE_TIMEOUT.as_secs();
    Status::deadline_exceeded(format!("the measurement took longer than {seconds} s"))
}

fn invalid(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}
