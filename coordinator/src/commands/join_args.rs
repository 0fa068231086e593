//! How `serve` sends slices to nodes that have none.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use ds4_cli::parse;
use ds4_common::quant::Layout;
use ds4_proto::security::Security;
use ds4_proto::tls::Peers;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::assembly::OpenModel;
use super::cut_args::CutArgs;
use super::model_args::ModelArgs;
use crate::share::{self, ShareSettings, SliceShare};

/// Where nodes fetch slices, and of which cut.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Slices for joining nodes")]
pub struct JoinArgs {
    /// Address from which nodes without weights fetch their slices [default: none]
    #[arg(
        long,
        env = "DS4_JOIN_LISTEN",
        value_name = "IP:PORT",
        requires = "join_cut"
    )]
    pub join_listen: Option<SocketAddr>,

    /// Plan by which the slices are cut, as written by `ds4-coord plan` [default: by --join-nodes]
    #[arg(
        long,
        env = "DS4_JOIN_PLAN",
        value_name = "PLAN.toml",
        group = "join_cut",
        requires = "join_listen"
    )]
    pub join_plan: Option<PathBuf>,

    /// Number of nodes to cut equal slices for, by --grid if given; their names must end in -0 to
    /// -(N-1) [default: by --join-plan]
    #[arg(
        long,
        env = "DS4_JOIN_NODES",
        value_name = "N",
        group = "join_cut",
        requires = "join_listen",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub join_nodes: Option<u32>,

    /// Tensors sent to nodes at the same time
    #[arg(
        long,
        env = "DS4_JOIN_FETCHES",
        default_value_t = ShareSettings::default().fetches,
        value_name = "N",
        value_parser = parse::count(1024)
    )]
    pub join_fetches: usize,
}

/// A running source of slices.
#[derive(Debug)]
pub(super) struct Sharing(oneshot::Sender<()>);

impl Sharing {
    /// Starts one if the flags say so.
    ///
    /// # Errors
    /// The address is taken, or the cut does not fit the model.
    pub(super) async fn start(
        args: &JoinArgs,
        model: &ModelArgs,
        security: &Security,
    ) -> Result<Option<Self>> {
        let Some(address) = args.join_listen else {
            return Ok(None);
        };
        let cut = CutArgs {
            plan: args.join_plan.clone(),
            nodes: args.join_nodes,
            grid: model.cluster.grid,
            tiles: None,
        };
        security.check_listen(address).context("--join-listen")?;
        let files = model.files.clone();
        let open = move || cut.shares(OpenModel::open(&files)?.whole()?, Layout::Panels);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--join-listen)"))?;
        let shares = tokio::task::spawn_blocking(open).await??;
        tracing::info!(
            address = %listener.local_addr().unwrap_or(address),
            nodes = shares.names(),
            "nodes can fetch their slices"
        );
        let settings = ShareSettings {
            fetches: args.join_fetches,
        };
        let (stop, stopped) = oneshot::channel();
        let incoming = security.incoming(listener, Peers::Members);
        let served = share::serve(incoming, SliceShare::new(shares, settings), async {
            // A dropped sender means the same as a message.
            let _ = stopped.await;
        });
        tokio::spawn(async {
            if let Err(error) = served.await {
                tracing::error!(%error, "nodes can no longer fetch slices");
            }
        });
        Ok(Some(Sharing(stop)))
    }

    /// Ends it: tensors on their way arrive, nothing else is sent.
    pub(super) fn stop(self) {
        // It may have ended already.
        let _ = self.0.send(());
    }
}
