//! A node as a process: load, ready, drain, stop.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::Kernels;
use ds4_common::model::{Fingerprint, HyperParams};
use ds4_common::slice::Slice;
use ds4_common::tiles::Grid;
use ds4_proto::tls::Role;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{InspectArgs, ServeArgs};
use crate::embedded::start;
use crate::pull;

/// Serves until SIGTERM or ctrl-c, then drains; a second signal stops at once.
///
/// # Errors
/// The address is taken, the model cannot be loaded, or the server fails.
pub async fn serve(args: &ServeArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    let security = args.tls.security(Role::Node)?;
    let config = args.config(security.clone())?;
    let pull = args.weights.pull(&security)?;
    // The port is taken before minutes of loading, so that a clash is seen at once. Who connects
    // meanwhile waits in the listener's backlog.
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
        name = signals.next() => bail!("{name} while the model was loading"),
    };
    if let Some(listener) = health {
        node.serve_health(listener);
    }
    let identity = node.identity();
    let ready = format!(
        "ds4-expert ready on {}: {}, kernels {}, {} threads, {}\n",
        node.address(),
        identity.summary(),
        identity.kernels,
        node.threads(),
        identity.weight_summary(),
    );
    if let Err(error) = print(&ready) {
        // A node serves on even if nobody listens to its output.
        tracing::warn!(%error, "the ready line was not printed");
    }
    tokio::select! {
        name = signals.next() => tracing::info!("{name}: draining"),
        reason = node.failed() => bail!("the server failed: {reason}"),
    }
    tokio::select! {
        finished = node.stop() => {
            if !finished {
                tracing::warn!("stopped before all work was finished");
            }
        }
        name = signals.next() => tracing::warn!("{name} again: stopping at once"),
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}"))
}

/// Prints what a model is and how it could be cut.
///
/// # Errors
/// The files are no model that this software reads.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    let files = match args.files.is_empty() {
        true => &args.models,
        false => &args.files,
    };
    let gguf = GgufModel::open_parts(files)?;
    if Slice::is_slice(&gguf) {
        return print_rows(&Slice::of(gguf)?.head().describe());
    }
    let hp = HyperParams::from_model(&gguf)?;
    let grid = Grid::of(hp.experts, hp.expert_width);
    let rows = [
        ("fingerprint", Fingerprint::of(&gguf, &hp)?.to_string()),
        ("layers", hp.layers.to_string()),
        ("hidden", hp.hidden.to_string()),
        (
            "experts",
            format!(
                "{} a layer, {} a token, {} wide",
                hp.experts, hp.experts_used, hp.expert_width
            ),
        ),
        ("tile grid", grid.to_string()),
        ("file bytes", gguf.file_bytes().to_string()),
        ("kernels", Kernels::summary()),
    ];
    print_rows(&rows)
}

fn print_rows(rows: &[(&str, String)]) -> Result<()> {
    let text: String = rows
        .iter()
        .map(|(name, value)| format!("{name:<12} {value}\n"))
        .collect();
    match print(&text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Unlike `println!`, no panic when the reader has gone.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The signals that end a node. Both are caught, since a process that runs as init gets no
/// default action for either.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot catch ctrl-c")?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "ctrl-c",
        }
    }
}
