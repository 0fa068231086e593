//! `ds4-coord serve`: the HTTP API and the chat page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use ds4_cli::{LogFilter, Reloaders, ServiceManager, Signals, print_line};
use ds4_common::model::Fingerprint;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::certificates;
use super::http_args::{HttpArgs, OtherFiles};
use super::join_args::{JoinArgs, Sharing};
use super::metrics;
use super::service::{Service, ServiceArgs};
use crate::http::{
    self, App, ConnectionLimits, ExpertsReport, HostRule, MetricsText, ModelCard, Site,
};
use crate::scheduler::{Scheduler, SchedulerState};

/// Longest wait at the end for connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  # The small reference model, to try everything out
  ds4-coord serve

  # A model whose experts are on two nodes, for the local network
  ds4-coord serve -m V4-Flash-Q4.gguf --nodes 10.0.0.11:50051,10.0.0.12:50051 \\
      --listen 0.0.0.0:8080 --tls-ca certs/ca.pem --tls-cert certs/coordinator.pem \\
      --tls-key certs/coordinator.key";

/// Where and how to serve.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// How HTTP is served.
    #[command(flatten)]
    pub http: HttpArgs,

    /// What runs, and how requests are scheduled.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Whether nodes get their slices here.
    #[command(flatten)]
    pub join: JoinArgs,
}

/// Serves until SIGTERM or ctrl-c. SIGHUP has the filter of `log` and the
/// certificates read again.
///
/// # Errors
/// The model, a node or the address cannot be used, or the engine stopped.
pub async fn run(args: ServeArgs, log: LogFilter) -> Result<()> {
    // Caught from the start, so that no early signal is lost.
    let mut signals = Signals::new()?;
    let manager = Arc::new(ServiceManager::from_env());
    let reloaders = Reloaders::new(Arc::clone(&manager));
    reloaders.add("log filter", move || log.reload());
    let recorder = metrics::install_recorder()?;
    let all_metrics = metrics::text(recorder.clone());
    // Bound before the model is loaded: a port in use should not cost a load.
    let doors = Doors::open(&args, &all_metrics, &reloaders).await?;
    let (url, site) = (doors.url(), doors.site.clone());
    tracing::info!("listening on {url}, loading the model");
    let security = args.service.model.security()?;
    certificates::follow(&security, &reloaders);
    // Started before the wait for nodes: they may have to fetch their slices first.
    let sharing = tokio::select! {
        sharing = Sharing::start(&args.join, &args.service.model, &security) => sharing?,
        _ = signals.termination(&reloaders) => return Ok(()),
    };
    // On a task of its own: its work between waits would keep this one from seeing signals.
    let for_start = args.service.clone();
    let start = tokio::spawn(async move { Service::start(&for_start, security).await });
    let service = tokio::select! {
        service = start => service.context("loading the model ended abnormally")??,
        _ = signals.termination(&reloaders) => return Ok(()),
    };
    tokio::spawn(metrics::keep_up(recorder));
    let app = app(&args, &service, all_metrics)?;
    tracing::info!(
        model = service.model.name,
        kernels = service.kernels,
        embedded_nodes = service.embedded.len(),
        named_nodes = args.service.model.cluster.nodes.len(),
        "serving"
    );
    site.open(Arc::new(app));
    if let Err(error) = print_line!("{url}") {
        // The server serves on: its output may have no reader.
        tracing::warn!(%error, "the address was not printed");
    }
    manager.ready();
    // An end that nobody asked for is an error.
    let fault = tokio::select! {
        _ = signals.termination(&reloaders) => None,
        () = service.scheduler.stopped() => Some(anyhow!("the engine has stopped")),
        changed = service.model_changed() => Some(changed.into()),
        never = stay_alive(&manager, &service.scheduler) => match never {},
    };
    manager.stopping();
    // Without an engine or a model no request can be finished.
    let grace = fault.as_ref().map_or(args.http.grace, |_| 0);
    if let Some(fault) = &fault {
        tracing::error!("{fault:#}");
    }
    tracing::info!("stopping: running requests have {grace} s to finish");
    // The doors stay open meanwhile: whoever asks is told that the server is draining.
    if let Some(sharing) = sharing {
        sharing.stop();
    }
    let finished = tokio::select! {
        finished = service.scheduler.shut_down(Duration::from_secs(grace)) => finished,
        // A second signal means that there is no time to wait.
        _ = signals.termination(&reloaders) => service.scheduler.shut_down(Duration::ZERO).await,
    };
    doors.close().await;
    for node in service.embedded {
        node.stop().await;
    }
    if let Some(fault) = fault {
        return Err(fault);
    }
    if !finished {
        tracing::warn!("the grace period ended before all requests were finished");
    }
    Ok(())
}

/// Signs of life for the watchdog for as long as the engine runs.
async fn stay_alive(manager: &ServiceManager, scheduler: &Scheduler) -> Infallible {
    let runs = || scheduler.status().state != SchedulerState::Stopped;
    manager.keep_alive(runs).await;
    std::future::pending().await
}

/// The sockets of the HTTP side and their servers.
struct Doors {
    /// Where the API listens, and how.
    address: SocketAddr,
    scheme: &'static str,
    site: Site,
    /// Ends the servers when it is dropped.
    open: watch::Sender<()>,
    servers: JoinSet<()>,
}

impl Doors {
    /// Binds the addresses and answers on them that the model is loading.
    async fn open(args: &ServeArgs, metrics: &MetricsText, reloaders: &Reloaders) -> Result<Self> {
        let http = &args.http;
        let identity = http.tls()?;
        let (listener, address) = bind(http.listen, "--listen").await?;
        if !address.ip().to_canonical().is_loopback() {
            let lacks = match identity {
                None => {
                    "neither a password nor encryption: expose it only to a proxy that adds both"
                }
                Some(_) => "no password: expose it only to a proxy that adds one",
            };
            tracing::warn!("the API on {address} has {lacks}, or to a private network");
        }
        let model = &args.service.model;
        let limits = http.connection_limits(OtherFiles {
            nodes: model.cluster.nodes.len(),
            embedded: model.embedded_nodes(),
            join: args.join.join_listen.is_some(),
        });
        let hosts = HostRule::new(address.ip(), &http.allowed_hosts);
        let mut site = Site::new(Arc::clone(metrics), hosts);
        if let Some(identity) = identity {
            certificates::follow_http(&identity, reloaders);
            site = site.over_tls(identity);
        }
        let mut doors = Doors {
            address,
            scheme: if http.http_tls_cert.is_some() {
                "https"
            } else {
                "http"
            },
            site: site.clone(),
            open: watch::channel(()).0,
            servers: JoinSet::new(),
        };
        doors.serve(listener, site, limits);
        if let Some(wanted) = http.health_listen {
            let (listener, address) = bind(wanted, "--health-listen").await?;
            tracing::info!("health and metrics on http://{address}");
            let site = doors.site.probes(HostRule::new(address.ip(), &[]));
            let limits = ConnectionLimits {
                connections: limits.reserve,
                ..limits
            };
            doors.serve(listener, site, limits);
        }
        Ok(doors)
    }

    fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    fn serve(&mut self, listener: TcpListener, site: Site, limits: ConnectionLimits) {
        let mut open = self.open.subscribe();
        let end = async move {
            // Nothing is ever sent.
            while open.changed().await.is_ok() {}
        };
        self.servers.spawn(http::serve(listener, site, limits, end));
    }

    /// Takes no more connections and waits a moment for those that are open: idle ones do not keep
    /// the process alive.
    async fn close(mut self) {
        drop(self.open);
        let all = async { while self.servers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, all).await;
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} ({flag})"))?;
    let address = listener
        .local_addr()
        .context("the listening socket has no address")?;
    Ok((listener, address))
}

/// What HTTP requests are answered with.
fn app(args: &ServeArgs, service: &Service, metrics: MetricsText) -> Result<App> {
    let app = App::new(
        Arc::clone(&service.scheduler),
        Arc::clone(&service.vocabulary),
        card(args, service)?,
        args.http.settings()?,
        metrics,
    )
    .context("cannot start the threads that read requests")?;
    let Some(cluster) = service.cluster.clone() else {
        return Ok(app);
    };
    Ok(app.with_experts(move || {
        let (up, total) = cluster.counts();
        ExpertsReport {
            up,
            total,
            covered: cluster.covered(),
            own_file: cluster.own_file(),
        }
    }))
}

fn card(args: &ServeArgs, service: &Service) -> Result<ModelCard> {
    let model = &service.model;
    let fingerprint = Fingerprint::of(&model.gguf, &model.hp)?;
    let file = model
        .gguf
        .name()
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    Ok(ModelCard {
        id: args
            .http
            .model_name
            .clone()
            .unwrap_or_else(|| model.name.clone()),
        aliases: [Some(model.name.clone()), file]
            .into_iter()
            .flatten()
            .collect(),
        fingerprint: format!(
            "{}-{}",
            fingerprint.short(),
            args.service.model.engine.numerics
        ),
        dialect: service.dialect,
    })
}
