//! Measures one node, each part with a timeout.

use std::time::{Duration, Instant};

use ds4_common::measure::MachineRates;
use ds4_proto::channel;
use ds4_proto::error_text::{error_text, status_text};
use ds4_proto::limits::{MAX_DESCRIPTION_BYTES, MAX_PROBE_BUDGET};
use ds4_proto::pb::MeasureRequest;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::pb::node_probe_client::NodeProbeClient;
use ds4_proto::security::Security;
use ds4_proto::wire::{NodeInfo, Versions, decode_node, decode_rates};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::CalibrateError;
use super::link::{self, LinkRates};

/// Number of round trips, of which the median is taken.
const ROUND_TRIPS: usize = 15;

/// Pause before a node that is busy with another measurement is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// A node to measure.
pub(super) struct Node<'a> {
    pub(super) address: &'a str,
    /// For each part.
    timeout: Duration,
}

/// A node's measurements of its machine, and the connection to it.
pub(super) struct MachineReport {
    pub(super) channel: Channel,
    pub(super) round_trip: Duration,
    pub(super) threads: u32,
    pub(super) kernels: String,
    /// `None` if its software cannot measure.
    pub(super) rates: Option<MachineRates>,
}

impl<'a> Node<'a> {
    pub(super) fn new(address: &'a str, timeout: Duration) -> Self {
        Node { address, timeout }
    }

    /// Connects, and measures the round trip and the machine.
    pub(super) async fn measure_machine(
        &self,
        security: &Security,
    ) -> Result<MachineReport, CalibrateError> {
        self.in_time("its machine", self.connect_and_measure(security))
            .await
    }

    /// Measures the link.
    pub(super) async fn measure_link(
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
            "measured the link to an expert node"
        );
        Ok(found)
    }

    async fn connect_and_measure(
        &self,
        security: &Security,
    ) -> Result<MachineReport, CalibrateError> {
        let node = || self.address.to_owned();
        let endpoint = security.endpoint(self.address);
        let endpoint = endpoint.map_err(|problem| CalibrateError::Dial {
            node: node(),
            problem,
        })?;
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| CalibrateError::Unreachable {
            node: node(),
            reason: error_text(&error),
        })?;
        let (info, round_trip) = self.round_trip(&channel).await?;
        let rates = self.machine(channel::probe_client(channel.clone())).await?;
        match &rates {
            Some(rates) => tracing::info!(
                node = self.address,
                gigabytes_per_second = rates.read as f64 / 1e9,
                round_trip_us = round_trip.as_micros() as u64,
                "measured the machine of an expert node"
            ),
            None => tracing::warn!(
                node = self.address,
                software = info.software,
                "an expert node's software cannot measure its machine; defaults are assumed"
            ),
        }
        Ok(MachineReport {
            channel,
            round_trip,
            threads: info.threads,
            kernels: info.kernels,
            rates,
        })
    }

    /// The node's description, and the median time of such a request.
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

    /// Runs `work` with the timeout.
    async fn in_time<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, CalibrateError>>,
    ) -> Result<T, CalibrateError> {
        let result = tokio::time::timeout(self.timeout, work).await;
        result.unwrap_or_else(|_| {
            Err(CalibrateError::Late {
                node: self.address.to_owned(),
                what,
                limit: self.timeout,
            })
        })
    }

    fn failed(&self, what: &'static str, status: &Status) -> CalibrateError {
        CalibrateError::Failed {
            node: self.address.to_owned(),
            what,
            reason: status_text(status),
        }
    }
}
