//! The model's tensors, checked once and shaped for the forward pass. Matrices stay mapped;
//! vectors that every token reads whole (norms, scales, biases) are held as f32.

use ds4_common::gguf::Tensor;
use ds4_common::kernels::{Matrix, ShapeError};
use ds4_common::model::{
    CompressorTensors, HyperParams, IndexerTensors, LayerTensors, ModelTensors, read_floats,
};
use ds4_common::quant::GgmlType;

use super::error::EngineError;
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

    /// The matrix as the kernels take it.
    pub(crate) fn matrix(&self) -> Result<Matrix<'_>, EngineError> {
        Matrix::new(self.tensor.ty(), self.rows, self.cols, self.tensor.bytes()).map_err(
            |problem: ShapeError| EngineError::Weight {
                tensor: self.tensor.name().to_owned(),
                problem,
            },
        )
    }

    /// Type of the weights.
    pub(crate) fn ty(&self) -> GgmlType {
        self.tensor.ty()
    }

    /// Outputs.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// All bytes of the matrix.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.tensor.bytes()
    }

    /// The bytes of one row.
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        let stride = self.tensor.bytes().len() / self.rows.max(1);
        &self.tensor.bytes()[row * stride..(row + 1) * stride]
    }
}

/// One hyper-connection's weights.
#[derive(Debug)]
pub(crate) struct HcWeights {
    /// Residual to mixing logits, `(mixing logits x streams*hidden)`.
    pub(crate) function: Linear,
    /// Factors of the mixing logits: pre, post, streams; at the head pre alone.
    pub(crate) scale: Vec<f32>,
    /// Offsets, one for each mixing logit.
    pub(crate) base: Vec<f32>,
}

/// One compressor's weights. Its projections are `dim` wide, or `2*dim` where windows overlap.
#[derive(Debug)]
pub(crate) struct CompressorWeights {
    /// Values, `(width x hidden)`.
    pub(crate) kv: Linear,
    /// Scores, `(width x hidden)`.
    pub(crate) gate: Linear,
    /// Added to the scores by position in the window, `(ratio x width)`.
    pub(crate) position_bias: Vec<f32>,
    /// `(dim)`.
    pub(crate) norm: Vec<f32>,
}

/// One indexer's weights.
#[derive(Debug)]
pub(crate) struct IndexerWeights {
    /// `(index_heads*index_dim x q_rank)`.
    pub(crate) query: Linear,
    /// `(index_heads x hidden)`.
    pub(crate) head_weights: Linear,
    pub(crate) compressor: CompressorWeights,
}

/// One layer's attention weights.
#[derive(Debug)]
pub(crate) struct AttentionWeights {
    /// Of the sublayer's input, `(hidden)`.
    pub(crate) norm: Vec<f32>,
    /// `(q_rank x hidden)`.
    pub(crate) q_a: Linear,
    /// `(q_rank)`.
    pub(crate) q_a_norm: Vec<f32>,
    /// `(heads*head_dim x q_rank)`.
    pub(crate) q_b: Linear,
    /// `(head_dim x hidden)`.
    pub(crate) kv: Linear,
    /// `(head_dim)`.
    pub(crate) kv_norm: Vec<f32>,
    /// Logit of each head's sink, `(heads)`.
    pub(crate) sinks: Vec<f32>,
    /// Heads to low rank in groups, `(out_groups*out_rank x heads*head_dim/out_groups)`.
    pub(crate) output_a: Linear,
    /// `(hidden x out_groups*out_rank)`.
    pub(crate) output_b: Linear,
    /// Present on compressing layers.
    pub(crate) compressor: Option<CompressorWeights>,
    /// Present where an indexer chooses among compressed rows.
    pub(crate) indexer: Option<IndexerWeights>,
}

/// How a layer chooses its experts.
#[derive(Debug)]
pub(crate) enum ExpertChoice {
    /// By a table of `stride` expert ids (i32) for each token of the vocabulary.
    Hash { table: Tensor, stride: usize },
    /// By score plus this bias, `(experts)`.
    Learned { bias: Vec<f32> },
}

/// One layer's router and shared expert.
#[derive(Debug)]
pub(crate) struct FfnWeights {
    /// Of the sublayer's input, `(hidden)`.
    pub(crate) norm: Vec<f32>,
    /// `(experts x hidden)`.
    pub(crate) router: Linear,
    pub(crate) choice: ExpertChoice,
    /// `(width x hidden)`.
    pub(crate) shared_gate: Linear,
    /// `(width x hidden)`.
    pub(crate) shared_up: Linear,
    /// `(hidden x width)`.
    pub(crate) shared_down: Linear,
    /// Types of the routed experts' gate and up projections, which decide the format in which their
    /// input travels.
    pub(crate) routed_types: [GgmlType; 2],
}

/// One layer's weights, without the routed experts.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attention_hc: HcWeights,
    pub(crate) attention: AttentionWeights,
    pub(crate) ffn_hc: HcWeights,
    pub(crate) ffn: FfnWeights,
}

/// All weights of the model, without the routed experts.
#[derive(Debug)]
pub(crate) struct EngineWeights {
    /// `(vocab x hidden)`.
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) head_hc: HcWeights,
    /// `(hidden)`.
    pub(crate) output_norm: Vec<f32>,
    /// `(vocab x hidden)`.
    pub(crate) output: Linear,
}

impl EngineWeights {
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
            .map(|layer| LayerWeights::new(hp, layer))
            .collect::<Result<_, EngineError>>()?;
        Ok(EngineWeights {
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

impl LayerWeights {
    fn new(hp: &HyperParams, t: &LayerTensors) -> Result<Self, EngineError> {
        Ok(LayerWeights {
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
            (Some(table), _) => ExpertChoice::Hash {
                table: table.clone(),
                stride: table.dims()[0] as usize,
            },
            (None, Some(bias)) => ExpertChoice::Learned {
                bias: read_floats(bias)?,
            },
            (None, None) => ExpertChoice::Learned {
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
