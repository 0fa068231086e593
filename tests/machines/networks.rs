//! Clusters whose machines share nothing but cables: whatever the number of nodes, the grid, the
//! replicas and the link, the bits are those of one process.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ds4_common::gguf::GgufModel;
use ds4_common::model::HyperParams;
use ds4_common::tiles::Grid;
use ds4_tests::golden::Reference;
use ds4_tests::layout::ring;
use ds4_tests::namespace::{Network, on_port};
use ds4_tests::process::{Server, run_command};
use ds4_tests::relay::{Conditions, Relay};
use tempfile::TempDir;

const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");
const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

const PORT: u16 = 50_051;

/// The machine of the coordinator; the nodes follow.
const COORDINATOR: usize = 0;

/// A cluster: how the grid is cut among its nodes (expert groups, block strips), how many nodes
/// hold each part, and the link.
struct Case {
    model: &'static str,
    cut: (u32, u32),
    replicas: usize,
    link: Conditions,
    /// Tokens of one step.
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

/// As fast as the machine passes bytes on.
const NEAR: Conditions = Conditions {
    delay: Duration::ZERO,
    bytes_per_second: None,
    loss: 0.0,
};
/// Round trip of 0.1 ms, 10 Gb/s.
const RACK: Conditions = Conditions {
    delay: Duration::from_micros(50),
    bytes_per_second: Some(1.25e9),
    loss: 0.0,
};
/// Round trip of 0.2 ms, 1 Gb/s.
const OFFICE: Conditions = Conditions {
    delay: Duration::from_micros(100),
    bytes_per_second: Some(1.25e8),
    loss: 0.0,
};
/// Round trip of 4 ms, 50 Mb/s, and every hundredth piece is lost at first.
const FAR: Conditions = Conditions {
    delay: Duration::from_millis(2),
    bytes_per_second: Some(6.25e6),
    loss: 0.01,
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

/// A network with a coordinator's machine and `nodes` more, or why there can be none.
fn network(nodes: usize) -> Option<Network> {
    match Network::new(1 + nodes) {
        Ok(network) => Some(network),
        Err(error) => {
            println!("skipped: no network namespaces can be made here: {error:#}");
            None
        }
    }
}

fn grid(reference: Reference) -> Grid {
    let gguf = GgufModel::open(&reference.model()).expect("model");
    let hp = HyperParams::from_model(&gguf).expect("shape");
    Grid::of(hp.experts, hp.expert_width)
}

/// Has `ds4-coord logits` run by `command` on the model's `rand` tokens.
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

/// Nodes on machines 1, 2, ..., each reached through a relay on the hub.
struct Nodes {
    relays: Vec<Relay>,
    servers: Vec<Server>,
}

impl Nodes {
    fn start(network: &Network, case: &Case, logs: &Path) -> Self {
        let reference = Reference(case.model);
        let held = ring(grid(reference), case.cut, case.replicas).expect("a cut");
        let (mut relays, mut servers) = (Vec::new(), Vec::new());
        for (i, tiles) in held.iter().enumerate() {
            let machine = 1 + i;
            let listen = on_port(network.machine(machine), PORT);
            let mut command = network.command(machine, NODE);
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
            let entry = on_port(network.hub(COORDINATOR), 0);
            let place = network.hub_place();
            let relay = Relay::start(&place, entry, listen, case.link, i as u64);
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
        let Some(network) = network(nodes) else {
            return;
        };
        let direct = logits(Command::new(COORD), reference, &["--embedded=0"]);
        let cluster = Nodes::start(&network, case, logs.path());
        let coordinator = network.command(COORDINATOR, COORD);
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
            // More than a handshake: every node had work.
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
    let Some(network) = network(4) else {
        return;
    };
    let direct = logits(Command::new(COORD), reference, &["--embedded=0"]);
    let cluster = Nodes::start(&network, &case, logs.path());
    let names = cluster.names();
    let args = [
        "--local-fallback=never",
        "--nodes",
        &names,
        "--chunk",
        case.chunk,
    ];
    let found = std::thread::scope(|scope| {
        let found = scope.spawn(|| logits(network.command(COORDINATOR, COORD), reference, &args));
        let mut pulled = 0;
        while !found.is_finished() {
            let machine = 1 + pulled % 4;
            // One at a time, so that the other holder of its parts stays.
            network.connect(machine, false).expect("pulled");
            std::thread::sleep(Duration::from_millis(60));
            network.connect(machine, true).expect("put back");
            cluster.relays[machine % 4].set(Conditions {
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
