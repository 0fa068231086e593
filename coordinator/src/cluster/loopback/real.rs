//! Embedded nodes with the weights of a reference model, compared with the in-process backend.

use std::path::PathBuf;

use ds4_common::expert::{BatchFields, ExpertInput, ExpertStore, Route};
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::{Activations, Kernels};
use ds4_common::model::{Fingerprint, HyperParams, ModelTensors};
use ds4_common::quant::ActivationFormat;
use ds4_common::tiles::{GridCut, TileChoice};
use ds4_expert_node::load::{ModelConfig, WeightSource};
use ds4_expert_node::{EmbeddedNode, NodeConfig};

use super::*;
use crate::cluster::LocalBackend;

pub(super) struct Model {
    path: PathBuf,
    pub(super) hp: HyperParams,
    pub(super) tensors: ModelTensors,
    pub(super) expectation: Expectation,
}

impl Model {
    pub(super) fn open(name: &str) -> Self {
        let file = format!("../tests/golden/{name}/{name}.gguf");
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
        let gguf = GgufModel::open(&path).expect("reference model");
        let hp = HyperParams::from_model(&gguf).expect("hyper-parameters");
        let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
        let expectation = Expectation {
            fingerprint: *Fingerprint::of(&gguf, &hp).expect("fingerprint").as_bytes(),
            shape: MoeShape::of(&hp),
        };
        Model {
            path,
            hp,
            tensors,
            expectation,
        }
    }

    fn store(&self) -> ExpertStore {
        ExpertStore::new(&self.hp, &self.tensors).expect("store")
    }

    /// Inputs quantised for the layer's weights, or plain floats.
    fn batch(&self, layer: usize, tokens: usize, round: bool) -> Arc<ExpertBatch> {
        let hidden = self.hp.hidden;
        let values: Vec<f32> = (0..tokens * hidden)
            .map(|i| ((i * 7919 + layer * 31) % 2001) as f32 / 1000.0 - 1.0)
            .collect();
        let format = match round {
            true => self.tensors.layers[layer]
                .gate_exps
                .ty()
                .activation_format(),
            false => ActivationFormat::F32,
        };
        let mut input = Activations::new();
        input.set(format, hidden, &values);
        let experts_used = self.hp.experts_used;
        let routes = (0..tokens * experts_used)
            .map(|i| Route {
                expert: ((i / experts_used * 3 + i % experts_used * 5) % self.hp.experts) as u32,
                weight: 0.1 + (i % 7) as f32 / 5.0,
            })
            .collect();
        let fields = BatchFields {
            layer,
            tokens,
            routes,
            input: ExpertInput::from_activations(&input),
            round,
        };
        Arc::new(ExpertBatch::new(self.expectation.shape, fields).expect("a legal batch"))
    }

    fn compute(&self, backend: &dyn ExpertBackend, batch: &Arc<ExpertBatch>) -> Vec<u32> {
        let mut out = vec![f32::NAN; batch.tokens * self.hp.hidden];
        let pending = backend.begin(Arc::clone(batch)).expect("begun");
        pending.finish(&|| false, &mut out).expect("rows");
        bits(&out)
    }

    async fn nodes(&self, tiles: Vec<TileChoice>) -> Vec<EmbeddedNode> {
        let mut nodes = Vec::new();
        for tiles in tiles {
            let config = NodeConfig {
                model: ModelConfig {
                    source: WeightSource::Model {
                        paths: vec![self.path.clone()],
                        tiles,
                    },
                    kernels: Kernels::detect(),
                    populate: true,
                    verify: ds4_expert_node::load::VerifySettings::EMBEDDED,
                },
                settings: NodeSettings {
                    threads: 2,
                    ..NodeSettings::default()
                },
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
            nodes.push(EmbeddedNode::start(&config, listener).await.expect("node"));
        }
        nodes
    }
}

#[test]
fn embedded_nodes_and_cuts_in_process_give_the_same_bits() {
    for name in ["tiny-a", "tiny-w"] {
        let model = Model::open(name);
        let grid = model.expectation.shape.grid;
        let runtime = Runtime::new().expect("runtime");
        let batches: Vec<_> = (0..model.hp.layers)
            .flat_map(|layer| [(layer, 1, true), (layer, 9, true), (layer, 2, false)])
            .map(|(layer, tokens, round)| model.batch(layer, tokens, round))
            .collect();
        let local = LocalBackend::new(model.store(), Kernels::detect());
        let wanted: Vec<_> = batches.iter().map(|b| model.compute(&local, b)).collect();
        let finite = |row: &Vec<u32>| row.iter().all(|b| f32::from_bits(*b).is_finite());
        assert!(wanted.iter().all(finite) && wanted.iter().any(|r| r.iter().any(|b| *b != 0)));

        for (groups, strips) in [(2, 1), (3, grid.blocks), (grid.experts, 1)] {
            let cut = LocalBackend::with_cut(model.store(), Kernels::detect(), groups, strips);
            let cut = cut.expect("legal cut");
            for (batch, wanted) in batches.iter().zip(&wanted) {
                assert_eq!(
                    &model.compute(&cut, batch),
                    wanted,
                    "{name} {groups}x{strips}"
                );
            }
        }

        let half = GridCut {
            groups: 2,
            strips: 1,
        };
        let part = |index| TileChoice::Part { cut: half, index };
        for tiles in [
            vec![TileChoice::All],
            vec![TileChoice::All; 3],
            vec![part(0), part(1)],
            vec![part(1), TileChoice::All, part(0)],
        ] {
            let nodes = runtime.block_on(model.nodes(tiles.clone()));
            let options = ClusterOptions {
                nodes: nodes.iter().map(EmbeddedNode::address).collect(),
                ..quick()
            };
            let backend = runtime
                .block_on(ClusterBackend::connect(&options, &model.expectation, None))
                .expect("cluster");
            for (batch, wanted) in batches.iter().zip(&wanted) {
                assert_eq!(&model.compute(&backend, batch), wanted, "{name} {tiles:?}");
            }
            let blocks: u64 = nodes.iter().map(|n| n.counters().expert_blocks).sum();
            let routes: usize = batches.iter().map(|b| b.routes.len()).sum();
            assert_eq!(
                blocks,
                routes as u64 * u64::from(grid.blocks),
                "{name} {tiles:?}"
            );
            drop(backend);
            for node in nodes {
                assert!(runtime.block_on(node.stop()), "stopped cleanly");
            }
        }
    }
}
