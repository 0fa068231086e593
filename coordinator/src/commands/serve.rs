//! `ds4-coord serve`: the HTTP API and the chat page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use clap::Args;
use ds4_common::model::Fingerprint;
use tokio::net::TcpListener;

use super::join_args::{JoinArgs, Sharing};
use super::model_args::{count, seconds, size};
use super::service::{Service, ServiceArgs};
use super::stop::Stop;
use crate::cluster::NodeState;
use crate::http::{self, App, ConnectionLimits, HttpSettings, ModelCard, NodeCounts, Site};

/// Where and how to serve.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub service: ServiceArgs,

    #[command(flatten)]
    pub join: JoinArgs,

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

    /// Origins of web pages elsewhere that may use the API, comma-separated; * is all of them
    /// [default: none]
    #[arg(long, env = "DS4_CORS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors: Vec<String>,

    /// Largest body of a request
    #[arg(long, env = "DS4_BODY_LIMIT", default_value = "32MiB", value_name = "SIZE", value_parser = size)]
    pub body_limit: ByteSize,

    /// Connections at the same time; more wait until one ends
    #[arg(long, env = "DS4_MAX_CONNECTIONS", default_value_t = ConnectionLimits::default().connections, value_name = "N", value_parser = count(1 << 20))]
    pub max_connections: usize,

    /// Silence in a stream after which a sign of life is sent
    #[arg(
        long,
        env = "DS4_KEEP_ALIVE",
        default_value_t = 5,
        value_name = "SECONDS",
        value_parser = seconds()
    )]
    pub keep_alive: u64,

    /// Time in which a stopping server finishes the requests that run
    #[arg(long, env = "DS4_GRACE", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub grace: u64,
}

/// Serves until SIGTERM or ctrl-c.
///
/// # Errors
/// The model, a node or the address can't be used, or the engine stopped.
pub async fn run(args: ServeArgs) -> Result<()> {
    // Before anybody can know of the process, and ask it to end.
    let mut stop = Stop::new()?;
    let metrics = http::install_recorder()?;
    // Before the model: a taken port should not cost a load.
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {}", args.listen))?;
    let address = listener
        .local_addr()
        .context("the listening socket has no address")?;
    tracing::info!("listening on http://{address}, loading the model");
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(
            "the API on {address} asks for no password and is not encrypted: let only a proxy \
             that does both, or a network of your own, reach it"
        );
    }
    let site = Site::default();
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    let limits = ConnectionLimits {
        connections: args.max_connections,
        ..ConnectionLimits::default()
    };
    let server = tokio::spawn(http::serve(listener, site.clone(), limits, async {
        // A dropped sender means the same.
        let _ = closing.await;
    }));
    // Before the nodes are waited for: they may have to get their slices first.
    let sharing = tokio::select! {
        sharing = Sharing::start(&args.join, &args.service.model) => sharing?,
        () = stop.asked() => return Ok(()),
    };
    // On a task of its own: the work between its waits would keep this one from seeing signals.
    let for_start = args.service.clone();
    let start = tokio::spawn(async move { Service::start(&for_start).await });
    let service = tokio::select! {
        service = start => service.context("loading ended abnormally")??,
        () = stop.asked() => return Ok(()),
    };
    tokio::spawn(http::keep_up(metrics.clone()));
    let mut app = App::new(
        Arc::clone(&service.scheduler),
        Arc::clone(&service.vocabulary),
        card(&args, &service)?,
        HttpSettings {
            body_limit: usize::try_from(args.body_limit.as_u64()).unwrap_or(usize::MAX),
            cors: args.cors.clone(),
            keep_alive: Duration::from_secs(args.keep_alive),
        },
        metrics,
    );
    if let Some(table) = service.cluster.clone() {
        app = app.with_nodes(move || {
            let nodes = table.nodes();
            NodeCounts {
                up: nodes
                    .iter()
                    .filter(|node| matches!(node.state, NodeState::Up))
                    .count(),
                total: nodes.len(),
            }
        });
    }
    tracing::info!(
        model = service.model.name,
        kernels = service.kernels,
        embedded_nodes = service.embedded.len(),
        named_nodes = args.service.model.nodes.len(),
        "serving"
    );
    site.open(Arc::new(app));
    println!("http://{address}");
    let ended_by_itself = tokio::select! {
        () = stop.asked() => false,
        () = service.scheduler.stopped() => true,
    };
    tracing::info!("stopping: running requests have {} s", args.grace);
    drop(close);
    if let Some(sharing) = sharing {
        sharing.stop();
    }
    let finished = tokio::select! {
        finished = service.scheduler.shut_down(Duration::from_secs(args.grace)) => finished,
        // Whoever asks twice does not want to wait.
        () = stop.asked() => service.scheduler.shut_down(Duration::ZERO).await,
    };
    // Connections that stay open without a request do not keep the process.
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    for node in service.embedded {
        node.stop().await;
    }
    anyhow::ensure!(!ended_by_itself, "the engine has stopped");
    if !finished {
        tracing::warn!("some requests were cut off");
    }
    Ok(())
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
            .model_name
            .clone()
            .unwrap_or_else(|| model.name.clone()),
        aliases: [Some(model.name.clone()), file]
            .into_iter()
            .flatten()
            .collect(),
        fingerprint: format!("{}-{}", fingerprint.short(), args.service.model.numerics),
        dialect: service.dialect,
    })
}
