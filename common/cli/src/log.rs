//! The log: its flag, and where it goes.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use clap::Args;
use tracing_subscriber::EnvFilter;

/// The flag that says what is logged.
#[derive(Args, Clone, Debug, Default)]
pub struct LogArg {
    /// Log filter, for example `warn` or `info,ds4_proto=debug` [default: info]
    #[arg(
        long,
        env = "DS4_LOG",
        global = true,
        value_name = "FILTER",
        value_parser = filter_text
    )]
    pub log: Option<String>,
}

impl LogArg {
    /// Logs to standard error from here on, by `default` if the flag was not given.
    ///
    /// # Errors
    /// The filter is malformed, or a log was set up before.
    pub fn start(&self, default: &str) -> Result<()> {
        let filter = self.log.as_deref().unwrap_or(default);
        let filter = EnvFilter::try_new(filter).context("--log")?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let started = log.try_init();
        started.map_err(|error| anyhow::anyhow!("cannot set up the log: {error}"))
    }
}

/// A filter is checked while flags are parsed, and kept as its text.
fn filter_text(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
