//! The process's metrics recorder, rendered for Prometheus.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::cluster::{dispatch, node_metrics};
use crate::http::MetricsText;
use crate::scheduler::scheduler_metrics;
use crate::{http, share};

/// Installs the recorder and registers every metric's description. Later calls return the same
/// handle.
///
/// # Errors
/// Another recorder is already installed.
pub fn install_recorder() -> anyhow::Result<PrometheusHandle> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let recorder = builder()?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|_| anyhow::anyhow!("another metrics recorder is already installed"))?;
    scheduler_metrics::describe();
    http::describe();
    share::describe();
    dispatch::describe();
    super::certificates::describe();
    Ok(HANDLE.get_or_init(|| handle).clone())
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let mut builder = PrometheusBuilder::new().set_buckets_for_metric(
        Matcher::Suffix("_seconds".into()),
        scheduler_metrics::SECONDS,
    )?;
    let (name, bounds) = scheduler_metrics::TOKENS;
    builder = builder.set_buckets_for_metric(Matcher::Full(name.into()), bounds)?;
    Ok(builder)
}

/// All metrics of the process: the recorder's, and those of nodes, whose series come and go.
#[must_use]
pub fn text(handle: PrometheusHandle) -> MetricsText {
    Arc::new(move || {
        let mut text = handle.render();
        node_metrics::render(&mut text);
        text
    })
}

/// Keeps the recorder's buffers small even if the metrics are never read. Never returns.
pub async fn keep_up(handle: PrometheusHandle) {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        handle.run_upkeep();
    }
}
