//! From model files to something that computes.

use std::io;
use std::path::{Path, PathBuf};

use ds4_common::expert::{BatchError, ExpertBatch, ExpertScratch, ExpertStore, StoreError};
use ds4_common::gguf::{GgufError, GgufModel};
use ds4_common::kernels::Kernels;
use ds4_common::model::{Fingerprint, HyperParams, ModelError, ModelTensors};
use ds4_common::slice::{self, Progress, Slice, SliceError};
use ds4_common::tiles::{Holdings, TileRect};
use ds4_proto::wire::Shape;

use crate::compute::{Compute, Identity};
use crate::tiles::{ChoiceError, TileChoice};
use crate::warming::Warming;
use crate::weights;

/// Which weights a node serves, and with which kernels.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    pub source: WeightSource,
    pub kernels: Kernels,
    /// Whether to read the held tiles into memory: of a whole model before the node is ready, of
    /// a slice behind its back.
    pub populate: bool,
}

/// Where a node's tiles are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// In the files of a whole model.
    Model {
        /// The model's file, one of its split files, or all of its layer shards.
        paths: Vec<PathBuf>,
        tiles: TileChoice,
    },
    /// In a slice, all of which is held.
    Slice {
        path: PathBuf,
        /// Whether to check every tensor's hash first, which reads the whole file.
        verify: bool,
    },
}

/// Why a node's model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("tiles: {0}")]
    Tiles(#[from] ChoiceError),
    #[error("the weights could not be read: {0}")]
    Populate(io::Error),
    #[error(transparent)]
    Slice(#[from] SliceError),
    #[error("{} is a slice of a model: name it with --slice", .0.display())]
    IsSlice(PathBuf),
}

/// The expert function over mapped weights.
#[derive(Debug)]
pub struct StoreCompute {
    store: ExpertStore,
    kernels: Kernels,
    scratch: ExpertScratch,
    /// Ends with this.
    _warming: Option<Warming>,
}

impl StoreCompute {
    #[must_use]
    pub fn new(store: ExpertStore, kernels: Kernels) -> Self {
        StoreCompute {
            store,
            kernels,
            scratch: ExpertScratch::default(),
            _warming: None,
        }
    }
}

impl Compute for StoreCompute {
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        self.store
            .compute(self.kernels, batch, rects, &mut self.scratch, out)
    }

    /// Every expert's buffers have the size of the largest batch that it has met, which differs
    /// from expert to expert, so that all of them together grow far beyond one batch's need.
    fn idle(&mut self) {
        self.scratch = ExpertScratch::default();
    }

    fn kernels(&self) -> Kernels {
        self.kernels
    }

    fn weights(&self) -> Vec<&[u8]> {
        let layers = 0..self.store.layers();
        layers.flat_map(|layer| self.store.weights(layer)).collect()
    }
}

/// Maps the held tiles; reads them in if asked to. Blocks: not for a tokio thread.
///
/// # Errors
/// The files are no model that this node could serve, or do not have these tiles.
pub fn load(config: &ModelConfig) -> Result<(StoreCompute, Identity), LoadError> {
    match &config.source {
        WeightSource::Model { paths, tiles } => load_model(config, paths, tiles),
        WeightSource::Slice { path, verify } => load_slice(config, path, *verify),
    }
}

fn load_model(
    config: &ModelConfig,
    paths: &[PathBuf],
    tiles: &TileChoice,
) -> Result<(StoreCompute, Identity), LoadError> {
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
            "reading the held weights"
        );
        weights::populate(&hp, &tensors, held.rects()).map_err(LoadError::Populate)?;
    }
    let named = gguf.metadata().optional_str("general.name");
    let identity = Identity {
        model: name_or_stem(named.ok().flatten(), gguf.name()),
        fingerprint: *Fingerprint::of(&gguf, &hp)?.as_bytes(),
        shape: Shape {
            layers: store.layers(),
            hidden: store.hidden(),
            experts_used: store.experts_used(),
            grid,
        },
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
    Ok((StoreCompute::new(store, config.kernels), identity))
}

fn load_slice(
    config: &ModelConfig,
    path: &Path,
    verify: bool,
) -> Result<(StoreCompute, Identity), LoadError> {
    let slice = Slice::open(path)?;
    if verify {
        check_hashes(&slice)?;
    }
    let head = slice.head();
    let store = ExpertStore::from_slice(&slice)?;
    let identity = Identity {
        model: name_or_stem(head.model(), path),
        fingerprint: *head.fingerprint().as_bytes(),
        shape: Shape {
            layers: store.layers(),
            hidden: store.hidden(),
            experts_used: store.experts_used(),
            grid: store.grid(),
        },
        kernels: config.kernels.name().to_owned(),
        weight_bytes: slice.weight_bytes(),
        resident_bytes: slice.weight_bytes(),
        held: head.holdings().clone(),
    };
    let mut compute = StoreCompute::new(store, config.kernels);
    if config.populate {
        compute._warming = Some(Warming::start(&slice)?);
    }
    Ok((compute, identity))
}

fn check_hashes(slice: &Slice) -> Result<(), LoadError> {
    let mut progress = Progress::new(slice.weight_bytes(), 0);
    let mut done = 0;
    let faults = slice::verify(slice, &mut |bytes| {
        done += bytes;
        if let Some(line) = progress.reach(done) {
            tracing::info!("verifying the slice: {line}");
        }
    })?;
    for fault in faults.iter().skip(1) {
        tracing::error!(tensor = fault.tensor, "has another hash");
    }
    match faults.into_iter().next() {
        Some(fault) => Err(fault.error(&slice.path()).into()),
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
