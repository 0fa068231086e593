//! The model's tensors, checked once and shaped for the forward pass. Matrices stay mapped;
//! vectors that every token reads whole (norms, scales, biases) are held as f32.

use ds4_common::gguf::Tensor;
use ds4_common::kernels::{Matrix, ShapeError};
use ds4_common::model::{
    CompressorTensors, HyperParams, IndexerTensors, LayerTensors, ModelTensors, read_floats,
};
use ds4_common::quant::GgmlType;

use super::EngineError;
use super::hyper_connection::MAX_STREAMS;

/// A mapped weight matrix of `rows` outputs and `cols` inputs.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    tensor: Tensor,
    rows: usize,
    cols: usize,
}

impl Linear {
    /// Takes a tensor of any rank as rows of its first dimension.
    fn new(tensor: &Tensor) -> Result<Self, EngineError> {
        let cols = tensor.dims().first().map_or(0, |&d| d as usize);
        let rows = tensor.dims().iter().skip(1).map(|&d| d as usize).product();
        let linear = Linear {
            tensor: tensor.clone(),
            rows,
            cols,
        };
        linear.matrix()?;
        Ok(linear)
    }

    pub(crate) fn matrix(&self) -> Result<Matrix<'_>, EngineError> {
        Matrix::new(self.tensor.ty(), self.rows, self.cols, self.tensor.bytes()).map_err(
            |problem: ShapeError| EngineError::Weight {
                tensor: self.tensor.name().to_owned(),
                problem,
            },
        )
    }

    pub(crate) fn ty(&self) -> GgmlType {
        self.tensor.ty()
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// All bytes of the matrix.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.tensor.bytes()
    }

    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        let stride = self.tensor.bytes().len() / self.rows.max(1);
        &self.tensor.bytes()[row * stride..(row + 1) * stride]
    }
}

/// One hyper-connection's weights.
#[derive(Debug)]
pub(crate) struct HcWeights {
    pub(crate) function: Linear,
    pub(crate) scale: Vec<f32>,
    pub(crate) base: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct CompressorWeights {
    pub(crate) kv: Linear,
    pub(crate) gate: Linear,
    /// `ratio` rows of the projections' width.
    pub(crate) position_bias: Vec<f32>,
    pub(crate) norm: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct IndexerWeights {
    pub(crate) query: Linear,
    pub(crate) head_weights: Linear,
    pub(crate) compressor: CompressorWeights,
}

#[derive(Debug)]
pub(crate) struct AttentionWeights {
    pub(crate) norm: Vec<f32>,
    pub(crate) q_a: Linear,
    pub(crate) q_a_norm: Vec<f32>,
    pub(crate) q_b: Linear,
    pub(crate) kv: Linear,
    pub(crate) kv_norm: Vec<f32>,
    pub(crate) sinks: Vec<f32>,
    pub(crate) output_a: Linear,
    pub(crate) output_b: Linear,
    pub(crate) compressor: Option<CompressorWeights>,
    pub(crate) indexer: Option<IndexerWeights>,
}

/// How a layer chooses its experts.
#[derive(Debug)]
pub(crate) enum Choice {
    /// By a table of `stride` expert ids for each token of the vocabulary.
    Hash { table: Tensor, stride: usize },
    /// By score plus this bias.
    Learned { bias: Vec<f32> },
}

#[derive(Debug)]
pub(crate) struct FfnWeights {
    pub(crate) norm: Vec<f32>,
    pub(crate) router: Linear,
    pub(crate) choice: Choice,
    pub(crate) shared_gate: Linear,
    pub(crate) shared_up: Linear,
    pub(crate) shared_down: Linear,
    /// Types of the routed gate and up projections, which decide how their input travels.
    pub(crate) routed_types: [GgmlType; 2],
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_hc: HcWeights,
    pub(crate) attention: AttentionWeights,
    pub(crate) ffn_hc: HcWeights,
    pub(crate) ffn: FfnWeights,
}

#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head_hc: HcWeights,
    pub(crate) output_norm: Vec<f32>,
    pub(crate) output: Linear,
}

impl Weights {
    pub(crate) fn new(hp: &HyperParams, tensors: &ModelTensors) -> Result<Self, EngineError> {
        if hp.streams > MAX_STREAMS {
            return Err(EngineError::Streams {
                streams: hp.streams,
                limit: MAX_STREAMS,
            });
        }
        let layers = tensors
            .layers
            .iter()
            .map(|layer| Layer::new(hp, layer))
            .collect::<Result<_, EngineError>>()?;
        Ok(Weights {
            embedding: Linear::new(&tensors.token_embd)?,
            layers,
            head_hc: HcWeights::new(
                &tensors.output_hc_fn,
                &tensors.output_hc_scale,
                &tensors.output_hc_base,
            )?,
            output_norm: read_floats(&tensors.output_norm)?,
            output: Linear::new(&tensors.output)?,
        })
    }
}

impl Layer {
    fn new(hp: &HyperParams, t: &LayerTensors) -> Result<Self, EngineError> {
        Ok(Layer {
            attention_hc: HcWeights::new(&t.hc_attn_fn, &t.hc_attn_scale, &t.hc_attn_base)?,
            attention: AttentionWeights::new(t)?,
            ffn_hc: HcWeights::new(&t.hc_ffn_fn, &t.hc_ffn_scale, &t.hc_ffn_base)?,
            ffn: FfnWeights::new(hp, t)?,
        })
    }
}

impl HcWeights {
    fn new(function: &Tensor, scale: &Tensor, base: &Tensor) -> Result<Self, EngineError> {
        Ok(HcWeights {
            function: Linear::new(function)?,
            scale: read_floats(scale)?,
            base: read_floats(base)?,
        })
    }
}

impl AttentionWeights {
    fn new(t: &LayerTensors) -> Result<Self, EngineError> {
        Ok(AttentionWeights {
            norm: read_floats(&t.attn_norm)?,
            q_a: Linear::new(&t.attn_q_a)?,
            q_a_norm: read_floats(&t.attn_q_a_norm)?,
            q_b: Linear::new(&t.attn_q_b)?,
            kv: Linear::new(&t.attn_kv)?,
            kv_norm: read_floats(&t.attn_kv_a_norm)?,
            sinks: read_floats(&t.attn_sinks)?,
            output_a: Linear::new(&t.attn_output_a)?,
            output_b: Linear::new(&t.attn_output_b)?,
            compressor: t
                .compressor
                .as_ref()
                .map(CompressorWeights::new)
                .transpose()?,
            indexer: t.indexer.as_ref().map(IndexerWeights::new).transpose()?,
        })
    }
}

impl CompressorWeights {
    fn new(t: &CompressorTensors) -> Result<Self, EngineError> {
        Ok(CompressorWeights {
            kv: Linear::new(&t.kv)?,
            gate: Linear::new(&t.gate)?,
            position_bias: read_floats(&t.ape)?,
            norm: read_floats(&t.norm)?,
        })
    }
}

impl IndexerWeights {
    fn new(t: &IndexerTensors) -> Result<Self, EngineError> {
        Ok(IndexerWeights {
            query: Linear::new(&t.q_b)?,
            head_weights: Linear::new(&t.proj)?,
            compressor: CompressorWeights::new(&t.compressor)?,
        })
    }
}

impl FfnWeights {
    fn new(hp: &HyperParams, t: &LayerTensors) -> Result<Self, EngineError> {
        let choice = match (&t.tid2eid, &t.exp_probs_b) {
            (Some(table), _) => Choice::Hash {
                table: table.clone(),
                stride: table.dims()[0] as usize,
            },
            (None, Some(bias)) => Choice::Learned {
                bias: read_floats(bias)?,
            },
            (None, None) => Choice::Learned {
                bias: vec![0.0; hp.experts],
            },
        };
        Ok(FfnWeights {
            norm: read_floats(&t.ffn_norm)?,
            router: Linear::new(&t.ffn_gate_inp)?,
            choice,
            shared_gate: Linear::new(&t.gate_shexp)?,
            shared_up: Linear::new(&t.up_shexp)?,
            shared_down: Linear::new(&t.down_shexp)?,
            routed_types: [t.gate_exps.ty(), t.up_exps.ty()],
        })
    }
}
