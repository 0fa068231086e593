//! Real streams over loopback. Most experts are scripted: cheap, and able to misbehave.

mod calibrate;
mod cancel;
mod cuts;
mod faults;
mod foreign;
mod real;
mod script;

use std::sync::Arc;
use std::time::Duration;

use ds4_common::expert::{ExpertBatch, ExpertInput, Route};
use ds4_common::tiles::{Grid, Holdings, TileRect, TileSet};
use ds4_expert_node::compute::Identity;
use ds4_expert_node::node::{NodeSettings, RunningNode};
use ds4_proto::wire::Shape;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::{ClusterBackend, ClusterError, ClusterOptions, Expectation};
use crate::engine::{ExpertBackend, ExpertError};
use script::{Knobs, Script};

const GRID: Grid = Grid {
    experts: 6,
    blocks: 3,
};
const SHAPE: Shape = Shape {
    layers: 4,
    hidden: 8,
    used: 3,
    grid: GRID,
};
const FINGERPRINT: [u8; 32] = [5; 32];

/// A runtime with running nodes.
struct Cluster {
    runtime: Runtime,
    nodes: Vec<RunningNode>,
    knobs: Arc<Knobs>,
}

impl Cluster {
    fn new() -> Self {
        Cluster {
            runtime: Runtime::new().expect("runtime"),
            nodes: Vec::new(),
            knobs: Arc::default(),
        }
    }

    fn with_nodes(held: &[Vec<TileRect>]) -> Self {
        let mut cluster = Cluster::new();
        for rects in held {
            cluster.add(rects, "127.0.0.1:0", &settings());
        }
        cluster
    }

    /// `n` nodes that hold everything.
    fn whole(n: usize) -> Self {
        Self::with_nodes(&vec![vec![GRID.whole()]; n])
    }

    fn add(&mut self, rects: &[TileRect], address: &str, settings: &NodeSettings) {
        let layers = vec![rects.to_vec(); SHAPE.layers];
        self.add_holding(
            Holdings::new(GRID, layers).expect("tiles"),
            address,
            settings,
        );
    }

    fn add_holding(&mut self, held: Holdings, address: &str, settings: &NodeSettings) {
        let script = Box::new(Script {
            grid: GRID,
            knobs: Arc::clone(&self.knobs),
        });
        let identity = Identity {
            model: "script".to_owned(),
            fingerprint: FINGERPRINT,
            shape: SHAPE,
            held,
            kernels: "scripted".to_owned(),
            weight_bytes: 0,
            resident_bytes: 0,
        };
        let node = self.runtime.block_on(async {
            let listener = TcpListener::bind(address).await.expect("listener");
            RunningNode::start(script, identity, settings, listener).await
        });
        self.nodes.push(node.expect("node"));
    }

    fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.address().to_string()).collect()
    }

    fn connect(&self, grid: Option<(u32, u32)>) -> Result<ClusterBackend, ClusterError> {
        let options = ClusterOptions {
            nodes: self.addresses(),
            grid,
            ..quick()
        };
        self.connect_with(&options)
    }

    fn connect_with(&self, options: &ClusterOptions) -> Result<ClusterBackend, ClusterError> {
        self.runtime
            .block_on(ClusterBackend::connect(options, &expectation()))
    }
}

fn settings() -> NodeSettings {
    NodeSettings {
        threads: 1,
        drain_timeout: Duration::from_secs(5),
        ..NodeSettings::default()
    }
}

fn quick() -> ClusterOptions {
    ClusterOptions {
        patience: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
        ..ClusterOptions::default()
    }
}

fn expectation() -> Expectation {
    Expectation {
        fingerprint: FINGERPRINT,
        shape: SHAPE,
    }
}

/// Some work whose values differ between tokens and calls.
fn batch(layer: usize, tokens: usize) -> Arc<ExpertBatch> {
    let used = SHAPE.used;
    let mut state = (layer * 1000 + tokens) as u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let routes = (0..tokens)
        .flat_map(|_| {
            let first = next() % GRID.experts;
            let weight = (next() % 1000) as f32 / 700.0;
            // Different experts of a token, not in ascending order.
            (0..used as u32).map(move |slot| Route {
                expert: (first + slot * 5) % GRID.experts,
                weight: weight + slot as f32,
            })
        })
        .collect();
    let input = (0..tokens * SHAPE.hidden)
        .map(|_| next() as f32 / 9e6 - 0.9)
        .collect();
    Arc::new(ExpertBatch {
        layer,
        tokens,
        used,
        routes,
        input: ExpertInput::F32(input),
        round: true,
    })
}

/// What one holder of everything computes, without any wire.
fn alone(batch: &ExpertBatch) -> Vec<f32> {
    script::rows(GRID, batch, &[GRID.whole()]).0
}

fn compute(backend: &dyn ExpertBackend, batch: &Arc<ExpertBatch>) -> Result<Vec<f32>, ExpertError> {
    let mut out = vec![f32::NAN; batch.tokens * SHAPE.hidden];
    backend
        .begin(Arc::clone(batch))?
        .finish(&|| false, &mut out)?;
    Ok(out)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
