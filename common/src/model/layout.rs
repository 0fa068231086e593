//! The one table of tensor names, aliases, shapes and kinds, from the hyper-parameters alone.
//!
//! Loading checks files against it, and synthetic models are written from it.

use super::HyperParams;
use super::names::block_name;

/// What a tensor is for; decides which types it may have and how a synthetic one is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TensorKind {
    Embedding,
    Output,
    Attention,
    Shared,
    /// Gate and up projections of the routed experts.
    ExpertUp,
    ExpertDown,
    /// Mixing matrices of the hyper-connections.
    Mixer,
    MixerBase,
    MixerScale,
    Compressor,
    /// Added to the compressor's scores by position.
    PositionBias,
    Indexer,
    Router,
    RouterBias,
    Norm,
    Sinks,
    /// Token id to experts.
    HashTable,
}

/// The legal shapes of a tensor, fastest dim first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TensorShape {
    Exact(Vec<u64>),
    /// The same bytes with rows in two dims.
    Grouped {
        flat: Vec<u64>,
        grouped: Vec<u64>,
    },
    /// Rows may be longer than they are used.
    RowsAtLeast(Vec<u64>),
}

/// One tensor that a model must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorSpec {
    pub(super) name: String,
    /// Names that other converters give it.
    pub(super) aliases: Vec<String>,
    pub(super) shape: TensorShape,
    pub(super) kind: TensorKind,
}

impl TensorShape {
    /// The shape as this crate writes it.
    pub(super) fn dims(&self) -> &[u64] {
        match self {
            TensorShape::Exact(dims) | TensorShape::RowsAtLeast(dims) => dims,
            TensorShape::Grouped { flat, .. } => flat,
        }
    }

    /// Trailing dims of 1 carry no meaning.
    pub(super) fn admits(&self, found: &[u64]) -> bool {
        fn trimmed(dims: &[u64]) -> &[u64] {
            let end = dims
                .iter()
                .rposition(|&d| d != 1)
                .map_or(1, |last| last + 1);
            &dims[..end.min(dims.len())]
        }
        let same = |dims: &[u64]| trimmed(dims) == trimmed(found);
        match self {
            TensorShape::Exact(dims) => same(dims),
            TensorShape::Grouped { flat, grouped } => same(flat) || same(grouped),
            TensorShape::RowsAtLeast(dims) => {
                dims.len() == found.len() && dims[1..] == found[1..] && found[0] >= dims[0]
            }
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            TensorShape::Exact(dims) => format!("{dims:?}"),
            TensorShape::Grouped { flat, grouped } => format!("{flat:?} or {grouped:?}"),
            TensorShape::RowsAtLeast(dims) => format!("{dims:?} or longer rows"),
        }
    }
}

fn spec(name: String, aliases: Vec<String>, shape: TensorShape, kind: TensorKind) -> TensorSpec {
    TensorSpec {
        name,
        aliases,
        shape,
        kind,
    }
}

/// Coefficients that one hyper-connection mixes with: what goes in, what goes out, and between.
fn mixes(hp: &HyperParams) -> usize {
    hp.streams * (hp.streams + 2)
}

/// Every tensor of the model, in the order in which files list them.
pub(super) fn model(hp: &HyperParams) -> Vec<TensorSpec> {
    let mut all = vec![global(
        "token_embd",
        None,
        &[hp.hidden, hp.vocab],
        TensorKind::Embedding,
    )];
    for block in 0..hp.layers {
        layer(hp, block, &mut all);
    }
    let streams = hp.streams;
    let mixed = [streams * hp.hidden, streams];
    all.push(global(
        "output_hc_fn",
        Some("hc_head_fn"),
        &mixed,
        TensorKind::Mixer,
    ));
    all.push(global(
        "output_hc_scale",
        Some("hc_head_scale"),
        &[1],
        TensorKind::MixerScale,
    ));
    all.push(global(
        "output_hc_base",
        Some("hc_head_base"),
        &[streams],
        TensorKind::MixerBase,
    ));
    all.push(global("output_norm", None, &[hp.hidden], TensorKind::Norm));
    all.push(global(
        "output",
        None,
        &[hp.hidden, hp.vocab],
        TensorKind::Output,
    ));
    all
}

fn global(name: &str, alias: Option<&str>, dims: &[usize], kind: TensorKind) -> TensorSpec {
    let full = |name: &str| format!("{name}.weight");
    spec(
        full(name),
        alias.map(full).into_iter().collect(),
        TensorShape::Exact(wide(dims)),
        kind,
    )
}

fn wide(dims: &[usize]) -> Vec<u64> {
    dims.iter().map(|&d| d as u64).collect()
}

/// Collects the tensors of one block.
struct BlockTensors<'a> {
    number: usize,
    all: &'a mut Vec<TensorSpec>,
}

impl BlockTensors<'_> {
    fn add(&mut self, name: &str, dims: &[usize], kind: TensorKind) {
        self.push(name, &[], TensorShape::Exact(wide(dims)), kind);
    }

    fn push(&mut self, name: &str, aliases: &[&str], shape: TensorShape, kind: TensorKind) {
        let full = |name: &str| block_name(self.number, &format!("{name}.weight"));
        let aliases = aliases.iter().map(|alias| full(alias)).collect();
        self.all.push(spec(full(name), aliases, shape, kind));
    }
}

fn layer(hp: &HyperParams, number: usize, all: &mut Vec<TensorSpec>) {
    let ratio = hp.compress_ratios.get(number).copied().unwrap_or(0);
    let mut b = BlockTensors { number, all };
    mixer(hp, &mut b, "attn");
    attention(hp, &mut b);
    if ratio != 0 {
        let names = ["attn_compressor", "attn_compress"];
        compressor(hp, &mut b, names, hp.head_dim, ratio);
    }
    if ratio == 4 {
        b.add(
            "indexer.attn_q_b",
            &[hp.q_rank, hp.index_heads * hp.index_dim],
            TensorKind::Indexer,
        );
        b.add(
            "indexer.proj",
            &[hp.hidden, hp.index_heads],
            TensorKind::Indexer,
        );
        let names = ["indexer_compressor", "indexer.compress"];
        compressor(hp, &mut b, names, hp.index_dim, ratio);
    }
    mixer(hp, &mut b, "ffn");
    experts(hp, &mut b);
}

fn mixer(hp: &HyperParams, b: &mut BlockTensors<'_>, which: &str) {
    b.add(
        &format!("hc_{which}_fn"),
        &[hp.streams * hp.hidden, mixes(hp)],
        TensorKind::Mixer,
    );
    b.add(&format!("hc_{which}_scale"), &[3], TensorKind::MixerScale);
    b.add(
        &format!("hc_{which}_base"),
        &[mixes(hp)],
        TensorKind::MixerBase,
    );
}

fn attention(hp: &HyperParams, b: &mut BlockTensors<'_>) {
    let (e, d) = (hp.hidden, hp.head_dim);
    let group = d * hp.heads / hp.out_groups;
    b.add("attn_norm", &[e], TensorKind::Norm);
    b.add("attn_q_a", &[e, hp.q_rank], TensorKind::Attention);
    b.add("attn_q_a_norm", &[hp.q_rank], TensorKind::Norm);
    b.add(
        "attn_q_b",
        &[hp.q_rank, hp.heads * d],
        TensorKind::Attention,
    );
    let kv = TensorShape::Exact(wide(&[e, d]));
    b.push(
        "attn_kv",
        &["attn_kv_latent", "attn_kv_a_mqa"],
        kv,
        TensorKind::Attention,
    );
    b.add("attn_kv_a_norm", &[d], TensorKind::Norm);
    b.add("attn_sinks", &[hp.heads], TensorKind::Sinks);
    let output_a = TensorShape::Grouped {
        flat: wide(&[group, hp.out_groups * hp.out_rank]),
        grouped: wide(&[group, hp.out_rank, hp.out_groups]),
    };
    b.push("attn_output_a", &[], output_a, TensorKind::Attention);
    b.add(
        "attn_output_b",
        &[hp.out_groups * hp.out_rank, e],
        TensorKind::Attention,
    );
}

/// `width` is that of the compressed rows.
fn compressor(
    hp: &HyperParams,
    b: &mut BlockTensors<'_>,
    [name, alias]: [&str; 2],
    width: usize,
    ratio: usize,
) {
    let wide_rows = width * HyperParams::compressor_overlap(ratio);
    let parts: [(&str, &[usize], TensorKind); 4] = [
        ("kv", &[hp.hidden, wide_rows], TensorKind::Compressor),
        ("gate", &[hp.hidden, wide_rows], TensorKind::Compressor),
        ("ape", &[wide_rows, ratio], TensorKind::PositionBias),
        ("norm", &[width], TensorKind::Norm),
    ];
    for (part, dims, kind) in parts {
        let (name, alias) = (format!("{name}_{part}"), format!("{alias}_{part}"));
        b.push(&name, &[&alias], TensorShape::Exact(wide(dims)), kind);
    }
}

fn experts(hp: &HyperParams, b: &mut BlockTensors<'_>) {
    let (e, n, ff, shared) = (hp.hidden, hp.experts, hp.expert_width, hp.shared_width());
    b.add("ffn_norm", &[e], TensorKind::Norm);
    b.add("ffn_gate_inp", &[e, n], TensorKind::Router);
    if b.number < hp.hash_layers {
        let table = TensorShape::RowsAtLeast(wide(&[hp.experts_used, hp.vocab]));
        b.push("ffn_gate_tid2eid", &[], table, TensorKind::HashTable);
    } else {
        b.all.push(spec(
            block_name(b.number, "exp_probs_b.bias"),
            vec![block_name(b.number, "exp_probs_b.weight")],
            TensorShape::Exact(wide(&[n])),
            TensorKind::RouterBias,
        ));
    }
    b.add("ffn_gate_exps", &[e, ff, n], TensorKind::ExpertUp);
    b.add("ffn_up_exps", &[e, ff, n], TensorKind::ExpertUp);
    b.add("ffn_down_exps", &[ff, e, n], TensorKind::ExpertDown);
    b.add("ffn_gate_shexp", &[e, shared], TensorKind::Shared);
    b.add("ffn_up_shexp", &[e, shared], TensorKind::Shared);
    b.add("ffn_down_shexp", &[shared, e], TensorKind::Shared);
}
