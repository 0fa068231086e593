//! Progress of long copies: a bar in a terminal, lines in a log.

use std::time::Duration;

use ds4_common::slice::ByteProgress;
use indicatif::{ProgressBar, ProgressStyle};

/// How many bytes of a known number are done.
#[derive(Debug)]
pub(super) struct CopyBar {
    bar: ProgressBar,
    lines: ByteProgress,
    what: &'static str,
    done: u64,
}

impl CopyBar {
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, \
             {eta} left",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(250));
        CopyBar {
            bar,
            lines: ByteProgress::new(total, 0),
            what,
            done: 0,
        }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        self.bar.inc(bytes);
        let line = self.lines.reach(self.done);
        if let Some(line) = line.filter(|_| self.bar.is_hidden()) {
            tracing::info!("{}: {line}", self.what);
        }
    }

    /// Removes the bar; returns the mean rate in bytes per second.
    pub(super) fn finish(self) -> f64 {
        self.bar.finish_and_clear();
        self.lines.rate()
    }
}
