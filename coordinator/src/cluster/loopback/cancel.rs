//! Callers that give up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ds4_common::expert::BatchError;
use ds4_common::kernels::Kernels;
use ds4_expert_node::compute::Compute;

use super::real::Model;
use super::*;
use crate::engine::{Chunk, Engine, EngineConfig, LogitsWanted, Numerics};

/// Never answers in time, and records that it was called.
struct Hang(Arc<AtomicBool>);

impl Compute for Hang {
    fn compute(
        &mut self,
        _: &ExpertBatch,
        _: &[TileRect],
        _: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        self.0.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_secs(5));
        Ok(0)
    }
}

/// A node for `model` that hangs.
fn hanging(model: &Model, runtime: &Runtime, asked: &Arc<AtomicBool>) -> RunningNode {
    let Expectation { fingerprint, shape } = model.expectation;
    let identity = Identity {
        model: "hang".to_owned(),
        fingerprint,
        shape,
        held: Holdings::uniform(shape.grid, shape.layers, TileSet::whole(shape.grid)),
        kernels: "none".to_owned(),
        weight_bytes: 0,
        resident_bytes: 0,
    };
    let compute = Box::new(Hang(Arc::clone(asked)));
    let node = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        RunningNode::start(compute, identity, &settings(), listener).await
    });
    node.expect("node")
}

#[test]
fn a_cancelled_step_does_not_wait_for_a_hanging_node() {
    let model = Model::open("tiny-a");
    let runtime = Runtime::new().expect("runtime");
    let asked = Arc::new(AtomicBool::new(false));
    let node = hanging(&model, &runtime, &asked);
    let options = ClusterOptions {
        nodes: vec![node.address().to_string()],
        ..quick()
    };
    let backend = runtime
        .block_on(ClusterBackend::connect(&options, &model.expectation, None))
        .expect("cluster");
    let config = EngineConfig {
        kernels: Kernels::detect(),
        numerics: Numerics::Full,
        threads: 1,
        pin: false,
        context: 0,
        rewind: 0,
    };
    let mut engine =
        Engine::new(model.hp, &model.tensors, Arc::new(backend), &config).expect("engine");
    let (stays, gone) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut sequences = [(); 2].map(|()| engine.new_sequence());
    let mut chunks: Vec<Chunk<'_>> = sequences
        .iter_mut()
        .zip([&stays, &gone])
        .map(|(sequence, cancelled)| Chunk {
            sequence,
            tokens: &[1, 2],
            logits: LogitsWanted::All,
            cancelled: Some(cancelled),
        })
        .collect();
    std::thread::scope(|scope| {
        let canceller = scope.spawn(|| {
            while !asked.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            gone.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            let last = Instant::now();
            stays.store(true, Ordering::SeqCst);
            last
        });
        let output = engine
            .step(&mut chunks)
            .expect("cancelling is not an error");
        let ended = Instant::now();
        let last = canceller.join().expect("canceller");
        assert!(ended >= last, "one chunk was still wanted");
        assert!(
            ended - last < Duration::from_millis(200),
            "{:?}",
            ended - last
        );
        for i in 0..2 {
            assert!(output.cancelled(i) && output.logits(i).is_empty());
        }
    });
    assert!(sequences.iter().all(crate::engine::Sequence::is_broken));
}
