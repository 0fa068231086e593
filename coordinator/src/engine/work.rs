//! What the stages of a step read and multiply, to compare their speed with that of the machine.

use super::weights::{AttentionWeights, Layer, Linear, Weights};
use super::{Engine, Stage};

/// Weights of a stage over all layers: a step reads them once, and multiplies each of them once
/// with every token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageWork {
    pub bytes: u64,
    pub weights: u64,
}

impl Engine {
    /// The mapped weights of a stage. Routed experts are not among them, nor are the indexer's,
    /// which only long sequences read. The head's are multiplied with rows that want logits.
    #[must_use]
    pub fn work(&self, stage: Stage) -> StageWork {
        let mut work = StageWork::default();
        let Weights {
            layers,
            head_hc,
            output,
            ..
        } = &self.weights;
        for layer in layers {
            linears(layer, stage)
                .into_iter()
                .for_each(|linear| work.add(linear));
        }
        if stage == Stage::Head {
            work.add(&head_hc.function);
            work.add(output);
        }
        work
    }

    /// Runs `probe` on the engine's threads.
    pub fn on_threads<R: Send>(&self, probe: impl FnOnce() -> R + Send) -> R {
        self.pool.install(probe)
    }

    /// The bytes of the mapped weights that a token of any sequence meets, but for experts.
    #[must_use]
    pub fn dense_bytes(&self) -> Vec<&[u8]> {
        let of_layers = self
            .weights
            .layers
            .iter()
            .flat_map(|layer| Stage::ALL.into_iter().flat_map(|s| linears(layer, s)));
        of_layers
            .chain([&self.weights.output])
            .map(Linear::bytes)
            .collect()
    }
}

impl StageWork {
    fn add(&mut self, linear: &Linear) {
        self.bytes += linear.bytes().len() as u64;
        self.weights += (linear.rows() * linear.cols()) as u64;
    }
}

/// The matrices of a stage in one layer.
fn linears(layer: &Layer, stage: Stage) -> Vec<&Linear> {
    let AttentionWeights {
        q_a,
        q_b,
        kv,
        output_a,
        output_b,
        compressor,
        indexer,
        ..
    } = &layer.attention;
    let ffn = &layer.ffn;
    match stage {
        Stage::HyperConnections => vec![&layer.attention_hc.function, &layer.ffn_hc.function],
        Stage::AttentionInput => {
            let indexer = indexer.as_ref().map(|indexer| &indexer.compressor);
            let compressors = compressor.iter().chain(indexer);
            let compressors = compressors.flat_map(|weights| [&weights.kv, &weights.gate]);
            [q_a, kv].into_iter().chain(compressors).collect()
        }
        Stage::Queries => vec![q_b],
        Stage::AttentionOutput => vec![output_a, output_b],
        Stage::Router => vec![&ffn.router],
        Stage::SharedExpert => vec![&ffn.shared_gate, &ffn.shared_up, &ffn.shared_down],
        Stage::Embedding
        | Stage::Compressor
        | Stage::Indexer
        | Stage::Attention
        | Stage::RoutedExperts
        | Stage::Head => Vec::new(),
    }
}
