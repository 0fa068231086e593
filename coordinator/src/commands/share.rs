//! `ds4-coord share`: gives nodes their slices, and nothing else.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::Args;
use ds4_expert_node::tls_args::TlsArgs;
use ds4_proto::tls::{Peers, Role};
use tokio::net::TcpListener;

use super::assembly::OpenModel;
use super::cut_args::{CutArgs, LayoutArg};
use super::model_args::{ModelFiles, count};
use super::stop::Stop;
use crate::share::{self, ShareSettings, SliceShare};

/// What to give, and where.
#[derive(Args, Debug)]
pub struct ShareArgs {
    #[command(flatten)]
    pub files: ModelFiles,

    #[command(flatten)]
    pub cut: CutArgs,

    #[command(flatten)]
    pub order: LayoutArg,

    #[command(flatten)]
    pub tls: TlsArgs,

    /// Address on which nodes get their slices; port 0 takes a free one
    #[arg(
        long,
        env = "DS4_JOIN_LISTEN",
        default_value = "127.0.0.1:50050",
        value_name = "IP:PORT"
    )]
    pub listen: SocketAddr,

    /// Tensors that are on their way at once
    #[arg(
        long,
        default_value_t = ShareSettings::default().fetches,
        value_name = "N",
        value_parser = count(1024)
    )]
    pub fetches: usize,
}

/// Serves until SIGTERM or ctrl-c.
///
/// # Errors
/// The cut does not fit the model, the address is taken, or the socket fails.
pub async fn run(args: ShareArgs) -> Result<()> {
    let mut stop = Stop::new()?;
    let security = args.tls.security(Role::Coordinator)?;
    security.check_listen(args.listen)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {}", args.listen))?;
    let address = listener
        .local_addr()
        .context("the listening socket has no address")?;
    let (files, cut, order) = (args.files.clone(), args.cut.clone(), args.order);
    let open = move || cut.shares(OpenModel::open(&files)?.whole()?, order.layout);
    let shares = tokio::task::spawn_blocking(open).await??;
    // Whoever waits for this line may have gone.
    let _ = writeln!(
        std::io::stdout(),
        "slices on {address} for {}",
        shares.names()
    );
    let settings = ShareSettings {
        fetches: args.fetches,
    };
    let share = SliceShare::new(shares, settings);
    let incoming = security.incoming(listener, Peers::Members)?;
    tokio::select! {
        served = share::serve(incoming, share, std::future::pending()) => Ok(served?),
        () = stop.asked() => Ok(()),
    }
}
