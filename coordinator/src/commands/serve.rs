//! `ds4-coord serve`: the HTTP API and the chat page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use ds4_cli::{Signals, parse, print_line};
use ds4_common::model::Fingerprint;
use ds4_common::quantity::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::join_args::{JoinArgs, Sharing};
use super::metrics;
use super::service::{Service, ServiceArgs};
use crate::cluster::NodeState;
use crate::http::{self, App, ConnectionLimits, HttpSettings, ModelCard, NodeCounts, Site};

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

/// How HTTP is served.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "DS4_LISTEN",
        default_value = "127.0.0.1:8080",
        value_name = "IP:PORT"
    )]
    pub listen: SocketAddr,

    /// Name of the model in the API [default: the name in its file]
    #[arg(long, env = "DS4_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// Origins whose web pages may use the API, comma-separated; * allows all [default: none]
    #[arg(long, env = "DS4_CORS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors: Vec<String>,

    /// Largest request body
    #[arg(
        long,
        env = "DS4_BODY_LIMIT",
        default_value = "32MiB",
        value_name = "SIZE"
    )]
    pub body_limit: Bytes,

    /// Connections at the same time; further ones wait until one closes
    #[arg(
        long,
        env = "DS4_MAX_CONNECTIONS",
        default_value_t = ConnectionLimits::default().connections,
        value_name = "N",
        value_parser = parse::count(1 << 20)
    )]
    pub max_connections: usize,

    /// Idle seconds before a keep-alive comment is sent
    #[arg(
        long,
        env = "DS4_KEEP_ALIVE",
        default_value_t = 5,
        value_name = "SECONDS",
        value_parser = parse::seconds(1..=86_400)
    )]
    pub keep_alive: u64,

    /// Seconds in which a stopping server may finish running requests
    #[arg(
        long,
        env = "DS4_GRACE",
        default_value_t = 30,
        value_name = "SECONDS",
        value_parser = parse::seconds(0..=86_400)
    )]
    pub grace: u64,
}

/// Serves until SIGTERM or ctrl-c.
///
/// # Errors
/// The model, a node or the address cannot be used, or the engine stopped.
pub async fn run(args: ServeArgs) -> Result<()> {
    // Caught from the start, so that no early signal is lost.
    let mut signals = Signals::new()?;
    let recorder = metrics::install_recorder()?;
    // Bound before the model is loaded: a port in use should not cost a load.
    let (listener, address) = listen(args.http.listen).await?;
    tracing::info!("listening on http://{address}, loading the model");
    let site = Site::default();
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    let limits = ConnectionLimits {
        connections: args.http.max_connections,
        ..ConnectionLimits::default()
    };
    let server = tokio::spawn(http::serve(listener, site.clone(), limits, async {
        // A dropped sender means the same as a message.
        let _ = closing.await;
    }));
    // Started before the wait for nodes: they may have to fetch their slices first.
    let sharing = tokio::select! {
        sharing = Sharing::start(&args.join, &args.service.model) => sharing?,
        _ = signals.next() => return Ok(()),
    };
    // On a task of its own: its work between waits would keep this one from seeing signals.
    let for_start = args.service.clone();
    let start = tokio::spawn(async move { Service::start(&for_start).await });
    let service = tokio::select! {
        service = start => service.context("loading the model ended abnormally")??,
        _ = signals.next() => return Ok(()),
    };
    tokio::spawn(metrics::keep_up(recorder.clone()));
    let app = app(&args, &service, recorder)?;
    tracing::info!(
        model = service.model.name,
        kernels = service.kernels,
        embedded_nodes = service.embedded.len(),
        named_nodes = args.service.model.cluster.nodes.len(),
        "serving"
    );
    site.open(Arc::new(app));
    if let Err(error) = print_line!("http://{address}") {
        // The server serves on: its output may have no reader.
        tracing::warn!(%error, "the address was not printed");
    }
    // An end that nobody asked for is an error.
    let fault = tokio::select! {
        _ = signals.next() => None,
        () = service.scheduler.stopped() => Some(anyhow!("the engine has stopped")),
        changed = service.model_changed() => Some(changed.into()),
    };
    // Without an engine or a model no request can be finished.
    let grace = fault.as_ref().map_or(args.http.grace, |_| 0);
    if let Some(fault) = &fault {
        tracing::error!("{fault:#}");
    }
    tracing::info!("stopping: running requests have {grace} s to finish");
    drop(close);
    if let Some(sharing) = sharing {
        sharing.stop();
    }
    let finished = tokio::select! {
        finished = service.scheduler.shut_down(Duration::from_secs(grace)) => finished,
        // A second signal means that there is no time to wait.
        _ = signals.next() => service.scheduler.shut_down(Duration::ZERO).await,
    };
    // Idle connections do not keep the process alive.
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
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

/// Binds the address, and warns if other machines can reach it.
async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (--listen)"))?;
    let address = listener
        .local_addr()
        .context("the listening socket has no address")?;
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(
            "the API on {address} has neither a password nor encryption: expose it only to a proxy \
             that adds both, or to a private network"
        );
    }
    Ok((listener, address))
}

/// What HTTP requests are answered with.
fn app(args: &ServeArgs, service: &Service, recorder: PrometheusHandle) -> Result<App> {
    let app = App::new(
        Arc::clone(&service.scheduler),
        Arc::clone(&service.vocabulary),
        card(args, service)?,
        HttpSettings {
            body_limit: usize::try_from(args.http.body_limit.0).unwrap_or(usize::MAX),
            cors: args.http.cors.clone(),
            keep_alive: Duration::from_secs(args.http.keep_alive),
        },
        recorder,
    );
    let Some(table) = service.cluster.clone() else {
        return Ok(app);
    };
    let is_up = |state: &NodeState| matches!(state, NodeState::Up);
    Ok(app.with_nodes(move || {
        let nodes = table.nodes();
        NodeCounts {
            up: nodes.iter().filter(|node| is_up(&node.state)).count(),
            total: nodes.len(),
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
