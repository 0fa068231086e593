//! How `serve` gives slices to nodes that have none.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use ds4_common::quant::Layout;
use ds4_proto::tls::Peers;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::assembly::OpenModel;
use super::cut_args::CutArgs;
use super::model_args::{ModelArgs, count};
use crate::share::{self, ShareSettings, SliceShare};

/// Where nodes get slices, and of which cut.
#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// Address on which nodes without weights get their slices [default: none]
    #[arg(
        long,
        env = "DS4_JOIN_LISTEN",
        value_name = "IP:PORT",
        requires = "join_cut"
    )]
    pub join_listen: Option<SocketAddr>,

    /// Plan by which those slices are cut [default: by --join-nodes]
    #[arg(
        long,
        env = "DS4_JOIN_PLAN",
        value_name = "PLAN.toml",
        group = "join_cut",
        requires = "join_listen"
    )]
    pub join_plan: Option<PathBuf>,

    /// Nodes that the model is cut for, by --grid if that is given; NAME-0 to NAME-(N-1)
    /// [default: by --join-plan]
    #[arg(
        long,
        env = "DS4_JOIN_NODES",
        value_name = "N",
        group = "join_cut",
        requires = "join_listen",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub join_nodes: Option<u32>,

    /// Tensors that are on their way to nodes at once
    #[arg(
        long,
        env = "DS4_JOIN_FETCHES",
        default_value_t = ShareSettings::default().fetches,
        value_name = "N",
        value_parser = count(1024)
    )]
    pub join_fetches: usize,
}

/// A source of slices that runs.
#[derive(Debug)]
pub(super) struct Sharing(oneshot::Sender<()>);

impl Sharing {
    /// Starts it if the flags ask for one.
    ///
    /// # Errors
    /// The address is taken, or the cut does not fit the model.
    pub(super) async fn start(args: &JoinArgs, model: &ModelArgs) -> Result<Option<Self>> {
        let Some(address) = args.join_listen else {
            return Ok(None);
        };
        let cut = CutArgs {
            plan: args.join_plan.clone(),
            nodes: args.join_nodes,
            grid: model.grid,
            tiles: None,
        };
        let security = model.security()?;
        security.check_listen(address).context("--join-listen")?;
        let files = model.files.clone();
        let open = move || cut.shares(OpenModel::open(&files)?.whole()?, Layout::Panels);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--join-listen {address}"))?;
        let shares = tokio::task::spawn_blocking(open).await??;
        tracing::info!(
            address = %listener.local_addr().unwrap_or(address),
            nodes = shares.names(),
            "slices can be pulled"
        );
        let settings = ShareSettings {
            fetches: args.join_fetches,
        };
        let (stop, stopped) = oneshot::channel();
        let incoming = security.incoming(listener, Peers::Members)?;
        let served = share::serve(incoming, SliceShare::new(shares, settings), async {
            // A dropped sender means the same.
            let _ = stopped.await;
        });
        tokio::spawn(async {
            if let Err(error) = served.await {
                tracing::error!(%error, "slices can no longer be pulled");
            }
        });
        Ok(Some(Sharing(stop)))
    }

    /// No node gets anything from here on but what is on its way.
    pub(super) fn stop(self) {
        // Ended already is as good.
        let _ = self.0.send(());
    }
}
