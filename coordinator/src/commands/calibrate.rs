//! `ds4-coord calibrate`: measures the machines of running nodes, and prints the result as a table
//! and as the file that a plan is made from.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use ds4_cli::{ThreadArgs, TlsArgs, parse, print};
use ds4_common::kernels::Kernels;
use ds4_common::measure::MachineRates;
use ds4_common::quantity::{Bandwidth, BitRate, Bytes, Nanos, OpRate};
use ds4_proto::channel;
use ds4_proto::tls::Role;

use super::out_file::OutFile;
use crate::calibrate::{self, NodeReport};
use crate::plan::{ClusterFile, CoordinatorMachine, NodeMachine};

/// Characters of a node's name.
const MAX_NAME: usize = 63;

/// The least share of the multipliers' peak that the expert function reaches with 512 tokens; the
/// figures are in docs/BENCHMARKS.md. A plan counts on what kernels reach, not on the peak.
const SUSTAINED: f64 = 0.27;

const EXAMPLES: &str = "\
Examples:
  ds4-coord calibrate --nodes 10.0.0.11:50051,10.0.0.12:50051 --out cluster.toml \\
      --tls-ca certs/ca.pem --tls-cert certs/coordinator.pem --tls-key certs/coordinator.key";

/// Which nodes to measure.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
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

    /// Write the machines to this file, for `plan --cluster`
    #[arg(long, value_name = "CLUSTER.toml")]
    pub out: Option<PathBuf>,

    /// How they are measured.
    #[command(flatten)]
    pub measure: MeasureArgs,
}

/// How nodes are reached and measured.
#[derive(Args, Debug)]
#[command(next_help_heading = "Measurement")]
pub struct MeasureArgs {
    /// Seconds for measuring a node's machine, and again for its link
    #[arg(
        long,
        default_value_t = calibrate::DEFAULT_TIMEOUT.as_secs(),
        value_name = "SECONDS",
        value_parser = parse::seconds(1..=86_400)
    )]
    pub timeout: u64,

    /// Which threads measure the coordinator's machine.
    #[command(flatten)]
    pub threads: ThreadArgs,

    /// How connections to nodes are protected.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// What was measured, and how many nodes failed.
pub(super) struct Measured {
    own: MachineRates,
    reports: Vec<NodeReport>,
    failed: usize,
}

/// Prints and writes what could be measured, even if some nodes failed.
///
/// # Errors
/// A node could not be measured, or the file cannot be written.
pub async fn run(args: &CalibrateArgs) -> Result<()> {
    let out = args.out.as_ref().map(|path| {
        let file = OutFile::create(path);
        file.with_context(|| format!("cannot write {}", path.display()))
    });
    let out = out.transpose()?;
    let measured = measure(&args.nodes, &args.measure).await?;
    let printed = print(table(&measured.own, &measured.reports));
    // Written even if the table's reader has left early.
    if let (Some(mut file), Some(path)) = (out, &args.out) {
        let text =
            toml::to_string(&measured.cluster()).context("cannot write the machines as TOML")?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.finish())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    measured.complete()?;
    Ok(printed?)
}

/// Measures this machine and the nodes; nodes that fail are logged and counted.
///
/// # Errors
/// The certificates or an address cannot be used, or the threads cannot be started.
pub(super) async fn measure(nodes: &[String], how: &MeasureArgs) -> Result<Measured> {
    let security = how.tls.security(Role::Coordinator)?;
    for node in nodes {
        security.endpoint(node)?;
    }
    // Before the nodes, some of which may be on this machine.
    let own = calibrate::coordinator(how.threads.resolve(), Kernels::detect()).await;
    let own = own.context("cannot start the compute threads")?;
    let timeout = Duration::from_secs(how.timeout);
    let results = calibrate::nodes(nodes, &security, timeout).await;
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
    Ok(Measured {
        own,
        reports,
        failed,
    })
}

impl Measured {
    /// # Errors
    /// Some node could not be measured.
    pub(super) fn complete(&self) -> Result<()> {
        let (failed, all) = (self.failed, self.failed + self.reports.len());
        ensure!(failed == 0, "{failed} of {all} nodes could not be measured");
        Ok(())
    }

    /// The machines in the form that plans read.
    pub(super) fn cluster(&self) -> ClusterFile {
        cluster(&self.own, &self.reports)
    }
}

/// Accepts the address of one machine: a name with several addresses cannot be measured.
pub(super) fn address(text: &str) -> Result<String, channel::AddressError> {
    channel::endpoint(text).map(|_| text.to_owned())
}

/// Leaves out what was not measured; the plan assumes it.
fn cluster(own: &MachineRates, reports: &[NodeReport]) -> ClusterFile {
    let links = reports.iter().filter_map(link);
    let coordinator = CoordinatorMachine {
        memory: own.memory.map(Bytes),
        bandwidth: Some(Bandwidth(rounded(own.read as f64))),
        // This machine's link carries at least the rate of its fastest node.
        link: links.reduce(f64::max).map(|rate| BitRate(rounded(rate))),
        compute: compute(own),
        disk: None,
    };
    let mut names = Vec::with_capacity(reports.len());
    let node = reports.iter().map(|report| {
        let name = unused(&name(&report.address), &names);
        names.push(name.clone());
        let rates = report.measured.as_ref().map(|(rates, _)| rates);
        NodeMachine {
            name,
            address: Some(report.address.clone()),
            memory: rates.and_then(|r| r.memory).map(Bytes),
            bandwidth: rates.map(|r| Bandwidth(rounded(r.read as f64))),
            link: link(report).map(|rate| BitRate(rounded(rate))),
            rtt: Some(Nanos(rounded(report.round_trip.as_nanos() as f64))),
            compute: rates.and_then(compute),
        }
    });
    let node = node.collect();
    ClusterFile { coordinator, node }
}

/// The rate that kernels reach on many tokens.
fn compute(rates: &MachineRates) -> Option<OpRate> {
    let peak = rates.operations?;
    Some(OpRate(rounded(peak as f64 * SUSTAINED)))
}

/// Bits per second of the slower direction.
fn link(report: &NodeReport) -> Option<f64> {
    let (_, link) = report.measured.as_ref()?;
    Some(link.least() * 8.0)
}

/// Rounded to three digits, since no measurement is more exact; neither 0 nor beyond the file's
/// limit.
fn rounded(value: f64) -> u64 {
    let value = value.clamp(1.0, 8.9e15);
    let unit = 10f64.powf(value.log10().floor() - 2.0).max(1.0);
    ((value / unit).round() * unit) as u64
}

/// The address in characters that a name may have.
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

/// `name`, followed by a number if it is taken.
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
    fn the_file_is_what_plans_read() {
        let reports = [report("10.0.0.1:7001", true), report("old:1", false)];
        let text = toml::to_string(&cluster(&rates(), &reports)).expect("text");
        let read: ClusterFile = toml::from_str(&text).expect("a cluster");
        let node = &read.node[0];
        assert_eq!(node.name, "10.0.0.1-7001");
        assert_eq!(node.address.as_deref(), Some("10.0.0.1:7001"));
        assert_eq!(node.bandwidth, Some(Bandwidth(40_100_000_000)));
        assert_eq!(node.link, Some(BitRate(1_000_000_000)));
        assert_eq!(node.rtt, Some(Nanos(150_000)));
        assert_eq!(node.memory, Some(Bytes(64_000_000_000)));
        assert_eq!(node.compute, Some(OpRate(81_000_000_000)));
        let old = &read.node[1];
        assert!(old.memory.is_none() && old.link.is_none() && old.rtt.is_some());
        assert_eq!(read.coordinator.link, Some(BitRate(1_000_000_000)));
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
