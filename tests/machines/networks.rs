//! Clusters whose machines share nothing but cables: for any number of nodes, grid, number of
//! replicas and link, logits are bit-identical to those of one process.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ds4_common::gguf::GgufModel;
use ds4_common::model::HyperParams;
use ds4_common::tiles::Grid;
use ds4_tests::golden::Reference;
use ds4_tests::layout::ring;
use ds4_tests::namespace::{Machine, Network, SWITCH};
use ds4_tests::process::{Server, run_command};
use ds4_tests::relay::{Conditions, Relay};
use tempfile::TempDir;

const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");
const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

const PORT: u16 = 50_051;

/// A cluster: how the grid is cut among its nodes, the number of replicas, and the link.
struct Case {
    model: &'static str,
    /// Expert groups x block strips.
    cut: (u32, u32),
    /// How many nodes hold each rectangle.
    replicas: usize,
    link: Conditions,
    /// The most tokens of one step.
    chunk: &'static str,
}

const fn case(cut: (u32, u32), replicas: usize, link: Conditions, chunk: &'static str) -> Case {
    Case {
        model: "tiny-w",
        cut,
        replicas,
        link,
        chunk,
    }
}

/// No delay and no limit.
const NEAR: Conditions = Conditions {
    delay: Duration::ZERO,
    bytes_per_second: None,
    loss: 0.0,
    flips: 0.0,
};
/// Round trip of 0.1 ms, 10 Gb/s.
const RACK: Conditions = Conditions {
    delay: Duration::from_micros(50),
    bytes_per_second: Some(1.25e9),
    loss: 0.0,
    flips: 0.0,
};
/// Round trip of 0.2 ms, 1 Gb/s.
const OFFICE: Conditions = Conditions {
    delay: Duration::from_micros(100),
    bytes_per_second: Some(1.25e8),
    loss: 0.0,
    flips: 0.0,
};
/// Round trip of 4 ms, 50 Mb/s, and one in a hundred segments is lost and sent again.
const FAR: Conditions = Conditions {
    delay: Duration::from_millis(2),
    bytes_per_second: Some(6.25e6),
    loss: 0.01,
    flips: 0.0,
};

const CASES: [Case; 15] = [
    case((1, 1), 1, NEAR, "512"),
    case((1, 2), 1, OFFICE, "512"),
    case((2, 1), 2, RACK, "7"),
    case((1, 3), 1, RACK, "512"),
    case((1, 3), 2, OFFICE, "19"),
    case((1, 4), 1, OFFICE, "7"),
    case((4, 1), 1, NEAR, "512"),
    case((2, 2), 2, OFFICE, "512"),
    case((1, 5), 1, NEAR, "19"),
    case((1, 5), 2, FAR, "512"),
    case((1, 8), 1, RACK, "512"),
    case((4, 2), 1, FAR, "512"),
    case((2, 4), 2, OFFICE, "19"),
    Case {
        model: "tiny-a",
        ..case((1, 1), 1, OFFICE, "512")
    },
    Case {
        model: "tiny-b",
        ..case((2, 1), 1, RACK, "19")
    },
];

/// A network with a coordinator's machine and the nodes' machines.
struct Machines {
    coordinator: Machine,
    nodes: Vec<Machine>,
    network: Network,
}

impl Machines {
    /// `None` where the system cannot make network namespaces; prints why.
    fn new(nodes: usize) -> Option<Self> {
        let make = || {
            let network = Network::new(None)?;
            anyhow::Ok(Machines {
                coordinator: network.machine()?,
                nodes: (0..nodes)
                    .map(|_| network.machine())
                    .collect::<Result<_, _>>()?,
                network,
            })
        };
        let made = make().inspect_err(|error| {
            println!(
                "skipped: network namespaces cannot be made here, which needs root: {error:#}"
            );
        });
        made.ok()
    }
}

fn grid(reference: Reference) -> Grid {
    let gguf = GgufModel::open(&reference.model()).expect("model");
    let hp = HyperParams::from_model(&gguf).expect("shape");
    Grid::of(hp.experts, hp.expert_width)
}

/// Logits of the model's `rand` tokens from `command`, which runs `ds4-coord`; the bytes of the
/// file.
fn logits(mut command: Command, reference: Reference, args: &[&str]) -> Vec<u8> {
    let folder = TempDir::new().expect("folder");
    let out = folder.path().join("logits.npy");
    command.args(["logits", "--insecure", "--log=warn", "-m"]);
    command.arg(reference.model());
    command.arg("--tokens");
    command.arg(reference.folder().join("rand.tokens.json"));
    command.arg("--out").arg(&out).args(args);
    let output = run_command(command).expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    std::fs::read(&out).expect("logits")
}

/// Node processes, one on each machine, each reached through a relay on the switch.
struct Nodes {
    relays: Vec<Relay>,
    servers: Vec<Server>,
}

impl Nodes {
    fn start(machines: &Machines, case: &Case, logs: &Path) -> Self {
        let reference = Reference(case.model);
        let held = ring(grid(reference), case.cut, case.replicas).expect("a cut");
        let (mut relays, mut servers) = (Vec::new(), Vec::new());
        for (i, (machine, tiles)) in machines.nodes.iter().zip(&held).enumerate() {
            let listen = machine.at(PORT);
            let mut command = machine.namespace().command(NODE);
            command.args([
                "serve",
                "--insecure",
                "--threads=1",
                "--listen",
                &listen.to_string(),
            ]);
            command
                .args(["--tiles", tiles, "-m"])
                .arg(reference.model());
            command.stderr(File::create(logs.join(format!("node{i}"))).expect("log"));
            servers.push(Server::launch(command).expect("node"));
            let entry = SocketAddr::from((SWITCH, 0));
            let switch = machines.network.switch();
            let relay = Relay::start(&switch, entry, listen, case.link, i as u64);
            relays.push(relay.expect("relay"));
        }
        Nodes { relays, servers }
    }

    fn names(&self) -> String {
        let names: Vec<String> = self
            .relays
            .iter()
            .map(|r| r.address().to_string())
            .collect();
        names.join(",")
    }
}

#[test]
fn nodes_grids_replicas_and_links_change_no_bit() {
    let logs = TempDir::new().expect("folder");
    for case in &CASES {
        let reference = Reference(case.model);
        let nodes = (case.cut.0 * case.cut.1) as usize;
        let what = format!(
            "{} on {nodes} nodes, cut {:?}, {} replicas, {:?}",
            case.model, case.cut, case.replicas, case.link
        );
        let Some(machines) = Machines::new(nodes) else {
            return;
        };
        let direct = logits(Command::new(COORD), reference, &["--embedded=0"]);
        let cluster = Nodes::start(&machines, case, logs.path());
        let coordinator = machines.coordinator.namespace().command(COORD);
        let names = cluster.names();
        let args = [
            "--local-fallback=never",
            "--nodes",
            &names,
            "--chunk",
            case.chunk,
        ];
        let found = logits(coordinator, reference, &args);
        assert!(found == direct, "{what}: logits differ");
        for (node, relay) in cluster.relays.iter().enumerate() {
            // More than a handshake, so every node has computed.
            let passed = relay.passed();
            assert!(
                passed.iter().all(|bytes| *bytes > 4096),
                "{what}: node {node}, {passed:?}"
            );
        }
        println!("{what}: equal, {} bytes each way of node 0", {
            let [there, back] = cluster.relays[0].passed();
            format!("{there} and {back}")
        });
        for mut server in cluster.servers {
            assert!(server.stop().expect("stopped").success(), "{what}: drain");
        }
    }
}

#[test]
fn a_pulled_cable_and_a_lossy_line_change_no_bit() {
    let logs = TempDir::new().expect("folder");
    let case = case((1, 4), 2, OFFICE, "1");
    let reference = Reference(case.model);
    let Some(machines) = Machines::new(4) else {
        return;
    };
    let direct = logits(Command::new(COORD), reference, &["--embedded=0"]);
    let cluster = Nodes::start(&machines, &case, logs.path());
    let names = cluster.names();
    let args = [
        "--local-fallback=never",
        "--nodes",
        &names,
        "--chunk",
        case.chunk,
    ];
    let found = std::thread::scope(|scope| {
        let coordinator = machines.coordinator.namespace().command(COORD);
        let found = scope.spawn(|| logits(coordinator, reference, &args));
        let mut pulled = 0;
        while !found.is_finished() {
            let machine = &machines.nodes[pulled % 4];
            let connect = |connected| machines.network.connect(machine, connected);
            // One at a time, so that the other replica of each of its tiles stays.
            connect(false).expect("pulled");
            std::thread::sleep(Duration::from_millis(60));
            connect(true).expect("put back");
            cluster.relays[(1 + pulled) % 4].set(Conditions {
                loss: 0.02,
                ..OFFICE
            });
            std::thread::sleep(Duration::from_millis(30));
            pulled += 1;
        }
        println!("{pulled} cables pulled");
        found.join().expect("logits")
    });
    assert!(found == direct, "logits differ");
}
