//! `ds4-coord calibrate`: what the machines of running nodes can do, as a table and as the file
//! that a plan is made from.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use ds4_common::kernels::Kernels;
use ds4_common::threads::Threads;
use ds4_expert_node::tls_args::TlsArgs;
use ds4_proto::channel;
use ds4_proto::tls::Role;
use ds4_proto::wire::MachineRates;
use serde::Serialize;

use super::model_args::{seconds, up_to};
use super::out_file::OutFile;
use crate::calibrate::{self, NodeReport};

/// Characters of a node's name.
const MAX_NAME: usize = 63;

/// What the expert function makes of the multipliers' peak with 512 tokens, at the least; figures
/// are in docs/BENCHMARKS.md. A plan counts on what kernels do, not on what registers could.
const SUSTAINED: f64 = 0.27;

/// Which nodes.
#[derive(Args, Debug)]
pub struct CalibrateArgs {
    /// Running expert nodes, comma-separated
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = address,
        required = true
    )]
    pub nodes: Vec<String>,

    #[command(flatten)]
    pub tls: TlsArgs,

    /// Compute threads of the coordinator; 0 is one a core
    #[arg(long, env = "DS4_THREADS", default_value_t = 0, value_name = "N", value_parser = up_to(1024))]
    pub threads: usize,

    /// Time for a node's machine, and again for its link
    #[arg(
        long,
        default_value_t = calibrate::PATIENCE.as_secs(),
        value_name = "SECONDS",
        value_parser = seconds()
    )]
    pub timeout: u64,

    /// Write the machines to this file, from which `plan --cluster` plans
    #[arg(long, value_name = "CLUSTER.toml")]
    pub out: Option<PathBuf>,
}

/// Prints and writes what could be measured, whatever could not.
///
/// # Errors
/// A node could not be measured, or the file cannot be written.
pub async fn run(args: &CalibrateArgs) -> Result<()> {
    let security = args.tls.security(Role::Coordinator)?;
    for node in &args.nodes {
        security.endpoint(node)?;
    }
    let out = args.out.as_ref().map(|path| {
        let file = OutFile::create(path);
        file.with_context(|| format!("cannot write {}", path.display()))
    });
    let out = out.transpose()?;
    // Before the nodes, some of which may be on this machine.
    let own = calibrate::coordinator(Threads::new(args.threads, false), Kernels::detect()).await;
    let own = own.context("no compute threads")?;
    let patience = Duration::from_secs(args.timeout);
    let results = calibrate::nodes(&args.nodes, &security, patience).await;
    let (mut reports, mut failed) = (Vec::new(), 0);
    for result in results {
        match result {
            Ok(report) => reports.push(report),
            Err(error) => {
                tracing::error!("{error}");
                failed += 1;
            }
        }
    }
    print!("{}", table(&own, &reports));
    if let (Some(mut file), Some(path)) = (out, &args.out) {
        let text = toml::to_string(&cluster(&own, &reports)).context("the cluster's file")?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.finish())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let all = args.nodes.len();
    ensure!(failed == 0, "{failed} of {all} nodes could not be measured");
    Ok(())
}

/// One machine a name: names that lead to several are not for measuring.
fn address(text: &str) -> Result<String, channel::AddressError> {
    channel::endpoint(text).map(|_| text.to_owned())
}

/// What `plan --cluster` reads: bytes, bytes a second, bits a second, nanoseconds, operations a
/// second. What was not measured is left out, and assumed there.
#[derive(Serialize)]
struct ClusterText {
    coordinator: MachineText,
    node: Vec<NodeText>,
}

#[derive(Serialize)]
struct MachineText {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute: Option<u64>,
}

#[derive(Serialize)]
struct NodeText {
    name: String,
    address: String,
    rtt: u64,
    #[serde(flatten)]
    machine: MachineText,
}

fn cluster(own: &MachineRates, reports: &[NodeReport]) -> ClusterText {
    let links = reports.iter().filter_map(link);
    // This machine's link carries at least what its fastest node was reached with.
    let coordinator = machine(Some(own), links.reduce(f64::max));
    let mut names = Vec::with_capacity(reports.len());
    let node = reports.iter().map(|report| {
        let name = unused(&name(&report.address), &names);
        names.push(name.clone());
        let rates = report.measured.as_ref().map(|(rates, _)| rates);
        NodeText {
            name,
            address: report.address.clone(),
            rtt: rounded(report.round_trip.as_nanos() as f64),
            machine: machine(rates, link(report)),
        }
    });
    let node = node.collect();
    ClusterText { coordinator, node }
}

/// Bits a second, both ways.
fn link(report: &NodeReport) -> Option<f64> {
    let (_, link) = report.measured.as_ref()?;
    Some(link.least() * 8.0)
}

fn machine(rates: Option<&MachineRates>, link: Option<f64>) -> MachineText {
    MachineText {
        memory: rates.and_then(|r| r.memory),
        bandwidth: rates.map(|r| rounded(r.read as f64)),
        link: link.map(rounded),
        compute: rates
            .and_then(|r| r.operations)
            .map(|peak| rounded(peak as f64 * SUSTAINED)),
    }
}

/// Three digits: no measurement has more. Not 0, and within what the file may say.
fn rounded(value: f64) -> u64 {
    let value = value.clamp(1.0, 8.9e15);
    let unit = 10f64.powf(value.log10().floor() - 2.0).max(1.0);
    ((value / unit).round() * unit) as u64
}

/// The address in letters that a name may have.
fn name(address: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let bare = address.strip_prefix("http://").unwrap_or(address);
    let bare = bare.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let text = bare.chars().map(|c| if legal(c) { c } else { '-' });
    let text: String = text.take(MAX_NAME).collect();
    if text.is_empty() {
        return "node".to_owned();
    }
    text
}

/// `name`, or with a number behind it if others have it.
fn unused(name: &str, others: &[String]) -> String {
    let numbered = (2..).map(|n| {
        let end = format!("-{n}");
        let kept: String = name.chars().take(MAX_NAME - end.len()).collect();
        kept + &end
    });
    let mut all = std::iter::once(name.to_owned()).chain(numbered);
    let free = all.find(|candidate| !others.contains(candidate));
    // The numbers do not end.
    free.unwrap_or_default()
}

fn table(own: &MachineRates, reports: &[NodeReport]) -> String {
    let mut text = String::new();
    let mut line = |cells: [String; 8]| {
        let [node, rest @ ..] = cells;
        let _ = write!(text, "{node:<24}");
        for cell in rest {
            let _ = write!(text, " {cell:>10}");
        }
        text.push('\n');
    };
    line(
        [
            "node",
            "read GB/s",
            "GOP/s",
            "rtt ms",
            "up Mb/s",
            "down Mb/s",
            "memory GB",
            "kernels",
        ]
        .map(str::to_owned),
    );
    let none = || "-".to_owned();
    let of = |rates: Option<&MachineRates>| {
        let operations = rates.and_then(|r| r.operations);
        let memory = rates.and_then(|r| r.memory);
        (
            rates.map_or_else(none, |r| format!("{:.1}", r.read as f64 / 1e9)),
            operations.map_or_else(none, |o| format!("{:.0}", o as f64 / 1e9)),
            memory.map_or_else(none, |m| format!("{:.1}", m as f64 / 1e9)),
        )
    };
    let (read, operations, memory) = of(Some(own));
    let kernels = own.kernels.clone();
    line([
        "coordinator".to_owned(),
        read,
        operations,
        none(),
        none(),
        none(),
        memory,
        kernels,
    ]);
    for report in reports {
        let (rates, link) = match &report.measured {
            Some((rates, link)) => (Some(rates), Some(link)),
            None => (None, None),
        };
        let (read, operations, memory) = of(rates);
        let megabits = |rate: f64| format!("{:.0}", rate * 8e-6);
        line([
            report.address.clone(),
            read,
            operations,
            format!("{:.2}", report.round_trip.as_secs_f64() * 1e3),
            link.map_or_else(none, |l| megabits(l.up)),
            link.map_or_else(none, |l| megabits(l.down)),
            memory,
            report.kernels.clone(),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::LinkRates;

    fn rates() -> MachineRates {
        MachineRates {
            read: 40_123_456_789,
            operations: Some(300_000_000_000),
            memory: Some(64_000_000_000),
            cores: 8,
            kernels: "avx2".to_owned(),
        }
    }

    fn report(address: &str, measured: bool) -> NodeReport {
        let link = LinkRates {
            up: 1.25e8,
            down: 2.5e8,
        };
        NodeReport {
            address: address.to_owned(),
            round_trip: Duration::from_micros(150),
            threads: 8,
            kernels: "avx2".to_owned(),
            measured: measured.then(|| (rates(), link)),
        }
    }

    #[test]
    fn the_file_has_the_units_that_plans_read() {
        let reports = [report("10.0.0.1:7001", true), report("old:1", false)];
        let text = toml::to_string(&cluster(&rates(), &reports)).expect("text");
        let read: toml::Table = text.parse().expect("a table");
        let node = |i: usize| read["node"][i].as_table().expect("a node").clone();
        let number = |table: &toml::Table, key: &str| table[key].as_integer().expect("a number");
        assert_eq!(node(0)["name"].as_str(), Some("10.0.0.1-7001"));
        assert_eq!(node(0)["address"].as_str(), Some("10.0.0.1:7001"));
        assert_eq!(number(&node(0), "bandwidth"), 40_100_000_000);
        assert_eq!(number(&node(0), "link"), 1_000_000_000);
        assert_eq!(number(&node(0), "rtt"), 150_000);
        assert_eq!(number(&node(0), "memory"), 64_000_000_000);
        assert_eq!(number(&node(0), "compute"), 81_000_000_000);
        let keys: Vec<String> = node(1).keys().cloned().collect();
        assert_eq!(keys, ["address", "name", "rtt"]);
        let own = read["coordinator"].as_table().expect("a table");
        assert_eq!(number(own, "link"), 1_000_000_000);
    }

    #[test]
    fn names_are_legal_and_differ() {
        assert_eq!(name("[::1]:70"), "1--70");
        assert_eq!(name("http://a_b.c:7"), "a_b.c-7");
        assert_eq!(name("[::]"), "node");
        let long = name(&"x".repeat(100));
        assert_eq!(long.len(), MAX_NAME);
        let second = unused(&long, std::slice::from_ref(&long));
        assert!(second.len() == MAX_NAME && second.ends_with("-2"));
        assert_eq!(unused("a", &[]), "a");
    }

    #[test]
    fn rates_are_rounded_and_never_nothing() {
        assert_eq!(rounded(0.0), 1);
        assert_eq!(rounded(12_345_678.0), 12_300_000);
        assert_eq!(rounded(99.4), 99);
        assert_eq!(rounded(f64::INFINITY), 8_900_000_000_000_000);
    }

    #[test]
    fn the_table_has_a_line_a_machine() {
        let text = table(&rates(), &[report("a:1", true), report("old:1", false)]);
        assert_eq!(text.lines().count(), 4, "{text}");
        let old = text.lines().last().expect("a line");
        assert!(old.starts_with("old:1") && old.contains("0.15"), "{old}");
    }
}
