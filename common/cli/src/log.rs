//! The log: its flag, where it goes, and its filter, which can be changed while the process runs.

use std::fmt;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tracing_subscriber::EnvFilter;

/// The largest file that holds a filter, in bytes.
const FILTER_FILE_MAX: u64 = 64 << 10;

/// The flag that says what is logged.
#[derive(Args, Clone, Debug, Default)]
pub struct LogArg {
    /// Log filter, for example `warn` or `info,ds4_proto=debug`; @FILE reads it from a file, and
    /// again on SIGHUP [default: info]
    #[arg(
        long,
        env = "DS4_LOG",
        global = true,
        value_name = "FILTER",
        value_parser = filter_text
    )]
    pub log: Option<String>,
}

type Replace = Box<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>;

/// The filter of the log, to be read again.
pub struct LogFilter {
    file: Option<PathBuf>,
    replace: Replace,
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.file).finish()
    }
}

impl LogArg {
    /// Logs to standard error from here on, by `default` if the flag was not given.
    ///
    /// # Errors
    /// The filter is malformed or its file cannot be read, or a log was set up before.
    pub fn start(&self, default: &str) -> Result<LogFilter> {
        let text = self.log.as_deref().unwrap_or(default);
        let file = text.strip_prefix('@').map(PathBuf::from);
        let filter = match &file {
            Some(path) => read(path)?,
            None => EnvFilter::try_new(text).context("--log")?,
        };
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter_reloading();
        let handle = log.reload_handle();
        let started = log.try_init();
        started.map_err(|error| anyhow::anyhow!("cannot set up the log: {error}"))?;
        let replace = Box::new(move |filter| Ok(handle.reload(filter)?));
        Ok(LogFilter { file, replace })
    }
}

impl LogFilter {
    /// Reads the filter's file again, if the flag named one. Returns what came of it.
    ///
    /// # Errors
    /// The file cannot be read or its filter is malformed; the filter stays as it was.
    pub fn reload(&self) -> Result<String> {
        let Some(path) = &self.file else {
            return Ok("unchanged, since --log names no file (@FILE)".to_owned());
        };
        let filter = read(path)?;
        let text = filter.to_string();
        (self.replace)(filter)?;
        Ok(text)
    }
}

/// The filter in a file: its lines together, without comments behind `#`.
fn read(path: &Path) -> Result<EnvFilter> {
    let named = || format!("--log @{}", path.display());
    let file = File::open(path).with_context(named)?;
    let mut text = String::new();
    let mut bounded = file.take(FILTER_FILE_MAX + 1);
    bounded.read_to_string(&mut text).with_context(named)?;
    ensure!(
        text.len() as u64 <= FILTER_FILE_MAX,
        "--log @{}: larger than {FILTER_FILE_MAX} bytes",
        path.display()
    );
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    EnvFilter::try_new(lines.join(",")).with_context(named)
}

/// A filter is checked while flags are parsed, and kept as its text.
fn filter_text(text: &str) -> Result<String, String> {
    if text.starts_with('@') {
        return Ok(text.to_owned());
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_from_a_file_without_comments() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("filter");
        let filter = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read(&path).map(|filter| filter.to_string())
        };
        let found = filter("# quiet\nwarn\n\nds4_proto=debug # links\n").expect("a filter");
        assert!(
            found.contains("warn") && found.contains("ds4_proto=debug"),
            "{found}"
        );
        for bad in ["a=b=c", &"x".repeat(FILTER_FILE_MAX as usize + 1)] {
            let error = filter(bad).expect_err("malformed").to_string();
            assert!(
                error.starts_with("--log @") && error.contains("filter"),
                "{error}"
            );
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(read(&path).is_err());
    }
}
