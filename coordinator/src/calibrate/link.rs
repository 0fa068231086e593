//! Measures the rate of a link: bytes by time, less the time of a round trip.

use std::time::{Duration, Instant};

use ds4_proto::limits::{MAX_PROBE_BYTES, PROBE_CHUNK_BYTES};
use ds4_proto::pb::node_probe_client::NodeProbeClient;
use ds4_proto::pb::{ProbeData, SourceRequest};
use ds4_proto::wire::probe_noise;
use futures::stream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Shortest transfer that is timed.
const LONG_ENOUGH: Duration = Duration::from_millis(150);

/// Number of timed transfers, of which the median is taken.
const REPEATS: usize = 3;

/// Pause before a node that is busy with another measurement is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Rates of a link in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkRates {
    /// From this machine to the node.
    pub up: f64,
    /// From the node to this machine.
    pub down: f64,
}

impl LinkRates {
    /// The slower direction.
    #[must_use]
    pub fn least(&self) -> f64 {
        self.up.min(self.down)
    }
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Up,
    Down,
}

/// Measures both directions, one after the other.
pub(super) async fn both_ways(
    client: &mut NodeProbeClient<Channel>,
    round_trip: Duration,
) -> Result<LinkRates, Status> {
    Ok(LinkRates {
        up: rate(client, Direction::Up, round_trip).await?,
        down: rate(client, Direction::Down, round_trip).await?,
    })
}

/// Doubles the length until a transfer takes long enough, which also opens the windows of a new
/// connection, then takes the median of [`REPEATS`] transfers of that length.
async fn rate(
    client: &mut NodeProbeClient<Channel>,
    direction: Direction,
    round_trip: Duration,
) -> Result<f64, Status> {
    let mut bytes = PROBE_CHUNK_BYTES as u64;
    let mut time = timed(client, direction, bytes).await?;
    while time < LONG_ENOUGH + round_trip && bytes < MAX_PROBE_BYTES {
        bytes = (bytes * 2).min(MAX_PROBE_BYTES);
        time = timed(client, direction, bytes).await?;
    }
    let mut times = vec![time];
    while times.len() < REPEATS {
        times.push(timed(client, direction, bytes).await?);
    }
    times.sort();
    let time = times[times.len() / 2];
    // At least half of it counts: the measured round trip may have been a slow one.
    let time = time.saturating_sub(round_trip).max(time / 2);
    Ok(bytes as f64 / time.as_secs_f64().max(1e-9))
}

/// Time of one transfer. A node that is busy with another measurement is asked again until the
/// caller's timeout.
async fn timed(
    client: &mut NodeProbeClient<Channel>,
    direction: Direction,
    bytes: u64,
) -> Result<Duration, Status> {
    loop {
        let start = Instant::now();
        let moved = match direction {
            Direction::Up => send(client, bytes).await,
            Direction::Down => receive(client, bytes).await,
        };
        let time = start.elapsed();
        match moved {
            Ok(moved) if moved == bytes => return Ok(time),
            Ok(moved) => {
                let text = format!("{moved} of {bytes} bytes arrived");
                return Err(Status::data_loss(text));
            }
            Err(status) if status.code() == Code::ResourceExhausted => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(status) => return Err(status),
        }
    }
}

async fn send(client: &mut NodeProbeClient<Channel>, bytes: u64) -> Result<u64, Status> {
    let chunk = probe_noise();
    let whole = bytes / PROBE_CHUNK_BYTES as u64;
    let messages = (0..whole).map(move |_| ProbeData {
        data: chunk.clone(),
    });
    let reply = client.sink(stream::iter(messages)).await?;
    Ok(reply.get_ref().bytes)
}

async fn receive(client: &mut NodeProbeClient<Channel>, bytes: u64) -> Result<u64, Status> {
    let request = SourceRequest { bytes };
    let mut replies = client.source(request).await?.into_inner();
    let mut moved = 0u64;
    while let Some(data) = replies.message().await? {
        moved += data.data.len() as u64;
        if moved > bytes {
            break;
        }
    }
    Ok(moved)
}
