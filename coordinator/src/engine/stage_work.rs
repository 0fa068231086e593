//! How many weights the stages of a step read and multiply, to compare their speed with what the
//! machine can do.

use super::stage::Stage;
use super::weights::{AttentionWeights, EngineWeights, LayerWeights, Linear};

/// Weights of a stage over all layers: a step reads them once and multiplies each of them once
/// per token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageWork {
    /// Bytes that a step reads, whatever its tokens.
    pub bytes: u64,
    /// Multiply-adds per token.
    pub weights: u64,
}

impl EngineWeights {
    /// The mapped weights of a stage, without the routed experts and without the indexer's, which
    /// only long sequences read. The head's are multiplied only for rows that want logits.
    pub(super) fn work(&self, stage: Stage) -> StageWork {
        let mut work = StageWork::default();
        for layer in &self.layers {
            linears(layer, stage)
                .into_iter()
                .for_each(|linear| work.add(linear));
        }
        if stage == Stage::Head {
            work.add(&self.head_hc.function);
            work.add(&self.output);
        }
        work
    }

    /// The mapped weights that every step reads, without the routed experts: one slice per matrix.
    pub(super) fn dense_bytes(&self) -> Vec<&[u8]> {
        let of_layer = |layer| Stage::ALL.into_iter().flat_map(move |s| linears(layer, s));
        let of_layers = self.layers.iter().flat_map(of_layer);
        of_layers.chain([&self.output]).map(Linear::bytes).collect()
    }
}

impl StageWork {
    fn add(&mut self, linear: &Linear) {
        self.bytes += linear.bytes().len() as u64;
        self.weights += (linear.rows() * linear.cols()) as u64;
    }
}

/// The matrices of a stage in one layer.
fn linears(layer: &LayerWeights, stage: Stage) -> Vec<&Linear> {
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
