//! The flags that say where a node's weights come from.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};
use ds4_cli::{ModelFlag, parse};
use ds4_common::quantity::Bytes;
use ds4_common::slice::file_name;
use ds4_common::tiles::{GridCut, TileChoice};
use ds4_proto::security::Security;

use crate::load::{VerifySettings, VerifyWhen, WeightSource};
use crate::pull::PullConfig;

/// Tiles of a model, a slice, or a folder for a slice that is fetched.
#[derive(Args, Debug)]
#[command(
    next_help_heading = "Model",
    group = ArgGroup::new("source").required(true).args(["model", "slice", "data_dir"])
)]
pub struct WeightArgs {
    /// A whole model.
    #[command(flatten)]
    pub model: ModelFlag,

    /// Tiles to hold: `all`, or rectangles like `experts=0..128,blocks=0..4` joined by `+`
    /// [default: all]
    #[arg(
        long,
        env = "DS4_TILES",
        conflicts_with_all = ["grid", "slice", "data_dir"]
    )]
    pub tiles: Option<TileChoice>,

    /// Cut the tiles into expert groups x block strips and hold one part of them; needs --index
    /// [default: uncut]
    #[arg(
        long,
        env = "DS4_GRID",
        value_name = "ExB",
        requires = "index",
        conflicts_with_all = ["slice", "data_dir"]
    )]
    pub grid: Option<GridCut>,

    /// Which part of --grid to hold, counted from 0
    #[arg(long, env = "DS4_INDEX", value_name = "N", requires = "grid")]
    pub index: Option<usize>,

    /// Slice of a model to hold, as written by `ds4-coord slice`
    #[arg(long, env = "DS4_SLICE", value_name = "FILE")]
    pub slice: Option<PathBuf>,

    /// Folder of this node's slice, NAME.gguf
    #[arg(long, env = "DS4_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Coordinator to fetch the slice from if it is missing or incomplete in the folder
    /// [default: none]
    #[arg(
        long,
        env = "DS4_JOIN",
        value_name = "HOST:PORT",
        conflicts_with_all = ["model", "slice"],
        requires = "data_dir"
    )]
    pub join: Option<String>,

    /// Name of this node in the coordinator's plan [default: the machine's host name]
    #[arg(
        long,
        env = "DS4_NAME",
        value_name = "NAME",
        conflicts_with_all = ["model", "slice"]
    )]
    pub name: Option<String>,

    /// Seconds without progress after which fetching a slice fails
    #[arg(
        long,
        env = "DS4_JOIN_TIMEOUT",
        default_value_t = 3600,
        value_name = "SECONDS",
        value_parser = parse::seconds(1..=604_800)
    )]
    pub join_timeout: u64,

    /// When the hashes of a slice's tensors are compared first: use (a layer's before a call
    /// computes with it, all of them in the background), background (calls do not wait), start
    /// (all before the node is ready; --verify alone means this) or off
    #[arg(
        long,
        env = "DS4_VERIFY",
        conflicts_with = "model",
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value = "use",
        default_missing_value = "start",
        value_parser = verify_when
    )]
    pub verify: VerifyWhen,

    /// Time between two comparisons of all weights with their hashes, or, for a whole model, with
    /// what they were when they were first read: 90s, 30m, 24h, 7d, or off
    #[arg(
        long,
        env = "DS4_VERIFY_EVERY",
        default_value = "24h",
        value_name = "TIME",
        value_parser = parse::interval
    )]
    pub verify_every: parse::Interval,

    /// Bytes a second that are compared in the background while the node has work; without work it
    /// is as many as it can
    #[arg(
        long,
        env = "DS4_VERIFY_RATE",
        default_value = "16MiB",
        value_name = "SIZE",
        value_parser = parse::size(Bytes(1 << 20), Bytes(1 << 40))
    )]
    pub verify_rate: Bytes,

    /// Leave weights on disk until calls need them, instead of reading a model's tiles before the
    /// node is ready, or a slice's in the background [default: off]
    #[arg(long, env = "DS4_NO_POPULATE")]
    pub no_populate: bool,
}

impl WeightArgs {
    /// Where the weights are once a missing slice has been fetched.
    ///
    /// # Errors
    /// The node's name is not a valid file name.
    pub fn source(&self) -> Result<WeightSource> {
        if let Some(path) = &self.slice {
            let path = path.clone();
            return Ok(WeightSource::Slice { path });
        }
        if let Some(folder) = &self.data_dir {
            let path = folder.join(file_name(&self.node())?);
            return Ok(WeightSource::Slice { path });
        }
        let tiles = match (self.grid, self.index) {
            (Some(cut), Some(index)) => TileChoice::Part { cut, index },
            _ => self.tiles.clone().unwrap_or_default(),
        };
        Ok(WeightSource::Model {
            paths: self.model.model.clone(),
            tiles,
        })
    }

    /// How the node makes sure of its weights.
    #[must_use]
    pub fn verify(&self) -> VerifySettings {
        VerifySettings {
            when: self.verify,
            rate: self.verify_rate.0,
            every: self.verify_every.0,
            background: true,
        }
    }

    /// How a slice in a folder is fetched; `None` for weights that are never fetched.
    ///
    /// # Errors
    /// The node's name is not a valid file name, or plain text would go to another machine.
    pub fn pull(&self, security: &Security) -> Result<Option<PullConfig>> {
        let Some(folder) = &self.data_dir else {
            return Ok(None);
        };
        if let Some(coordinator) = &self.join {
            security.endpoint(coordinator)?;
        }
        let node = self.node();
        Ok(Some(PullConfig {
            path: folder.join(file_name(&node)?),
            node,
            coordinator: self.join.clone(),
            security: security.clone(),
            timeout: Duration::from_secs(self.join_timeout),
        }))
    }

    fn node(&self) -> String {
        let machine = || {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        };
        self.name.clone().unwrap_or_else(machine)
    }
}

/// A name of [`VerifyWhen::NAMES`]. A variable that says yes or no means what the flag does with
/// and without being given.
fn verify_when(text: &str) -> Result<VerifyWhen, String> {
    let named = VerifyWhen::NAMES.iter().find(|(name, _)| *name == text);
    match (named, text) {
        (Some((_, when)), _) => Ok(*when),
        (None, "1" | "true" | "yes") => Ok(VerifyWhen::Start),
        (None, "" | "0" | "false" | "no") => Ok(VerifyWhen::Use),
        _ => Err("expected use, background, start or off".to_owned()),
    }
}
