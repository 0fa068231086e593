//! The flags that say where a node's weights come from.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};
use ds4_common::slice::file_name;
use ds4_proto::security::Security;

use crate::load::WeightSource;
use crate::pull::PullConfig;
use crate::tiles::{GridCut, TileChoice};

/// A model and tiles of it, or a slice.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("source").required(true).args(["models", "slice", "data_dir"]))]
pub struct WeightArgs {
    /// GGUF file of the model, one of its split files, or all of its layer shards,
    /// comma-separated
    #[arg(
        short,
        long = "model",
        env = "DS4_MODEL",
        value_name = "FILE",
        num_args = 1..,
        value_delimiter = ','
    )]
    pub models: Vec<PathBuf>,
    /// Tiles to hold: `all`, or rectangles like `experts=0..128,blocks=0..4` joined by `+`
    /// [default: all]
    #[arg(
        long,
        env = "DS4_TILES",
        conflicts_with_all = ["grid", "slice", "data_dir"]
    )]
    pub tiles: Option<TileChoice>,
    /// Cut the tiles into expert groups x block strips, and hold one part of them
    #[arg(
        long,
        env = "DS4_GRID",
        value_name = "ExB",
        requires = "index",
        conflicts_with_all = ["slice", "data_dir"]
    )]
    pub grid: Option<GridCut>,
    /// Which part of `--grid` to hold, from 0
    #[arg(long, env = "DS4_INDEX", value_name = "N", requires = "grid")]
    pub index: Option<usize>,
    /// Slice of a model, as `ds4-coord slice` writes it; all of it is held
    #[arg(long, env = "DS4_SLICE", value_name = "FILE")]
    pub slice: Option<PathBuf>,
    /// Check the hash of every tensor of the slice before the node is ready
    #[arg(long, env = "DS4_VERIFY", conflicts_with = "models")]
    pub verify: bool,
    /// Folder of this node's slice, NAME.gguf
    #[arg(long, env = "DS4_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Coordinator that gives this node its slice if it is not in the folder yet
    #[arg(
        long,
        env = "DS4_JOIN",
        value_name = "HOST:PORT",
        conflicts_with_all = ["models", "slice"],
        requires = "data_dir"
    )]
    pub join: Option<String>,
    /// Name of this node in the coordinator's plan [default: the machine's name]
    #[arg(
        long,
        env = "DS4_NAME",
        value_name = "NAME",
        conflicts_with_all = ["models", "slice"]
    )]
    pub name: Option<String>,
    /// Time without any progress after which a node gives up pulling its slice
    #[arg(
        long,
        env = "DS4_JOIN_TIMEOUT",
        default_value_t = 3600,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=604_800)
    )]
    pub join_timeout: u64,
}

impl WeightArgs {
    /// Where the weights are once they are here.
    ///
    /// # Errors
    /// The node's name cannot name a file.
    pub fn source(&self) -> Result<WeightSource> {
        let verify = self.verify;
        if let Some(path) = &self.slice {
            let path = path.clone();
            return Ok(WeightSource::Slice { path, verify });
        }
        if let Some(folder) = &self.data_dir {
            let path = folder.join(file_name(&self.node())?);
            return Ok(WeightSource::Slice { path, verify });
        }
        let tiles = match (self.grid, self.index) {
            (Some(cut), Some(index)) => TileChoice::Part { cut, index },
            _ => self.tiles.clone().unwrap_or_default(),
        };
        Ok(WeightSource::Model {
            paths: self.models.clone(),
            tiles,
        })
    }

    /// How the weights come here, if they have to.
    ///
    /// # Errors
    /// The node's name cannot name a file, or plain text would go to another machine.
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
