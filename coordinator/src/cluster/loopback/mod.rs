//! Real streams over loopback. Most experts are scripted: cheap to compute, and able to misbehave.

mod audit;
mod calibrate;
mod cancel;
mod cuts;
mod failover;
mod faults;
mod figures;
mod foreign;
mod known;
mod members;
mod real;
mod relay;
mod script;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::{ExpertBatch, MoeShape};
use ds4_common::tiles::{Grid, Holdings, TileRect, TileSet};
use ds4_expert_node::compute::Identity;
use ds4_expert_node::node::{NodeSettings, RunningNode};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::scripted::{FINGERPRINT, GRID, SHAPE, alone, batch, bits};
use super::{ClusterBackend, ClusterError, ClusterOptions, Expectation, NodeState, NodeStatus};
use crate::engine::{ExpertBackend, ExpertError};
use script::{FallbackScript, Knobs, Script};

/// A runtime with running nodes.
struct Cluster {
    runtime: Runtime,
    nodes: Vec<RunningNode>,
    /// Apply to all nodes.
    knobs: Arc<Knobs>,
    /// Apply to one node each, in the order in which they were added.
    node_knobs: Vec<Arc<Knobs>>,
}

impl Cluster {
    fn new() -> Self {
        Cluster {
            runtime: Runtime::new().expect("runtime"),
            nodes: Vec::new(),
            knobs: Arc::default(),
            node_knobs: Vec::new(),
        }
    }

    fn with_nodes(held: &[Vec<TileRect>]) -> Self {
        let mut cluster = Cluster::new();
        for rects in held {
            cluster.add(rects, "127.0.0.1:0", &settings());
        }
        cluster
    }

    /// `n` nodes that each hold all tiles.
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

    /// A node of another model.
    fn add_model(&mut self, fingerprint: [u8; 32], address: &str) {
        let held = Holdings::uniform(GRID, SHAPE.layers, TileSet::whole(GRID));
        self.start(fingerprint, held, address, &settings());
    }

    fn add_holding(&mut self, held: Holdings, address: &str, settings: &NodeSettings) {
        self.start(FINGERPRINT, held, address, settings);
    }

    fn start(
        &mut self,
        fingerprint: [u8; 32],
        held: Holdings,
        address: &str,
        settings: &NodeSettings,
    ) {
        let own = Arc::<Knobs>::default();
        self.node_knobs.push(Arc::clone(&own));
        let script = Box::new(Script {
            grid: GRID,
            knobs: [Arc::clone(&self.knobs), own],
        });
        let identity = Identity {
            model: "script".to_owned(),
            fingerprint,
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

    fn connect(&self, cut: Option<(u32, u32)>) -> Result<ClusterBackend, ClusterError> {
        let options = ClusterOptions {
            nodes: self.addresses(),
            cut,
            ..quick()
        };
        self.connect_with(&options)
    }

    fn connect_with(&self, options: &ClusterOptions) -> Result<ClusterBackend, ClusterError> {
        self.runtime
            .block_on(ClusterBackend::connect(options, &expectation(), None))
    }

    /// Connects with a local fallback, which may also compute what no node holds at the start.
    fn connect_with_fallback(
        &self,
        options: &ClusterOptions,
    ) -> (ClusterBackend, Arc<FallbackScript>) {
        let fallback = Arc::<FallbackScript>::default();
        let expected = expectation();
        let options = &ClusterOptions {
            begin_incomplete: true,
            ..options.clone()
        };
        let connect = ClusterBackend::connect(options, &expected, Some(Arc::clone(&fallback) as _));
        (self.runtime.block_on(connect).expect("cluster"), fallback)
    }

    fn options(&self) -> ClusterOptions {
        ClusterOptions {
            nodes: self.addresses(),
            ..quick()
        }
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
        startup_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
        // Tests count calls, and what misbehaves should do so when it is called.
        known_calls: false,
        audit: None,
        ..ClusterOptions::default()
    }
}

fn expectation() -> Expectation {
    Expectation {
        fingerprint: FINGERPRINT,
        shape: SHAPE,
    }
}

fn compute(backend: &dyn ExpertBackend, batch: &Arc<ExpertBatch>) -> Result<Vec<f32>, ExpertError> {
    let mut out = vec![f32::NAN; batch.tokens * SHAPE.hidden];
    backend
        .begin(Arc::clone(batch))?
        .finish(&|| false, &mut out)?;
    Ok(out)
}

/// The nodes that accept no work: address and reason.
fn unavailable(backend: &ClusterBackend) -> Vec<(String, String)> {
    let reason = |node: NodeStatus| match node.state {
        NodeState::Up => None,
        state => Some((node.name.to_string(), state.to_string())),
    };
    let nodes = backend.table().nodes();
    nodes.into_iter().filter_map(reason).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "timed out: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Computes batches of all layers until `done`, and checks each.
fn work_until(what: &str, backend: &dyn ExpertBackend, mut done: impl FnMut() -> bool) {
    let mut layer = 0;
    wait_until(what, || {
        check(backend, &batch(layer % SHAPE.layers, 1 + layer % 3));
        layer += 1;
        done()
    });
}

/// Computes a batch and checks the bits of the rows.
fn check(backend: &dyn ExpertBackend, batch: &Arc<ExpertBatch>) {
    let found = compute(backend, batch).expect("rows");
    assert_eq!(bits(&found), bits(&alone(batch)), "layer {}", batch.layer);
}
