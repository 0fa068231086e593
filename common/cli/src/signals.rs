//! The signals of a process that serves.
//!
//! SIGTERM, ctrl-c and SIGQUIT end it, SIGHUP makes it read its files again. SIGUSR1 and SIGUSR2,
//! whose default is to kill without a word, are logged and do nothing.

use anyhow::{Context, Result};
use tokio::signal::unix::{self, SignalKind};

use crate::reload::Reloaders;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// To finish what runs, then to end. Carries the signal's name, for messages.
    Terminate(&'static str),
    /// To read configuration again: see [`Reloaders`].
    Reload,
}

/// The caught signals. All are caught from the start: a process that runs as init gets no default
/// action for SIGTERM and ctrl-c, and the default action of the others would cut every stream.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    quit: unix::Signal,
    hang_up: unix::Signal,
    user_1: unix::Signal,
    user_2: unix::Signal,
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
        let catch = |kind: SignalKind, name: &str| {
            unix::signal(kind).with_context(|| format!("cannot catch {name}"))
        };
        Ok(Signals {
            terminate: catch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: catch(SignalKind::interrupt(), "ctrl-c")?,
            quit: catch(SignalKind::quit(), "SIGQUIT")?,
            hang_up: catch(SignalKind::hangup(), "SIGHUP")?,
            user_1: catch(SignalKind::user_defined1(), "SIGUSR1")?,
            user_2: catch(SignalKind::user_defined2(), "SIGUSR2")?,
        })
    }

    /// Waits for the next signal that asks for something. Nothing is lost if the wait is given up.
    pub async fn next(&mut self) -> Signal {
        loop {
            let ignored = tokio::select! {
                _ = self.terminate.recv() => return Signal::Terminate("SIGTERM"),
                _ = self.interrupt.recv() => return Signal::Terminate("ctrl-c"),
                _ = self.quit.recv() => return Signal::Terminate("SIGQUIT"),
                _ = self.hang_up.recv() => return Signal::Reload,
                _ = self.user_1.recv() => "SIGUSR1",
                _ = self.user_2.recv() => "SIGUSR2",
            };
            tracing::warn!("{ignored} has no meaning here and is ignored");
        }
    }

    /// Waits for the next signal that ends the process, and returns its name. Each SIGHUP before it
    /// runs `reloaders`.
    pub async fn termination(&mut self, reloaders: &Reloaders) -> &'static str {
        loop {
            match self.next().await {
                Signal::Terminate(name) => return name,
                Signal::Reload => reloaders.run(),
            }
        }
    }
}
