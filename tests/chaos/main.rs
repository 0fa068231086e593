//! Nodes are killed, stopped, cut off, slowed and restarted while they compute, and no client sees
//! an error or a different token.
//!
//! `DS4_CHAOS_EVENTS` is the number of events, `DS4_CHAOS_SEED` determines them, and
//! `DS4_CHAOS_REPORT` names a file for the figures, as JSON.

mod load;
mod plan;
mod report;
mod victim;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ds4_common::gguf::GgufModel;
use ds4_common::model::HyperParams;
use ds4_common::tiles::Grid;
use ds4_tests::golden::Reference;
use ds4_tests::layout::ring;
use ds4_tests::process::Server;
use tempfile::TempDir;

use load::{Answer, Outcome};
use report::{Phase, Report};
use victim::Victim;

const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");

const REFERENCE: Reference = Reference("tiny-w");
const NODES: usize = 6;

/// `--local-fallback` of the two coordinators: one may compute what no node can, the other may not.
const FALLBACKS: [&str; 2] = ["auto", "never"];

/// Concurrent requests to each coordinator.
const STREAMS: usize = 3;

/// How long the load runs before the first event.
const CALM: Duration = Duration::from_secs(5);

fn from_environment<T: std::str::FromStr>(name: &str, usual: T) -> T {
    let Ok(text) = std::env::var(name) else {
        return usual;
    };
    let value = text.parse().ok();
    value.unwrap_or_else(|| panic!("{name}={text} is not a number"))
}

fn coordinator(args: &[&str], log: &Path) -> Server {
    let mut command = Command::new(COORD);
    command.args(["serve", "--listen=127.0.0.1:0", "--threads=1", "-m"]);
    command.arg(REFERENCE.model()).args(args);
    command.stderr(victim::append(log).expect("log"));
    Server::launch(command).expect("coordinator")
}

/// The answer to each request by one process without nodes.
fn expected(log: &Path) -> Vec<Answer> {
    let direct = coordinator(&["--embedded=0"], log);
    let client = load::client();
    let ask = |request| {
        load::ask(&client, &direct.ready, request)
            .expect("an answer")
            .0
    };
    (0..load::REQUESTS).map(ask).collect()
}

fn victims(logs: &Path) -> Vec<Victim> {
    let gguf = GgufModel::open(&REFERENCE.model()).expect("model");
    let hp = HyperParams::from_model(&gguf).expect("shape");
    let grid = Grid::of(hp.experts, hp.expert_width);
    let held = ring(grid, (1, NODES as u32), 2).expect("a cut");
    let start = |(i, tiles): (usize, &String)| Victim::start(REFERENCE, i, tiles, logs);
    held.iter()
        .enumerate()
        .map(|pair| start(pair).expect("node"))
        .collect()
}

/// Puts load on all coordinators while `disturb` runs.
fn under_load<T>(
    coordinators: &[Server],
    expected: &[Answer],
    disturb: impl FnOnce() -> T,
) -> (Vec<Outcome>, T) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        let run = |c: &'_ Server| {
            let url = c.ready.clone();
            scope.spawn(move || load::run(&url, STREAMS, expected, done))
        };
        let running: Vec<_> = coordinators.iter().map(run).collect();
        let disturbed = disturb();
        done.store(true, Ordering::SeqCst);
        let join = |r: std::thread::ScopedJoinHandle<'_, _>| r.join().expect("load");
        (running.into_iter().map(join).collect(), disturbed)
    })
}

#[test]
fn dying_hanging_and_returning_nodes_cost_no_request_and_change_no_token() {
    let seed = from_environment("DS4_CHAOS_SEED", 1);
    let count = from_environment("DS4_CHAOS_EVENTS", 1000);
    println!("{count} events of seed {seed}");
    let folder = TempDir::new().expect("folder");
    let logs = folder.path();
    let expected = expected(&logs.join("direct"));
    let mut victims = victims(logs);
    let entries: Vec<String> = victims.iter().map(|v| v.entry().to_string()).collect();
    let entries = entries.join(",");
    let log = |fallback: &str| logs.join(format!("coordinator-{fallback}"));
    let coordinators = FALLBACKS.map(|fallback| {
        let choice = format!("--local-fallback={fallback}");
        coordinator(&[&choice, "--nodes", &entries], &log(fallback))
    });
    let (calm, ()) = under_load(&coordinators, &expected, || std::thread::sleep(CALM));

    let events = plan::plan(seed, count, NODES);
    let start = Instant::now();
    let (disturbed, ended) = under_load(&coordinators, &expected, || {
        let suffering = |(node, victim): (usize, &mut Victim)| {
            let own = events.iter().filter(|event| event.node == node);
            victim.suffer(own, start)
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = victims
                .iter_mut()
                .enumerate()
                .map(|pair| scope.spawn(|| suffering(pair)))
                .collect();
            let join = |r: std::thread::ScopedJoinHandle<'_, _>| r.join().expect("victim");
            running.into_iter().map(join).collect::<Vec<_>>()
        })
    });
    let report = Report {
        seed,
        events: &events,
        took: start.elapsed(),
        phases: FALLBACKS
            .iter()
            .zip(calm.iter().zip(&disturbed))
            .map(|(fallback, (calm, disturbed))| Phase {
                name: fallback,
                calm,
                disturbed,
            })
            .collect(),
    };
    report.print();
    if let Ok(file) = std::env::var("DS4_CHAOS_REPORT") {
        std::fs::write(&file, report.json().to_string()).expect("DS4_CHAOS_REPORT");
    }
    for fallback in FALLBACKS {
        report.check(fallback, &log(fallback));
    }
    for ended in ended {
        ended.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    }
    all_return(&coordinators, seed);
    drop(victims);
}

/// Waits until every coordinator uses every node again.
fn all_return(coordinators: &[Server], seed: u64) {
    let client = load::client();
    for coordinator in coordinators {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let url = format!("{}/metrics", coordinator.ready);
            let metrics = client.get(url).send().and_then(|reply| reply.text());
            let metrics = metrics.expect("metrics");
            let is_up = |line: &&str| {
                line.starts_with("ds4_node_state{")
                    && line.contains("state=\"up\"")
                    && line.ends_with(" 1")
            };
            let up = metrics.lines().filter(is_up).count();
            if up == NODES {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "seed {seed}: only {up} of {NODES} nodes are up again"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
