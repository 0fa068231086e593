//! A node as a process: load, ready, drain, stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use ds4_cli::{
    IsaArg, LogFilter, Reloaders, ServiceManager, Signals, ThreadArgs, TlsArgs, parse, print_line,
};
use ds4_common::open_files;
use ds4_common::quantity::Bytes;
use ds4_proto::security::Security;
use ds4_proto::tls::Role;
use tokio::net::TcpListener;

use crate::embedded::{NodeConfig, start};
use crate::load::ModelConfig;
use crate::node::NodeSettings;
use crate::pull;
use crate::weight_args::WeightArgs;

/// Files that a node may want to have open: connections of coordinators and probes, and its own.
const WANTED_FILES: u64 = 512;

/// The least memory for calls: the largest call fits into it.
const LEAST_CALL_MEMORY: Bytes = Bytes(256 << 20);

/// The most memory for calls.
const MOST_CALL_MEMORY: Bytes = Bytes(1 << 40);

const EXAMPLES: &str = "\
Examples:
  # Fetch the slice of node-0 from a coordinator if it is missing, then serve it
  ds4-expert serve --data-dir /var/lib/ds4 --join 10.0.0.10:50050 --name node-0 \\
      --listen 10.0.0.11:50051 --tls-ca ca.pem --tls-cert node-0.pem --tls-key node-0.key

  # Hold the third of four strips of every expert of a whole model, on this machine only
  ds4-expert serve -m V4-Flash-Q4.gguf --grid 1x4 --index 2";

/// Which weights to serve, where and how.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "DS4_LISTEN",
        default_value = "127.0.0.1:50051",
        value_name = "IP:PORT"
    )]
    pub listen: SocketAddr,

    /// Address that answers health checks only, in plain text, for probes without a certificate;
    /// port 0 takes a free one [default: none]
    #[arg(long, env = "DS4_HEALTH_LISTEN", value_name = "IP:PORT")]
    pub health_listen: Option<SocketAddr>,

    /// Seconds in which a stopping node may finish the work that it has accepted
    #[arg(
        long,
        env = "DS4_DRAIN_TIMEOUT",
        default_value_t = 30,
        value_name = "SECONDS",
        value_parser = parse::seconds(0..=86_400)
    )]
    pub drain_timeout: u64,

    /// Where the weights come from.
    #[command(flatten)]
    pub weights: WeightArgs,

    /// How connections are protected.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Which threads compute.
    #[command(flatten)]
    pub threads: ThreadArgs,

    /// Which kernels compute.
    #[command(flatten)]
    pub isa: IsaArg,

    /// How much work is accepted.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// How much a node takes on at once.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Calls that may wait in the queue, of all coordinators together
    #[arg(
        long,
        env = "DS4_QUEUE",
        default_value_t = 64,
        value_name = "CALLS",
        value_parser = parse::count(1024)
    )]
    pub queue: usize,

    /// Calls of one coordinator that may be in flight
    #[arg(
        long,
        env = "DS4_IN_FLIGHT",
        default_value_t = 8,
        value_name = "CALLS",
        value_parser = parse::count(1024)
    )]
    pub in_flight: usize,

    /// Memory for inputs and unsent replies of all coordinators together, from 256MiB to 1TiB
    #[arg(
        long,
        env = "DS4_CALL_MEMORY",
        default_value = "1GiB",
        value_name = "SIZE",
        value_parser = parse::size(LEAST_CALL_MEMORY, MOST_CALL_MEMORY)
    )]
    pub call_memory: Bytes,
}

impl ServeArgs {
    /// The checked settings of the node, whose connections `security` protects.
    ///
    /// # Errors
    /// The node's name is not a valid file name, or the address would accept plain text from other
    /// machines.
    pub fn config(&self, security: Security) -> Result<NodeConfig> {
        security.check_listen(self.listen)?;
        Ok(NodeConfig {
            model: ModelConfig {
                source: self.weights.source()?,
                kernels: self.isa.isa,
                populate: !self.weights.no_populate,
                verify: self.weights.verify(),
            },
            settings: NodeSettings {
                threads: self.threads.threads,
                pin: self.threads.pin,
                queue: self.limits.queue,
                in_flight: self.limits.in_flight,
                memory: usize::try_from(self.limits.call_memory.0).unwrap_or(usize::MAX),
                drain_timeout: Duration::from_secs(self.drain_timeout),
                security,
            },
        })
    }
}

/// Serves until SIGTERM or ctrl-c, then drains; a second signal stops at once. SIGHUP has the filter
/// of `log` and the certificates read again.
///
/// # Errors
/// The address is taken, the model cannot be loaded, or the server fails.
pub async fn serve(args: &ServeArgs, log: LogFilter) -> Result<()> {
    let mut signals = Signals::new()?;
    let manager = Arc::new(ServiceManager::from_env());
    let reloaders = Reloaders::new(Arc::clone(&manager));
    reloaders.add("log filter", move || log.reload());
    let security = args.tls.security(Role::Node)?;
    let config = args.config(security.clone())?;
    if let Some(watch) = security.watch(|_| {}) {
        reloaders.add("certificates", move || {
            watch.reload();
            Ok("their files are being read".to_owned())
        });
    }
    let pull = args.weights.pull(&security)?;
    // A lack of them later would keep coordinators out.
    open_files::raise_to(WANTED_FILES);
    // The port is taken before minutes of loading, so that a clash is seen at once. Connections
    // that arrive meanwhile wait in the listener's backlog.
    let listener = bind(args.listen).await?;
    let health = match args.health_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let starting = async {
        if let Some(pull) = &pull {
            pull::ensure(pull).await?;
        }
        anyhow::Ok(start(&config, listener).await?)
    };
    let mut node = tokio::select! {
        node = starting => node?,
        name = signals.termination(&reloaders) => {
            bail!("stopped by {name} while the model was loading")
        }
    };
    if let Some(listener) = health {
        node.serve_health(listener);
    }
    let identity = node.identity();
    let ready = print_line!(
        "ds4-expert ready on {}: {}, kernels {}, {} threads, {}",
        node.address(),
        identity.summary(),
        identity.kernels,
        node.threads(),
        identity.weight_summary(),
    );
    if let Err(error) = ready {
        // The node serves on: its output may have no reader.
        tracing::warn!(%error, "the ready line was not printed");
    }
    manager.ready();
    tokio::select! {
        name = signals.termination(&reloaders) => {
            tracing::info!("{name}: finishing accepted work, then stopping");
        }
        reason = node.failed() => bail!("the server failed: {reason}"),
        never = stay_alive(&manager) => match never {},
    }
    manager.stopping();
    tokio::select! {
        finished = node.stop() => {
            if !finished {
                tracing::warn!("the drain timeout ended before all accepted work was finished");
            }
        }
        name = signals.termination(&reloaders) => {
            tracing::warn!("second signal ({name}): stopping at once");
        }
    }
    Ok(())
}

/// Signs of life for the watchdog, from an async thread that still takes turns. A server that fails
/// ends the process by itself.
async fn stay_alive(manager: &ServiceManager) -> Infallible {
    manager.keep_alive(|| true).await;
    std::future::pending().await
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}"))
}
