//! From model files to something that computes.

use std::io;
use std::path::PathBuf;

use ds4_common::expert::{BatchError, ExpertBatch, ExpertScratch, ExpertStore, StoreError};
use ds4_common::gguf::{GgufError, GgufModel};
use ds4_common::kernels::Kernels;
use ds4_common::model::{Fingerprint, HyperParams, ModelError, ModelTensors};
use ds4_common::tiles::{Holdings, TileRect};
use ds4_proto::wire::Shape;

use crate::compute::{Compute, Identity};
use crate::tiles::{ChoiceError, TileChoice};
use crate::weights;

/// Which weights a node serves, and with which kernels.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The model's file, one of its split files, or all of its layer shards.
    pub paths: Vec<PathBuf>,
    pub tiles: TileChoice,
    pub kernels: Kernels,
    /// Whether to read the held tiles into memory before the node is ready.
    pub populate: bool,
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
}

/// The expert function over mapped weights.
#[derive(Debug)]
pub struct StoreCompute {
    store: ExpertStore,
    kernels: Kernels,
    scratch: ExpertScratch,
}

impl StoreCompute {
    #[must_use]
    pub fn new(store: ExpertStore, kernels: Kernels) -> Self {
        StoreCompute {
            store,
            kernels,
            scratch: ExpertScratch::default(),
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
}

/// Maps the model and its held tiles; reads them in if asked to. Blocks: not for a tokio thread.
///
/// # Errors
/// The files are no model that this node could serve, or do not have these tiles.
pub fn load(config: &ModelConfig) -> Result<(StoreCompute, Identity), LoadError> {
    let gguf = GgufModel::open_parts(&config.paths)?;
    let hp = HyperParams::from_model(&gguf)?;
    let tensors = ModelTensors::bind(&gguf, &hp)?;
    let store = ExpertStore::new(&hp, &tensors)?;
    let grid = store.grid();
    let held = config.tiles.resolve(grid)?;
    let weight_bytes = weights::held_bytes(&hp, &tensors, held.rects());
    if config.populate {
        tracing::info!(
            megabytes = weight_bytes / 1_000_000,
            "reading the held weights"
        );
        weights::populate(&hp, &tensors, held.rects()).map_err(LoadError::Populate)?;
    }
    let identity = Identity {
        model: model_name(&gguf),
        fingerprint: *Fingerprint::of(&gguf, &hp)?.as_bytes(),
        shape: Shape {
            layers: store.layers(),
            hidden: store.hidden(),
            used: store.experts_used(),
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

/// The name in the metadata, or the file's.
fn model_name(gguf: &GgufModel) -> String {
    let named = gguf.metadata().optional_str("general.name").ok().flatten();
    let file = || {
        gguf.name()
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    named
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .or_else(file)
        .unwrap_or_default()
}
