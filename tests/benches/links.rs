//! Where the time of one layer's experts goes, by the number of nodes and the link, and how long
//! a layer waits for a node that is lost.
//!
//! `cargo bench -p ds4-tests --bench links`

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use ds4_common::expert::{
    BatchError, BatchFields, ExpertBatch, ExpertInput, MoeShape, Route, TileComputer,
};
use ds4_common::kernels::{Activations, Kernels};
use ds4_common::model::HyperParams;
use ds4_common::model::synthetic::{Recipe, presets, write};
use ds4_common::quant::ActivationFormat;
use ds4_common::tiles::{GridCut, TileChoice, TileRect};
use ds4_coordinator::cluster::{ClusterBackend, ClusterOptions, Expectation};
use ds4_coordinator::engine::ExpertBackend;
use ds4_expert_node::compute::Compute;
use ds4_expert_node::load::{LoadedTiles, ModelConfig, WeightSource, load};
use ds4_expert_node::node::{NodeSettings, RunningNode};
use ds4_tests::distribution::Distribution;
use ds4_tests::namespace::Namespace;
use ds4_tests::relay::{Conditions, Relay};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const WARM: usize = 100;
const CALLS: usize = 400;
const LOSSES: usize = 20;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// One layer with Flash's widths and few experts, so that the file stays small. More of them than
/// usual fit into a cache, but the computation is not what is measured here.
fn shape() -> HyperParams {
    HyperParams {
        vocab: 512,
        experts: 8,
        ..presets::flash(1)
    }
}

/// When a node computed a call.
#[derive(Clone, Copy, Debug)]
struct Computed {
    begun: Instant,
    ended: Instant,
}

/// Computes, and reports when.
struct Watched {
    /// `None` answers with zeros at once.
    compute: Option<TileComputer>,
    shape: MoeShape,
    tell: Sender<Computed>,
}

impl Compute for Watched {
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        let begun = Instant::now();
        let expert_block_ops = match &mut self.compute {
            Some(compute) => compute.compute(batch, rects, out)?,
            None => {
                out.clear();
                let rows = batch.reply_rows(0..batch.tokens, rects);
                out.resize(rows * self.shape.hidden, 0.0);
                0
            }
        };
        let ended = Instant::now();
        // The receiver is gone at the end.
        let _ = self.tell.send(Computed { begun, ended });
        Ok(expert_block_ops)
    }
}

/// Nodes within this process, so that all share one clock, behind relays.
struct Cluster {
    backend: ClusterBackend,
    relays: Vec<Relay>,
    computed: Receiver<Computed>,
    nodes: Vec<RunningNode>,
}

/// `None` is a connection without a relay.
type Link = Option<Conditions>;

/// What the nodes of a cluster do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Each holds and computes one rectangle.
    Part,
    /// Each holds one rectangle, and answers with zeros at once.
    Nothing,
    /// Each holds and can compute everything.
    Whole,
}

impl Cluster {
    fn start(
        runtime: &Runtime,
        model: &Path,
        nodes: usize,
        work: Work,
        link: Link,
    ) -> Result<Self> {
        let (tell, computed) = channel();
        let (mut running, mut relays, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let mut expectation = None;
        for index in 0..nodes {
            let cut = GridCut {
                groups: 1,
                strips: nodes as u32,
            };
            let tiles = match work {
                Work::Whole => TileChoice::All,
                Work::Part | Work::Nothing => TileChoice::Part { cut, index },
            };
            let loaded = load(&ModelConfig {
                source: WeightSource::Model {
                    paths: vec![model.to_owned()],
                    tiles,
                },
                kernels: Kernels::detect(),
                populate: true,
                verify: ds4_expert_node::load::VerifySettings::EMBEDDED,
            })?;
            let LoadedTiles {
                computer, identity, ..
            } = loaded;
            expectation = Some(Expectation {
                fingerprint: identity.fingerprint,
                shape: identity.shape,
            });
            let watched = Watched {
                compute: (work != Work::Nothing).then_some(computer),
                shape: identity.shape,
                tell: tell.clone(),
            };
            let settings = NodeSettings {
                threads: 1,
                ..NodeSettings::default()
            };
            let node = runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind(ANY).await?;
                let started = RunningNode::start(Box::new(watched), identity, &settings, listener);
                anyhow::Ok(started.await?)
            })?;
            let mut entry = node.address();
            if let Some(conditions) = link {
                let relay =
                    Relay::start(&Namespace::Current, ANY, entry, conditions, index as u64)?;
                entry = relay.address();
                relays.push(relay);
            }
            names.push(entry.to_string());
            running.push(node);
        }
        let options = ClusterOptions {
            nodes: names,
            ..ClusterOptions::default()
        };
        let expectation = expectation.context("no nodes")?;
        let connect = ClusterBackend::connect(&options, &expectation, None);
        Ok(Cluster {
            backend: runtime.block_on(connect)?,
            relays,
            computed,
            nodes: running,
        })
    }

    fn bytes(&self) -> [u64; 2] {
        let counters = self.nodes[0].counters();
        [counters.bytes_in, counters.bytes_out]
    }

    fn call(&self, batch: &Arc<ExpertBatch>, out: &mut [f32]) -> Result<[Instant; 3]> {
        let start = Instant::now();
        let pending = self
            .backend
            .begin(Arc::clone(batch))
            .map_err(|e| anyhow!("{e}"))?;
        let begun = Instant::now();
        pending.finish(&|| false, out).map_err(|e| anyhow!("{e}"))?;
        Ok([start, begun, Instant::now()])
    }
}

/// Parts of one call's time.
#[derive(Default)]
struct Parts {
    serialise: Vec<Duration>,
    there: Vec<Duration>,
    compute: Vec<Duration>,
    slowest: Vec<Duration>,
    back: Vec<Duration>,
    total: Vec<Duration>,
}

impl Parts {
    fn add(&mut self, [start, begun, end]: [Instant; 3], computed: &[Computed]) {
        let first_begun = computed.iter().map(|c| c.begun).min().unwrap_or(begun);
        let last = computed.iter().map(|c| c.ended).max().unwrap_or(end);
        let first = computed.iter().map(|c| c.ended).min().unwrap_or(end);
        self.serialise.push(begun - start);
        // The first node may compute before the last has its message.
        self.there
            .push(first_begun.saturating_duration_since(begun));
        self.compute
            .push(first.saturating_duration_since(first_begun));
        self.slowest.push(last - first);
        self.back.push(end.saturating_duration_since(last));
        self.total.push(end - start);
    }

    fn row(self) -> String {
        let parts = [
            self.serialise,
            self.there,
            self.compute,
            self.slowest,
            self.back,
            self.total,
        ];
        let medians = parts.map(|times| format!("{:9.1}", 1e6 * median(times).as_secs_f64()));
        medians.join(" ")
    }
}

fn median(times: Vec<Duration>) -> Duration {
    times.into_iter().collect::<Distribution>().at(0.5)
}

fn batch(hp: &HyperParams) -> Arc<ExpertBatch> {
    let values: Vec<f32> = (0..hp.hidden)
        .map(|i| (i % 201) as f32 / 100.0 - 1.0)
        .collect();
    let mut input = Activations::new();
    input.set(ActivationFormat::Q8K, hp.hidden, &values);
    let route = |slot: usize| Route {
        expert: slot as u32,
        weight: 0.5,
    };
    let fields = BatchFields {
        layer: 0,
        tokens: 1,
        routes: (0..hp.experts_used).map(route).collect(),
        input: ExpertInput::from_activations(&input),
        round: true,
    };
    Arc::new(ExpertBatch::new(MoeShape::of(hp), fields).expect("a legal batch"))
}

/// Round trips of the same bytes over bare connections, one to each of `nodes` peers, all written
/// before any answer is read, as the dispatcher does.
fn ping_pong(nodes: usize, link: Link, request: usize, reply: usize) -> Result<Duration> {
    let (mut streams, mut relays) = (Vec::new(), Vec::new());
    for seed in 0..nodes {
        let listener = TcpListener::bind(ANY)?;
        let mut entry = listener.local_addr()?;
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept()?;
            peer.set_nodelay(true)?;
            let (mut question, answer) = (vec![0; request], vec![0; reply]);
            loop {
                peer.read_exact(&mut question)?;
                peer.write_all(&answer)?;
            }
            #[expect(unreachable_code, reason = "gives the thread its type")]
            std::io::Result::Ok(())
        });
        if let Some(conditions) = link {
            let relay = Relay::start(&Namespace::Current, ANY, entry, conditions, seed as u64)?;
            entry = relay.address();
            relays.push(relay);
        }
        let stream = TcpStream::connect(entry)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        streams.push(stream);
    }
    let (question, mut answer) = (vec![0; request], vec![0; reply]);
    let mut times = Vec::new();
    for _ in 0..WARM + CALLS {
        let start = Instant::now();
        for stream in &mut streams {
            stream.write_all(&question)?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut answer)?;
        }
        times.push(start.elapsed());
    }
    Ok(median(times.split_off(WARM)))
}

fn layer(
    runtime: &Runtime,
    model: &Path,
    nodes: usize,
    work: Work,
    (name, link): (&str, Link),
) -> Result<()> {
    let hp = shape();
    let cluster = Cluster::start(runtime, model, nodes, work, link)?;
    let (batch, mut out) = (batch(&hp), vec![0.0; hp.hidden]);
    let mut parts = Parts::default();
    let mut before = [0; 2];
    for i in 0..WARM + CALLS {
        if i == WARM {
            before = cluster.bytes();
        }
        let times = cluster.call(&batch, &mut out)?;
        // A node reports before it answers.
        let computed: Vec<Computed> = cluster.computed.try_iter().collect();
        if i >= WARM && computed.len() == nodes {
            parts.add(times, &computed);
        }
    }
    let after = cluster.bytes();
    let [request, reply] = [0, 1].map(|i| ((after[i] - before[i]) / CALLS as u64) as usize);
    let bare = ping_pong(nodes, link, request, reply)?;
    println!(
        "{name:20} {nodes:5} {} {:9.1} {request:7} {reply:7}",
        parts.row(),
        1e6 * bare.as_secs_f64()
    );
    Ok(())
}

/// How a node is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Its connections are closed and new ones refused, as after a kill.
    Kill,
    /// Nothing arrives, but connections stay open.
    SilentCut,
}

/// Times of the first call after one of two nodes is lost, both of which hold everything.
fn failover(runtime: &Runtime, model: &Path, loss: Loss, link: Conditions) -> Result<()> {
    let hp = shape();
    let (batch, mut out) = (batch(&hp), vec![0.0; hp.hidden]);
    let (mut usual, mut after) = (Vec::new(), Vec::new());
    for _ in 0..LOSSES {
        let mut cluster = Cluster::start(runtime, model, 2, Work::Whole, Some(link))?;
        for _ in 0..WARM {
            let [start, _, end] = cluster.call(&batch, &mut out)?;
            usual.push(end - start);
        }
        // In the middle of a call, which is the worst moment.
        let start = Instant::now();
        let pending = cluster
            .backend
            .begin(Arc::clone(&batch))
            .map_err(|e| anyhow!("{e}"))?;
        match loss {
            Loss::Kill => drop(cluster.relays.remove(0)),
            Loss::SilentCut => cluster.relays[0].silence(true),
        }
        pending
            .finish(&|| false, &mut out)
            .map_err(|e| anyhow!("{e}"))?;
        after.push(start.elapsed());
    }
    for (name, times) in [("before", usual), ("during", after)] {
        let times: Distribution = times.into_iter().collect();
        println!("{}", times.row(&format!("{loss:?}, {name}")));
    }
    Ok(())
}

fn main() -> Result<()> {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let model: PathBuf = folder.path().join("model.gguf");
    write(&model, &shape(), &Recipe::default())?;
    let runtime = Runtime::new()?;
    let office = Conditions::link(Duration::from_micros(200), 1e3);
    let rack = Conditions::link(Duration::from_micros(100), 1e4);
    println!("median microseconds of {CALLS} calls of one token and one layer");
    println!(
        "{:20} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7}",
        "link",
        "nodes",
        "serialise",
        "there",
        "compute",
        "slowest",
        "back",
        "total",
        "bare TCP",
        "B there",
        "B back"
    );
    let links = [
        ("loopback", None),
        ("relay", Some(Conditions::default())),
        ("0.1 ms 10 Gb/s", Some(rack)),
        ("0.2 ms 1 Gb/s", Some(office)),
    ];
    for work in [Work::Part, Work::Nothing] {
        println!("each node computes: {work:?}");
        for link in links {
            for nodes in 1..=4 {
                layer(&runtime, &model, nodes, work, link)?;
            }
        }
    }
    println!("\ncalls of one layer around the loss of one of two nodes, 0.2 ms 1 Gb/s");
    println!("{}", Distribution::heads());
    failover(&runtime, &model, Loss::Kill, office)?;
    failover(&runtime, &model, Loss::SilentCut, office)?;
    Ok(())
}
