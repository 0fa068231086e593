//! Random-weight models of any shape, for tests and benchmarks.
//!
//! The weights mean nothing, but they are well-conditioned: every matrix about keeps the size of
//! its input, so that activations stay finite through any number of layers. The same recipe
//! always gives the same file.

mod fill;
pub mod presets;

use std::io;
use std::path::Path;

use super::HyperParams;
use super::layout::{self, TensorKind, TensorSpec};
use crate::gguf::{GgufWriter, Value, WriteError};
use crate::quant::GgmlType;
use crate::random::SplitMix64;
use fill::Filler;

/// What a synthetic model is made of, beyond its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// `general.name` of the file.
    pub name: String,
    /// Same seed, same weights.
    pub seed: u64,
    /// Weight type of each tensor.
    pub formats: Formats,
    /// More metadata, as a rule a tokenizer's.
    pub extra: Vec<(String, Value)>,
}

/// The weight format of every role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Token embedding.
    pub embedding: GgmlType,
    /// Output projection.
    pub output: GgmlType,
    /// Projections of attention.
    pub attention: GgmlType,
    /// Shared expert.
    pub shared: GgmlType,
    /// Gate and up projections of routed experts.
    pub expert_up: GgmlType,
    /// Down projections of routed experts.
    pub expert_down: GgmlType,
    /// Hyper-connection matrices.
    pub mixer: GgmlType,
    /// Projections of the compressors.
    pub compressor: GgmlType,
    /// Position biases of the compressors.
    pub position_bias: GgmlType,
    /// Projections of the indexer.
    pub indexer: GgmlType,
    /// Router projection.
    pub router: GgmlType,
    /// Norms, scales, biases and sinks: F32, F16 or BF16.
    pub vectors: GgmlType,
}

impl Formats {
    /// As in the published Q4 file.
    pub const PUBLISHED_Q4: Formats = Formats {
        embedding: GgmlType::F16,
        output: GgmlType::Q8_0,
        attention: GgmlType::Q8_0,
        shared: GgmlType::Q8_0,
        expert_up: GgmlType::Q4K,
        expert_down: GgmlType::Q4K,
        mixer: GgmlType::F16,
        compressor: GgmlType::F16,
        position_bias: GgmlType::F16,
        indexer: GgmlType::F16,
        router: GgmlType::F16,
        vectors: GgmlType::F32,
    };

    /// Every matrix in one format; vectors and position biases in F32.
    #[must_use]
    pub fn uniform(ty: GgmlType) -> Self {
        Self {
            embedding: ty,
            output: ty,
            attention: ty,
            shared: ty,
            expert_up: ty,
            expert_down: ty,
            mixer: ty,
            compressor: ty,
            position_bias: GgmlType::F32,
            indexer: ty,
            router: ty,
            vectors: GgmlType::F32,
        }
    }

    pub(in crate::model) fn of(&self, kind: TensorKind) -> GgmlType {
        match kind {
            TensorKind::Embedding => self.embedding,
            TensorKind::Output => self.output,
            TensorKind::Attention => self.attention,
            TensorKind::Shared => self.shared,
            TensorKind::ExpertUp => self.expert_up,
            TensorKind::ExpertDown => self.expert_down,
            TensorKind::Mixer => self.mixer,
            TensorKind::Compressor => self.compressor,
            TensorKind::PositionBias => self.position_bias,
            TensorKind::Indexer => self.indexer,
            TensorKind::Router => self.router,
            TensorKind::HashTable => GgmlType::I32,
            TensorKind::MixerBase
            | TensorKind::MixerScale
            | TensorKind::RouterBias
            | TensorKind::Norm
            | TensorKind::Sinks => self.vectors,
        }
    }
}

impl Default for Recipe {
    /// The published formats, no tokenizer.
    fn default() -> Self {
        Self {
            name: "synthetic".into(),
            seed: 1,
            formats: Formats::PUBLISHED_Q4,
            extra: Vec::new(),
        }
    }
}

/// Writes the model to `path`, streaming: memory does not grow with the model. Gives its bytes.
///
/// # Errors
/// The file cannot be written, a format does not fit a shape (rows must be whole blocks), or
/// `extra` repeats a key.
pub fn write(path: &Path, hp: &HyperParams, recipe: &Recipe) -> Result<u64, WriteError> {
    let mut writer = GgufWriter::new();
    writer.add("general.name", Value::String(recipe.name.clone()))?;
    for (key, value) in hp.to_metadata() {
        writer.add(&key, value)?;
    }
    for (key, value) in &recipe.extra {
        writer.add(key, value.clone())?;
    }
    let specs = layout::model(hp);
    for spec in &specs {
        writer.add_tensor(&spec.name, spec.shape.dims(), recipe.formats.of(spec.kind))?;
    }
    let mut specs = specs.iter();
    writer.write_file(path, |planned, out| {
        let spec = specs
            .next()
            .ok_or_else(|| io::Error::other("more tensors than declared"))?;
        let filler = filler(hp, spec, planned.ty);
        stream(
            &filler,
            SplitMix64::named(recipe.seed, &planned.name),
            planned.bytes,
            out,
        )
    })
}

/// Chooses values so that activations keep about their size.
fn filler(hp: &HyperParams, spec: &TensorSpec, ty: GgmlType) -> Filler {
    let inputs = spec.shape.dims().first().copied().unwrap_or(1) as f32;
    let weights = |gain: f32| Filler::weights(ty, gain / inputs.sqrt());
    match spec.kind {
        TensorKind::Embedding => Filler::weights(ty, 0.5),
        TensorKind::PositionBias => Filler::weights(ty, 0.3),
        // A larger gain spreads the logits, so that the most likely token stands out.
        TensorKind::Output => weights(2.0),
        TensorKind::Attention
        | TensorKind::Shared
        | TensorKind::ExpertUp
        | TensorKind::ExpertDown
        | TensorKind::Mixer
        | TensorKind::Compressor
        | TensorKind::Indexer
        | TensorKind::Router => weights(1.0),
        TensorKind::Norm => Filler::vector(ty, 1.0, 0.2),
        TensorKind::MixerScale => Filler::vector(ty, 0.5, 0.3),
        TensorKind::MixerBase => Filler::vector(ty, 0.0, 0.5),
        TensorKind::Sinks => Filler::vector(ty, 0.0, 1.0),
        TensorKind::RouterBias => Filler::vector(ty, 0.0, 0.1),
        TensorKind::HashTable => Filler::table(hp.experts_used, hp.experts),
    }
}

/// One thread makes several GB/s, more than most disks take.
fn stream(
    filler: &Filler,
    mut rng: SplitMix64,
    total: u64,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    const PIECE: usize = 1 << 20;
    let unit = filler.unit_bytes();
    let piece = (PIECE / unit).max(1) * unit;
    let mut buffer = vec![0; usize::try_from(total).unwrap_or(usize::MAX).min(piece)];
    let mut left = total;
    while left > 0 {
        // Not above the buffer's length, a usize.
        let now = left.min(buffer.len() as u64) as usize;
        filler.fill(&mut rng, &mut buffer[..now]);
        out.write_all(&buffer[..now])?;
        left -= now as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
