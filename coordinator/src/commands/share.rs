//! `ds4-coord share`: sends nodes their slices, and does nothing else.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::Args;
use ds4_cli::{LogFilter, Reloaders, Signals, TlsArgs, parse, print_line};
use ds4_proto::tls::{Peers, Role};
use tokio::net::TcpListener;

use super::assembly::OpenModel;
use super::certificates;
use super::cut_args::{CutArgs, LayoutArg};
use super::model_args::ModelFiles;
use crate::share::{self, ShareSettings, SliceShare};

const EXAMPLES: &str = "\
Examples:
  ds4-coord share -m V4-Flash-Q4.gguf --nodes 4 --listen 10.0.0.10:50050 \\
      --tls-ca certs/ca.pem --tls-cert certs/coordinator.pem --tls-key certs/coordinator.key";

/// What to send, and where.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ShareArgs {
    /// Address from which nodes fetch their slices; port 0 takes a free one
    #[arg(
        long,
        env = "DS4_JOIN_LISTEN",
        default_value = "127.0.0.1:50050",
        value_name = "IP:PORT"
    )]
    pub listen: SocketAddr,

    /// Tensors sent to nodes at the same time
    #[arg(
        long,
        default_value_t = ShareSettings::default().fetches,
        value_name = "N",
        value_parser = parse::count(1024)
    )]
    pub fetches: usize,

    /// How the model is cut.
    #[command(flatten)]
    pub cut: CutArgs,

    /// In which order weights are sent.
    #[command(flatten)]
    pub layout: LayoutArg,

    /// Which model.
    #[command(flatten)]
    pub files: ModelFiles,

    /// How connections are protected.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Serves until SIGTERM or ctrl-c. SIGHUP has the filter of `log` and the
/// certificates read again.
///
/// # Errors
/// The cut does not fit the model, the address is taken, or the socket fails.
pub async fn run(args: ShareArgs, log: LogFilter) -> Result<()> {
    let mut signals = Signals::new()?;
    let reloaders = Reloaders::default();
    reloaders.add("log filter", move || log.reload());
    let security = args.tls.security(Role::Coordinator)?;
    certificates::follow(&security, &reloaders);
    security.check_listen(args.listen)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {} (--listen)", args.listen))?;
    let address = listener
        .local_addr()
        .context("the listening socket has no address")?;
    let (files, cut, layout) = (args.files.clone(), args.cut.clone(), args.layout.layout);
    let open = move || cut.shares(OpenModel::open(&files)?.whole()?, layout);
    let shares = tokio::task::spawn_blocking(open).await??;
    if let Err(error) = print_line!("slices on {address} for {}", shares.names()) {
        // Nodes are served all the same: the output may have no reader.
        tracing::warn!(%error, "the address was not printed");
    }
    let settings = ShareSettings {
        fetches: args.fetches,
    };
    let share = SliceShare::new(shares, settings);
    let incoming = security.incoming(listener, Peers::Members);
    tokio::select! {
        served = share::serve(incoming, share, std::future::pending()) => Ok(served?),
        _ = signals.termination(&reloaders) => Ok(()),
    }
}
