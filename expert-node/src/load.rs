//! From model files to something that computes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ds4_common::expert::{ExpertStore, StoreError, TileComputer};
use ds4_common::gguf::{GgufError, GgufModel};
use ds4_common::kernels::Kernels;
use ds4_common::model::{Fingerprint, HyperParams, ModelError, ModelTensors};
use ds4_common::slice::{self, ByteProgress, Slice, SliceError};
use ds4_common::tiles::{ChoiceError, Holdings, TileChoice};

use crate::compute::Identity;
use crate::integrity::{BackgroundPlan, Integrity};
use crate::weights;

pub use crate::integrity::{VerifySettings, VerifyWhen};

/// Which weights a node serves, and with which kernels.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Where the weights are.
    pub source: WeightSource,
    /// What multiplies them.
    pub kernels: Kernels,
    /// Whether to read the held tiles into memory: those of a whole model before the node is
    /// ready, those of a slice while it serves.
    pub populate: bool,
    /// How the node makes sure of its weights.
    pub verify: VerifySettings,
}

/// Where a node's tiles are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// In the files of a whole model.
    Model {
        /// The model's file, one of its split files, or all of its layer shards.
        paths: Vec<PathBuf>,
        /// Which of its tiles to hold.
        tiles: TileChoice,
    },
    /// In a slice, all of which is held.
    Slice {
        /// The slice's file.
        path: PathBuf,
    },
}

/// Why a node's model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is not a valid GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file does not hold a model of this architecture.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The expert tensors cannot be computed with.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model's grid does not have the chosen tiles.
    #[error("tiles: {0}")]
    Tiles(#[from] ChoiceError),
    /// The operating system failed to read the held tiles.
    #[error("cannot read the weights: {0}")]
    Populate(io::Error),
    /// The slice is not valid.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// A slice was passed where a whole model belongs.
    #[error("{} is a slice, not a whole model: pass it with --slice", .0.display())]
    IsSlice(PathBuf),
}

/// A node's weights, ready to compute, and its description of itself.
#[derive(Debug)]
pub struct LoadedTiles {
    /// Computes the held tiles.
    pub computer: TileComputer,
    /// What the node tells about itself.
    pub identity: Identity,
    /// What is known about the weights.
    pub(crate) integrity: Arc<Integrity>,
    /// What is left for the background once the node is ready.
    pub(crate) background: Option<BackgroundPlan>,
}

/// Maps the held tiles and, if `config` says so, reads them into memory. Blocks: not for a Tokio
/// thread.
///
/// # Errors
/// The files are not a model that this node can serve, or do not have these tiles.
pub fn load(config: &ModelConfig) -> Result<LoadedTiles, LoadError> {
    match &config.source {
        WeightSource::Model { paths, tiles } => load_model(config, paths, tiles),
        WeightSource::Slice { path } => load_slice(config, path),
    }
}

fn load_model(
    config: &ModelConfig,
    paths: &[PathBuf],
    tiles: &TileChoice,
) -> Result<LoadedTiles, LoadError> {
    let gguf = GgufModel::open_parts(paths)?;
    if Slice::is_slice(&gguf) {
        return Err(LoadError::IsSlice(gguf.name().to_path_buf()));
    }
    let hp = HyperParams::from_model(&gguf)?;
    let tensors = ModelTensors::bind(&gguf, &hp)?;
    let store = ExpertStore::new(&hp, &tensors)?;
    let grid = store.grid();
    let held = tiles.resolve(grid)?;
    let weight_bytes = weights::held_bytes(&hp, &tensors, held.rects());
    if config.populate {
        tracing::info!(
            megabytes = weight_bytes / 1_000_000,
            "reading the held weights into memory"
        );
        weights::populate(&hp, &tensors, held.rects()).map_err(LoadError::Populate)?;
    }
    let named = gguf.metadata().optional_str("general.name");
    let integrity = Integrity::of_model(&gguf, &hp, &tensors, held.rects());
    let identity = Identity {
        model: name_or_stem(named.ok().flatten(), gguf.name()),
        fingerprint: *Fingerprint::of(&gguf, &hp)?.as_bytes(),
        shape: *store.shape(),
        kernels: config.kernels.name().to_owned(),
        weight_bytes,
        resident_bytes: weights::resident_bytes(&hp, &tensors, held.rects()),
        held: Holdings::uniform(grid, store.layers(), held),
    };
    if identity.pays_for_more() {
        tracing::warn!(
            weight_megabytes = identity.weight_bytes / 1_000_000,
            resident_megabytes = identity.resident_bytes / 1_000_000,
            "a cut along the blocks of a whole model file keeps whole rows of the down projection \
             in memory"
        );
    }
    let VerifySettings { every, rate, .. } = config.verify;
    let plan = BackgroundPlan {
        warm: Vec::new(),
        // Without digests of a whole model, there is nothing to compare but a later time. Weights
        // that are to stay on disk are not all read for that.
        compare: every.is_some() && config.populate,
        every,
        rate,
    };
    Ok(LoadedTiles {
        computer: TileComputer::new(store, config.kernels),
        identity,
        integrity: Arc::new(integrity),
        background: config.verify.background.then_some(plan),
    })
}

fn load_slice(config: &ModelConfig, path: &Path) -> Result<LoadedTiles, LoadError> {
    let VerifySettings {
        when, every, rate, ..
    } = config.verify;
    let gguf = GgufModel::open(path)?;
    let slice = Slice::of(gguf.clone())?;
    let integrity = Integrity::of_slice(&slice, &gguf, when)?;
    if when == VerifyWhen::Start {
        check_hashes(&slice)?;
    }
    let head = slice.head();
    let store = ExpertStore::from_slice(&slice)?;
    let identity = Identity {
        model: name_or_stem(head.model(), path),
        fingerprint: *head.fingerprint().as_bytes(),
        shape: *store.shape(),
        kernels: config.kernels.name().to_owned(),
        weight_bytes: slice.weight_bytes(),
        resident_bytes: slice.weight_bytes(),
        held: head.holdings().clone(),
    };
    let warm = head.tensors().iter().filter(|_| config.populate);
    let plan = BackgroundPlan {
        warm: warm.map(|t| slice.tensor(t)).collect::<Result<_, _>>()?,
        compare: when != VerifyWhen::Off,
        every,
        rate,
    };
    Ok(LoadedTiles {
        computer: TileComputer::new(store, config.kernels),
        identity,
        integrity: Arc::new(integrity),
        background: config.verify.background.then_some(plan),
    })
}

fn check_hashes(slice: &Slice) -> Result<(), LoadError> {
    let mut progress = ByteProgress::new(slice.weight_bytes(), 0);
    let mut done = 0;
    let mismatches = slice::verify(slice, &mut |bytes| {
        done += bytes;
        if let Some(line) = progress.reach(done) {
            tracing::info!("verifying the slice: {line}");
        }
    })?;
    for mismatch in mismatches.iter().skip(1) {
        tracing::error!(tensor = mismatch.tensor, "a tensor does not match its hash");
    }
    match mismatches.into_iter().next() {
        Some(mismatch) => Err(mismatch.error(&slice.path()).into()),
        None => Ok(()),
    }
}

/// The name in the metadata, or the file's.
fn name_or_stem(named: Option<&str>, file: &Path) -> String {
    let stem = || file.file_stem().map(|s| s.to_string_lossy().into_owned());
    named
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .or_else(stem)
        .unwrap_or_default()
}
