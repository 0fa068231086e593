//! Fetches a node's slice from the coordinator, however often the transfer is interrupted.
//!
//! ```text
//! Offer ─► head of the slice ─► what is missing? ─► Fetch tensor ─► NAME.gguf.part ─► NAME.gguf
//!                                    ▲                   │ chunk by chunk, hash behind the last
//!                                    └───────────────────┘
//! ```

mod error;
mod fetch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ds4_common::slice::{ByteProgress, Slice, SliceHead, SliceWriter, ensure_room, part_path};
use ds4_proto::channel;
use ds4_proto::error_text::error_text;
use ds4_proto::limits::HANDSHAKE_TIMEOUT;
use ds4_proto::security::{Dial, DialError, Security};
use ds4_proto::wire::{SliceMismatch, WireError, decode_offer, offer_request};
use tonic::transport::Channel;

pub use error::PullError;
use error::{Setback, setback};

/// The first wait after a setback, and the longest.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// Corrupted transfers of one tensor in a row, after which the network is not to blame.
const MAX_STRIKES: u32 = 3;

/// Which slice a node wants, and where to get it.
#[derive(Clone, Debug)]
pub struct PullConfig {
    /// Where the slice is stored.
    pub path: PathBuf,
    /// The node's name in the plan.
    pub node: String,
    /// `host:port` of the coordinator; `None` uses the slice on disk.
    pub coordinator: Option<String>,
    /// What protects the connection to it.
    pub security: Security,
    /// Longest time without progress.
    pub timeout: Duration,
}

/// Makes sure that the slice is on disk. A valid slice is kept unless the coordinator can be reached
/// and has another one for this node.
///
/// # Errors
/// It is not on disk and cannot be fetched: the coordinator cannot be reached or refuses, the disk
/// is too small, or the data arrives corrupted several times.
pub async fn ensure(config: &PullConfig) -> Result<(), PullError> {
    let path = config.path.clone();
    let on_disk = blocking(move || Ok(open(&path))).await?;
    let Some(coordinator) = &config.coordinator else {
        return match on_disk {
            Some(_) => Ok(()),
            None => Err(PullError::NoSlice {
                file: config.path.clone(),
            }),
        };
    };
    let dial = config.security.endpoint(coordinator);
    let dial = dial.map_err(|error| match error {
        DialError::Address { address, reason } => PullError::Address {
            address,
            reason: reason.to_string(),
        },
        DialError::PlainText(error) => PullError::PlainText(error),
    })?;
    let mut pull = Pull {
        config,
        coordinator,
        channel: open_channel(&dial)?,
        dial,
        setbacks: Setbacks::new(config.timeout),
    };
    if let Some(on_disk) = on_disk {
        match pull.offer().await {
            Ok(offer) if offer.identity() == on_disk.identity() => return Ok(()),
            Ok(_) => tracing::warn!(
                file = %config.path.display(),
                "the coordinator has another slice for this node: replacing the one on disk"
            ),
            Err(error) => {
                tracing::warn!(%error, "no offer from the coordinator: serving the slice on disk");
                return Ok(());
            }
        }
    }
    pull.run().await
}

/// The head of a valid slice.
fn open(path: &Path) -> Option<SliceHead> {
    if !path.exists() {
        return None;
    }
    match Slice::open(path) {
        Ok(slice) => Some(slice.head().clone()),
        Err(error) => {
            tracing::warn!(%error, "the slice on disk cannot be used");
            None
        }
    }
}

fn open_channel(dial: &Dial) -> Result<Channel, PullError> {
    let channel = dial.connect_lazy();
    channel.map_err(|error| PullError::Settings(error_text(&error)))
}

struct Pull<'a> {
    config: &'a PullConfig,
    coordinator: &'a str,
    dial: Dial,
    channel: Channel,
    setbacks: Setbacks,
}

impl Pull<'_> {
    async fn run(&mut self) -> Result<(), PullError> {
        loop {
            let offer = match self.offer().await {
                Ok(offer) => offer,
                Err(error) => {
                    self.wait(error).await?;
                    continue;
                }
            };
            let writer = self.begin(offer).await?;
            match self.fetch_all(writer).await? {
                Some(writer) => {
                    blocking(move || Ok(writer.finish()?)).await?;
                    return Ok(());
                }
                None => {
                    let reason = Setback::passing("it has another slice for this node");
                    self.wait(reason).await?;
                }
            }
        }
    }

    /// Waits before the next attempt, which uses the certificates of then.
    async fn wait(&mut self, setback: Setback) -> Result<(), PullError> {
        self.setbacks.wait(setback, self.coordinator).await?;
        self.channel = open_channel(&self.dial)?;
        Ok(())
    }

    async fn offer(&self) -> Result<SliceHead, Setback> {
        let mut client = channel::offer_client(self.channel.clone());
        let asked = client.offer(offer_request(&self.config.node));
        let reply = tokio::time::timeout(HANDSHAKE_TIMEOUT, asked)
            .await
            .map_err(|_| Setback::passing("timed out waiting for an offer"))?
            .map_err(|status| setback(&status))?;
        let from = PathBuf::from(format!("the slice that {} offers", self.coordinator));
        decode_offer(&reply.into_inner(), &from).map_err(|error| match error {
            SliceMismatch::Wire(WireError::Checksum(_)) => Setback::Passing(error.to_string()),
            error => Setback::Refused(error.to_string()),
        })
    }

    /// Opens the file as far as it was written, on a disk that has room for the rest.
    async fn begin(&self, offer: SliceHead) -> Result<SliceWriter, PullError> {
        let path = self.config.path.clone();
        blocking(move || {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            std::fs::create_dir_all(folder).map_err(|problem| PullError::Folder {
                folder: folder.to_path_buf(),
                problem,
            })?;
            ensure_room(folder, SliceWriter::missing_bytes(&path, &offer))?;
            if part_path(&path).exists() {
                tracing::info!(
                    file = %part_path(&path).display(),
                    "verifying the part of the slice that is on disk"
                );
            }
            Ok(SliceWriter::open(&path, offer, &mut |_| {})?)
        })
        .await
    }

    /// Fetches tensor after tensor; `None` if the coordinator meanwhile has another slice.
    async fn fetch_all(&mut self, writer: SliceWriter) -> Result<Option<SliceWriter>, PullError> {
        let (total, found) = (writer.total_bytes(), writer.done_bytes());
        let mut progress = ByteProgress::new(total, found);
        tracing::info!(
            coordinator = self.coordinator,
            megabytes = (total - found) / 1_000_000,
            of = total / 1_000_000,
            tiles = %writer.head().holdings(),
            "pulling the slice"
        );
        let mut writer = writer;
        let mut strikes = 0;
        while let Some((tensor, offset)) = writer.position() {
            let before = writer.done_bytes();
            let outcome;
            (writer, outcome) = self.fetch(writer, tensor, offset, &mut progress).await?;
            if writer.done_bytes() > before {
                self.setbacks.forget();
            }
            match outcome {
                Ok(()) => strikes = 0,
                Err(Setback::OtherSlice) => return Ok(None),
                Err(Setback::Wrong(reason)) => {
                    strikes += 1;
                    writer.restart_tensor();
                    if strikes == MAX_STRIKES {
                        let tensor = writer.head().tensors()[tensor].name.clone();
                        return Err(PullError::Wrong { tensor, reason });
                    }
                    tracing::warn!(reason, "fetching the tensor again");
                }
                Err(error) => self.wait(error).await?,
            }
        }
        tracing::info!("pulled the slice: {}", progress.summary());
        Ok(Some(writer))
    }
}

/// Runs work that waits for the disk on a thread for blocking work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(PullError::Interrupted),
    }
}

/// Setbacks since the last progress.
struct Setbacks {
    timeout: Duration,
    /// The first of them.
    since: Option<Instant>,
    /// The next wait.
    next: Duration,
    /// When the last line was logged.
    logged: Option<Instant>,
}

impl Setbacks {
    /// Time between two log lines about the same trouble.
    const EVERY: Duration = Duration::from_secs(10);

    fn new(timeout: Duration) -> Self {
        Setbacks {
            timeout,
            since: None,
            next: BACKOFF[0],
            logged: None,
        }
    }

    fn forget(&mut self) {
        *self = Self::new(self.timeout);
    }

    /// Waits before the next attempt, or gives up.
    async fn wait(&mut self, setback: Setback, coordinator: &str) -> Result<(), PullError> {
        let reason = match setback {
            Setback::Passing(reason) => reason,
            other => {
                return Err(PullError::Refused {
                    coordinator: coordinator.to_owned(),
                    reason: other.to_string(),
                });
            }
        };
        let now = Instant::now();
        let waited = now - *self.since.get_or_insert(now);
        if waited >= self.timeout {
            return Err(PullError::Away {
                coordinator: coordinator.to_owned(),
                seconds: waited.as_secs(),
                reason,
            });
        }
        if self.logged.is_none_or(|logged| now - logged >= Self::EVERY) {
            self.logged = Some(now);
            let left = (self.timeout - waited).as_secs();
            tracing::warn!(
                coordinator,
                reason,
                gives_up_in_seconds = left,
                "waiting for the coordinator"
            );
        }
        tokio::time::sleep(self.next.min(self.timeout)).await;
        self.next = (self.next * 2).min(BACKOFF[1]);
        Ok(())
    }
}
