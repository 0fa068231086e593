//! Questions to one node, each with a deadline.

use std::time::{Duration, Instant};

use ds4_common::measure::MachineRates;
use ds4_proto::channel;
use ds4_proto::limits::{MAX_DESCRIPTION_BYTES, MAX_PROBE_BUDGET, MAX_TEXT_BYTES};
use ds4_proto::pb::MeasureRequest;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::pb::node_probe_client::NodeProbeClient;
use ds4_proto::security::Security;
use ds4_proto::wire::{NodeInfo, Versions, clip, decode_node, decode_rates};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::CalibrateError;
use super::link::{self, LinkRates};
use crate::cluster::{reason, status_text};

/// Round trips, of which the median counts.
const ROUND_TRIPS: usize = 15;

/// Pause before a node that is measuring for somebody else is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// A node to measure.
pub(super) struct Node<'a> {
    pub(super) address: &'a str,
    /// Time for each part.
    patience: Duration,
}

/// What a node said of its machine, and the way to it.
pub(super) struct Asked {
    pub(super) channel: Channel,
    pub(super) round_trip: Duration,
    pub(super) threads: u32,
    pub(super) kernels: String,
    /// `None` if it cannot measure.
    pub(super) rates: Option<MachineRates>,
}

impl<'a> Node<'a> {
    pub(super) fn new(address: &'a str, patience: Duration) -> Self {
        Node { address, patience }
    }

    /// Connects, and measures the round trip and the machine.
    pub(super) async fn ask(&self, security: &Security) -> Result<Asked, CalibrateError> {
        self.in_time("its machine", self.ask_for_long(security))
            .await
    }

    /// Measures the link.
    pub(super) async fn link(
        &self,
        channel: &Channel,
        round_trip: Duration,
    ) -> Result<LinkRates, CalibrateError> {
        const WHAT: &str = "its link";
        let mut client = channel::probe_client(channel.clone());
        let measured = async {
            let found = link::both_ways(&mut client, round_trip).await;
            found.map_err(|status| self.failed(WHAT, &status))
        };
        let found = self.in_time(WHAT, measured).await?;
        tracing::info!(
            node = self.address,
            up_megabit = (found.up * 8e-6) as u64,
            down_megabit = (found.down * 8e-6) as u64,
            "link measured"
        );
        Ok(found)
    }

    async fn ask_for_long(&self, security: &Security) -> Result<Asked, CalibrateError> {
        let node = || self.address.to_owned();
        let endpoint = security.endpoint(self.address);
        let endpoint = endpoint.map_err(|problem| CalibrateError::Dial {
            node: node(),
            problem,
        })?;
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| CalibrateError::Unreachable {
            node: node(),
            reason: reason(&error),
        })?;
        let (info, round_trip) = self.round_trip(&channel).await?;
        let rates = self.machine(channel::probe_client(channel.clone())).await?;
        match &rates {
            Some(rates) => tracing::info!(
                node = self.address,
                gigabytes_per_second = rates.read as f64 / 1e9,
                round_trip_us = round_trip.as_micros() as u64,
                "machine measured"
            ),
            None => tracing::warn!(
                node = self.address,
                software = info.software,
                "its software is too old to measure with; what it cannot tell is assumed"
            ),
        }
        Ok(Asked {
            channel,
            round_trip,
            threads: info.threads,
            kernels: info.kernels,
            rates,
        })
    }

    /// What the node says it is, and how long such an answer takes.
    async fn round_trip(&self, channel: &Channel) -> Result<(NodeInfo, Duration), CalibrateError> {
        const WHAT: &str = "its round trip";
        let client = NodeControlClient::new(channel.clone());
        let mut client = client.max_decoding_message_size(MAX_DESCRIPTION_BYTES);
        let failed = |status: Status| self.failed(WHAT, &status);
        let reply = client.describe(Versions::request()).await.map_err(failed)?;
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        while times.len() < ROUND_TRIPS {
            let start = Instant::now();
            client.describe(Versions::request()).await.map_err(failed)?;
            times.push(start.elapsed());
        }
        times.sort();
        let node = || self.address.to_owned();
        let info = decode_node(reply.get_ref()).map_err(|problem| CalibrateError::Malformed {
            node: node(),
            problem,
        })?;
        let info = info.map_err(|mismatch| CalibrateError::Mismatch {
            node: node(),
            mismatch,
        })?;
        Ok((info, times[times.len() / 2]))
    }

    async fn machine(
        &self,
        mut client: NodeProbeClient<Channel>,
    ) -> Result<Option<MachineRates>, CalibrateError> {
        let request = MeasureRequest {
            budget_ms: MAX_PROBE_BUDGET.as_millis() as u32,
        };
        loop {
            match client.measure(request).await {
                Ok(reply) => {
                    let rates = decode_rates(reply.get_ref());
                    return rates
                        .map(Some)
                        .map_err(|problem| CalibrateError::Malformed {
                            node: self.address.to_owned(),
                            problem,
                        });
                }
                Err(status) if status.code() == Code::Unimplemented => return Ok(None),
                Err(status) if status.code() == Code::ResourceExhausted => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(status) => return Err(self.failed("its machine", &status)),
            }
        }
    }

    async fn in_time<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, CalibrateError>>,
    ) -> Result<T, CalibrateError> {
        let result = tokio::time::timeout(self.patience, work).await;
        result.unwrap_or_else(|_| {
            Err(CalibrateError::Late {
                node: self.address.to_owned(),
                what,
                limit: self.patience,
            })
        })
    }

    fn failed(&self, what: &'static str, status: &Status) -> CalibrateError {
        CalibrateError::Failed {
            node: self.address.to_owned(),
            what,
            reason: clip(&status_text(status), MAX_TEXT_BYTES),
        }
    }
}
