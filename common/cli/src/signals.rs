//! The signals that end a process that serves.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and ctrl-c. Both are caught, since a process that runs as init gets no default action
/// for either.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches the signals from here on.
    ///
    /// # Errors
    /// The system refuses.
    ///
    /// # Panics
    /// There is no Tokio runtime.
    pub fn new() -> Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot catch ctrl-c")?,
        })
    }

    /// Waits for the next signal, and returns its name for messages.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "ctrl-c",
        }
    }
}
