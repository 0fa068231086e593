//! The thread that reads weights into memory, compares them, and looks at their files.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ds4_common::gguf::{FileEvent, FileStamp, Tensor};

use super::{Finding, Integrity};

/// Bytes that are read into memory between two checks whether to stop.
const WARM_BYTES: usize = 64 << 20;

/// Time between two looks at the files.
const POLL: Duration = Duration::from_secs(1);

/// The priority of a thread that gives way to all others.
const LOWEST_PRIORITY: i32 = 19;

/// What the background does.
#[derive(Debug)]
pub(crate) struct BackgroundPlan {
    /// What to read into memory first.
    pub(crate) warm: Vec<Tensor>,
    /// Whether to compare everything as soon as that is done.
    pub(crate) compare: bool,
    /// Time between two comparisons of everything.
    pub(crate) every: Option<Duration>,
    /// Bytes a second that comparisons read while the node has work.
    pub(crate) rate: u64,
}

/// A running thread; dropping this ends it.
#[derive(Debug)]
pub(crate) struct Background {
    _stop: Sender<()>,
}

impl Background {
    pub(crate) fn start(integrity: Arc<Integrity>, plan: BackgroundPlan) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("integrity".to_owned());
        let run = move || {
            let mut rounds = Rounds {
                integrity: &integrity,
                stopped: &stopped,
                rate: plan.rate.max(1),
                compares: plan.compare,
                due: plan.compare.then(Instant::now),
                every: plan.every.filter(|_| plan.compare),
                seen: None,
                tried: None,
            };
            // It ends when the node does.
            let _ = rounds.run(&plan.warm);
        };
        if let Err(error) = thread.spawn(run) {
            // Calls read what they need, and look at the files themselves.
            tracing::warn!(%error, "cannot start the thread that verifies the weights");
        }
        Background { _stop: stop }
    }
}

struct Rounds<'a> {
    integrity: &'a Integrity,
    stopped: &'a Receiver<()>,
    rate: u64,
    /// Whether anything is ever compared.
    compares: bool,
    /// When everything is compared next.
    due: Option<Instant>,
    every: Option<Duration>,
    /// Changed files as the last look found them.
    seen: Option<Vec<FileStamp>>,
    /// Changed files whose bytes were compared.
    tried: Option<Vec<FileStamp>>,
}

impl Rounds<'_> {
    /// Runs until the node stops.
    fn run(&mut self, warm: &[Tensor]) -> Result<(), Finding> {
        // A refusal only means that the thread competes with others.
        let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
        self.warm(warm)?;
        loop {
            self.look()?;
            let in_service = self.integrity.in_service().is_ok();
            if in_service && self.due.is_some_and(|due| Instant::now() >= due) {
                let start = Instant::now();
                let compared = self.compare_all(true);
                self.due = self.every.map(|every| Instant::now() + every);
                match compared {
                    Err(Finding::Stopped) => return Err(Finding::Stopped),
                    Err(Finding::Damaged(reason)) => drop(self.integrity.take_out(reason)),
                    Ok(()) => tracing::info!(
                        megabytes = self.integrity.bytes() / 1_000_000,
                        seconds = start.elapsed().as_secs_f64(),
                        "verified the weights"
                    ),
                }
            }
            self.sleep(POLL)?;
        }
    }

    /// Reads tensors into memory, first to last.
    fn warm(&self, tensors: &[Tensor]) -> Result<(), Finding> {
        let start = Instant::now();
        let mut bytes = 0;
        for tensor in tensors {
            let length = tensor.bytes().len();
            for first in (0..length).step_by(WARM_BYTES) {
                self.sleep(Duration::ZERO)?;
                let range = first..length.min(first + WARM_BYTES);
                bytes += range.len();
                if let Err(error) = tensor.populate(range) {
                    let name = tensor.name();
                    tracing::warn!(%error, tensor = name, "cannot read a tensor into memory");
                    return Ok(());
                }
            }
        }
        if bytes > 0 {
            tracing::info!(
                megabytes = bytes / 1_000_000,
                seconds = start.elapsed().as_secs_f64(),
                "the slice is in memory"
            );
        }
        Ok(())
    }

    /// Looks at the files. A node that is out of service returns once its files stay as they are
    /// and hold the right bytes.
    fn look(&mut self) -> Result<(), Finding> {
        match self.integrity.files.poll() {
            Ok(events) => events.iter().for_each(|event| self.tell(event)),
            Err(changed) => {
                let is_known = self.tried.is_some() && self.integrity.files.stamps() == self.tried;
                if !is_known {
                    self.integrity.take_out(changed.to_string());
                }
            }
        }
        match self.integrity.in_service() {
            Ok(()) => Ok(()),
            Err(_) => self.look_closer(),
        }
    }

    fn tell(&mut self, event: &FileEvent) {
        match event {
            FileEvent::Replaced(file) => tracing::info!(
                file = %file.display(),
                "the file of the weights was deleted or replaced: this node goes on with the old \
                 one"
            ),
            FileEvent::Touched(file) => {
                tracing::warn!(
                    file = %file.display(),
                    "something about the file of the weights changed: verifying them"
                );
                self.due = self.compares.then(Instant::now);
            }
        }
    }

    /// Compares the bytes of files that have stayed the same since the last look.
    fn look_closer(&mut self) -> Result<(), Finding> {
        let files = &self.integrity.files;
        let stamps = files.stamps();
        let is_quiet = stamps.is_some() && stamps == self.seen && stamps != self.tried;
        self.seen.clone_from(&stamps);
        let Some(stamps) = stamps.filter(|_| is_quiet) else {
            return Ok(());
        };
        let compared = self.compare_all(false);
        if files.stamps().as_ref() != Some(&stamps) {
            // They changed again: not what was compared.
            return Ok(());
        }
        self.tried = Some(stamps);
        match compared {
            Ok(()) => {
                files.accept(self.tried.as_deref().unwrap_or_default());
                self.integrity.restore();
                Ok(())
            }
            Err(Finding::Damaged(reason)) => {
                self.integrity.take_out(reason);
                Ok(())
            }
            Err(Finding::Stopped) => Err(Finding::Stopped),
        }
    }

    /// Compares all tensors, layer by layer, at a pace that leaves the memory bus to calls.
    fn compare_all(&self, record: bool) -> Result<(), Finding> {
        let integrity = self.integrity;
        let mut looked = Instant::now();
        for layer in &integrity.layers {
            for tensor in &integrity.tensors[layer.tensors.clone()] {
                tensor.compare(record, &mut |bytes| {
                    let pause = match integrity.has_work() {
                        true => Duration::from_secs_f64(bytes as f64 / self.rate as f64),
                        false => Duration::ZERO,
                    };
                    self.sleep(pause)?;
                    if record && looked.elapsed() >= POLL {
                        looked = Instant::now();
                        let changed = |e: ds4_common::gguf::FileChanged| e.to_string();
                        let unchanged = integrity.files.check().map_err(changed);
                        unchanged.map_err(Finding::Damaged)?;
                    }
                    Ok(())
                })?;
            }
            layer
                .verified
                .store(true, std::sync::atomic::Ordering::Release);
        }
        Ok(())
    }

    fn sleep(&self, time: Duration) -> Result<(), Finding> {
        match self.stopped.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Finding::Stopped),
        }
    }
}
