//! The machines that a plan is for: as listed, and with what was left out assumed.

use std::path::Path;
use std::str::FromStr;

use ds4_common::quantity::{Bandwidth, BitRate, Bytes, Nanos, OpRate, QuantityError};
use serde::{Deserialize, Serialize};

use super::file::{MAX_NODES, PlanFileError};
use super::machine::{CoordinatorMachine, Machine, is_name};

/// Machines of a cluster, as a file or flags list them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    #[serde(default)]
    pub coordinator: CoordinatorMachine,
    #[serde(default)]
    pub node: Vec<Machine>,
}

/// What machines have of which nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assumptions {
    pub bandwidth: Bandwidth,
    pub link: BitRate,
    pub rtt: Nanos,
    pub compute: OpRate,
    pub disk: Bandwidth,
}

/// A cluster in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub coordinator: CoordinatorNumbers,
    pub nodes: Vec<NodeNumbers>,
    /// What some machine has by assumption, in words.
    pub assumed: Vec<String>,
}

/// Of a node; seconds, bytes and operations.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeNumbers {
    pub machine: Machine,
    pub memory: u64,
    /// What weights may take of it.
    pub room: u64,
    pub bandwidth: f64,
    /// Bytes a second.
    pub link: f64,
    pub rtt: f64,
    pub compute: f64,
}

/// Of the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct CoordinatorNumbers {
    pub machine: CoordinatorMachine,
    pub memory: Option<u64>,
    pub bandwidth: f64,
    /// Bytes a second.
    pub link: f64,
    pub compute: f64,
    pub disk: f64,
}

/// Machines that no plan can be made for.
#[derive(Debug, thiserror::Error)]
pub enum ClusterSpecError {
    #[error("there are no nodes to plan for")]
    NoNodes,
    #[error("{0} nodes are more than the {MAX_NODES} of a plan")]
    TooMany(usize),
    #[error("'{0}' cannot name a node: letters, digits, '-', '_' and '.', a letter or digit first")]
    Name(String),
    #[error("two nodes have the name {0}")]
    Twice(String),
    #[error("node {0}: its memory is not known: say memory=64G")]
    Memory(String),
    #[error("{whose}: {field} cannot be 0")]
    Zero { whose: String, field: &'static str },
    #[error("'{part}' is no property of a machine: expected {expected}")]
    Property {
        part: String,
        expected: &'static str,
    },
    #[error("'{text}': {field}: {problem}")]
    Value {
        text: String,
        field: String,
        problem: QuantityError,
    },
    #[error("'{text}': {field} is there twice")]
    Repeated { text: String, field: String },
    #[error("'{0}' names no node: say name=NAME")]
    Unnamed(String),
}

impl Default for Assumptions {
    fn default() -> Self {
        Assumptions {
            bandwidth: Bandwidth(40_000_000_000),
            link: BitRate(10_000_000_000),
            rtt: Nanos(200_000),
            compute: OpRate(300_000_000_000),
            disk: Bandwidth(500_000_000),
        }
    }
}

impl ClusterFile {
    /// # Errors
    /// The file cannot be read, or names what in it is wrong.
    pub fn read(path: &Path) -> Result<Self, PlanFileError> {
        const MAX_BYTES: u64 = 1 << 20;
        let text = super::read_text(path, MAX_BYTES)?;
        toml::from_str(&text).map_err(|error| PlanFileError::syntax(path, &text, &error))
    }

    /// Completes the machines by `assumed`. `reserve` is kept free of weights on every node; by
    /// default it is [`default_reserve`].
    ///
    /// # Errors
    /// Names the node and what is wrong with it.
    pub fn resolve(
        &self,
        assumed: &Assumptions,
        reserve: Option<Bytes>,
    ) -> Result<Cluster, ClusterSpecError> {
        if self.node.is_empty() {
            return Err(ClusterSpecError::NoNodes);
        }
        if self.node.len() > MAX_NODES {
            return Err(ClusterSpecError::TooMany(self.node.len()));
        }
        let mut notes = Notes::default();
        let mut nodes = Vec::with_capacity(self.node.len());
        for (i, machine) in self.node.iter().enumerate() {
            let name = &machine.name;
            if !is_name(name) {
                return Err(ClusterSpecError::Name(name.clone()));
            }
            if self.node[..i].iter().any(|other| other.name == *name) {
                return Err(ClusterSpecError::Twice(name.clone()));
            }
            nodes.push(node_numbers(machine, assumed, reserve, &mut notes)?);
        }
        let own = &self.coordinator;
        let coordinator = CoordinatorNumbers {
            machine: own.clone(),
            memory: own.memory.map(|m| m.0),
            bandwidth: notes.bandwidth("the coordinator", own.bandwidth, assumed)?,
            link: notes.link("the coordinator", own.link, assumed)?,
            compute: notes.compute("the coordinator", own.compute, assumed)?,
            disk: notes.disk("the coordinator", own.disk, assumed)?,
        };
        Ok(Cluster {
            coordinator,
            nodes,
            assumed: notes.0,
        })
    }
}

/// Memory that is left to a node's buffers and to the system: 1.5 GB, which holds the largest
/// calls, and 3%.
#[must_use]
pub fn default_reserve(memory: u64) -> u64 {
    1_500_000_000 + memory / 100 * 3
}

fn node_numbers(
    machine: &Machine,
    assumed: &Assumptions,
    reserve: Option<Bytes>,
    notes: &mut Notes,
) -> Result<NodeNumbers, ClusterSpecError> {
    let name = &machine.name;
    let whose = format!("node {name}");
    let memory = machine.memory.map(|m| m.0);
    let memory = memory.ok_or_else(|| ClusterSpecError::Memory(name.clone()))?;
    let reserve = reserve.map_or_else(|| default_reserve(memory), |r| r.0);
    let rtt = machine.rtt.unwrap_or_else(|| {
        notes.add(format!("a round trip of {}", assumed.rtt));
        assumed.rtt
    });
    Ok(NodeNumbers {
        machine: machine.clone(),
        memory,
        room: memory.saturating_sub(reserve),
        bandwidth: notes.bandwidth(&whose, machine.bandwidth, assumed)?,
        link: notes.link(&whose, machine.link, assumed)?,
        rtt: rtt.get() / 1e9,
        compute: notes.compute(&whose, machine.compute, assumed)?,
    })
}

/// What was assumed, each once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, note: String) {
        if !self.0.contains(&note) {
            self.0.push(note);
        }
    }

    fn take(
        &mut self,
        whose: &str,
        field: &'static str,
        given: Option<f64>,
        assumed: (f64, String),
    ) -> Result<f64, ClusterSpecError> {
        let value = given.unwrap_or_else(|| {
            self.add(assumed.1);
            assumed.0
        });
        if value > 0.0 {
            Ok(value)
        } else {
            let whose = whose.to_owned();
            Err(ClusterSpecError::Zero { whose, field })
        }
    }

    fn bandwidth(
        &mut self,
        whose: &str,
        given: Option<Bandwidth>,
        assumed: &Assumptions,
    ) -> Result<f64, ClusterSpecError> {
        let note = format!("{}B/s of memory bandwidth", assumed.bandwidth);
        let assumed = (assumed.bandwidth.get(), note);
        self.take(whose, "bandwidth", given.map(Bandwidth::get), assumed)
    }

    fn link(
        &mut self,
        whose: &str,
        given: Option<BitRate>,
        assumed: &Assumptions,
    ) -> Result<f64, ClusterSpecError> {
        let note = format!("links of {}bit/s", assumed.link);
        let assumed = (assumed.link.get() / 8.0, note);
        self.take(whose, "link", given.map(|l| l.get() / 8.0), assumed)
    }

    fn compute(
        &mut self,
        whose: &str,
        given: Option<OpRate>,
        assumed: &Assumptions,
    ) -> Result<f64, ClusterSpecError> {
        let note = format!("{}OP/s on 8-bit numbers", assumed.compute);
        let assumed = (assumed.compute.get(), note);
        self.take(whose, "compute", given.map(OpRate::get), assumed)
    }

    fn disk(
        &mut self,
        whose: &str,
        given: Option<Bandwidth>,
        assumed: &Assumptions,
    ) -> Result<f64, ClusterSpecError> {
        let note = format!("{}B/s from the coordinator's disk", assumed.disk);
        let assumed = (assumed.disk.get(), note);
        self.take(whose, "disk", given.map(Bandwidth::get), assumed)
    }
}

const NODE_PROPERTIES: &str = "name=, address=, memory=, bandwidth=, link=, rtt= or compute=";
const COORDINATOR_PROPERTIES: &str = "memory=, bandwidth=, link=, compute= or disk=";

impl FromStr for Machine {
    type Err = ClusterSpecError;

    /// `name=a,memory=64G,bandwidth=40G,link=10G,rtt=0.1ms`.
    fn from_str(text: &str) -> Result<Self, ClusterSpecError> {
        let mut machine = Machine::default();
        for property in Property::all(text, NODE_PROPERTIES) {
            let p = property?;
            match p.field {
                "name" if machine.name.is_empty() => machine.name = p.value.to_owned(),
                "name" => return Err(p.repeated()),
                "address" if machine.address.is_none() => machine.address = Some(p.value.into()),
                "address" => return Err(p.repeated()),
                "memory" => p.put(&mut machine.memory)?,
                "bandwidth" => p.put(&mut machine.bandwidth)?,
                "link" => p.put(&mut machine.link)?,
                "rtt" => p.put(&mut machine.rtt)?,
                "compute" => p.put(&mut machine.compute)?,
                _ => return Err(p.unknown(NODE_PROPERTIES)),
            }
        }
        if machine.name.is_empty() {
            return Err(ClusterSpecError::Unnamed(text.to_owned()));
        }
        Ok(machine)
    }
}

impl FromStr for CoordinatorMachine {
    type Err = ClusterSpecError;

    fn from_str(text: &str) -> Result<Self, ClusterSpecError> {
        let mut machine = CoordinatorMachine::default();
        for property in Property::all(text, COORDINATOR_PROPERTIES) {
            let p = property?;
            match p.field {
                "memory" => p.put(&mut machine.memory)?,
                "bandwidth" => p.put(&mut machine.bandwidth)?,
                "link" => p.put(&mut machine.link)?,
                "compute" => p.put(&mut machine.compute)?,
                "disk" => p.put(&mut machine.disk)?,
                _ => return Err(p.unknown(COORDINATOR_PROPERTIES)),
            }
        }
        Ok(machine)
    }
}

/// One `field=value` of a flag.
struct Property<'a> {
    text: &'a str,
    field: &'a str,
    value: &'a str,
}

impl<'a> Property<'a> {
    fn all(
        text: &'a str,
        expected: &'static str,
    ) -> impl Iterator<Item = Result<Property<'a>, ClusterSpecError>> {
        text.split(',').map(move |part| {
            let (field, value) = part.split_once('=').ok_or(ClusterSpecError::Property {
                part: part.to_owned(),
                expected,
            })?;
            Ok(Property {
                text,
                field: field.trim(),
                value: value.trim(),
            })
        })
    }

    fn put<T: FromStr<Err = QuantityError>>(
        &self,
        slot: &mut Option<T>,
    ) -> Result<(), ClusterSpecError> {
        let value = self
            .value
            .parse()
            .map_err(|problem| ClusterSpecError::Value {
                text: self.text.to_owned(),
                field: self.field.to_owned(),
                problem,
            })?;
        match slot.replace(value) {
            Some(_) => Err(self.repeated()),
            None => Ok(()),
        }
    }

    fn repeated(&self) -> ClusterSpecError {
        ClusterSpecError::Repeated {
            text: self.text.to_owned(),
            field: self.field.to_owned(),
        }
    }

    fn unknown(&self, expected: &'static str) -> ClusterSpecError {
        ClusterSpecError::Property {
            part: format!("{}={}", self.field, self.value),
            expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_name_machines() {
        let text = "name=a,address=10.0.0.1:50051,memory=64G,bandwidth=40G,link=10G,rtt=0.1ms";
        let machine: Machine = text.parse().expect("a machine");
        assert_eq!(machine.memory, Some(Bytes(64_000_000_000)));
        assert_eq!(machine.rtt, Some(Nanos(100_000)));
        assert_eq!(machine.compute, None);
        let own: CoordinatorMachine = "disk=2G,bandwidth=100G".parse().expect("a machine");
        assert_eq!(own.disk, Some(Bandwidth(2_000_000_000)));
        for (bad, named) in [
            ("", "name="),
            ("memory=64G", "names no node"),
            ("name=a,speed=3", "speed=3"),
            ("name=a,memory=lots", "memory: invalid memory size \"lots\""),
            ("name=a,memory=1G,memory=2G", "memory is there twice"),
            ("name=a,name=b", "name is there twice"),
        ] {
            let error = bad.parse::<Machine>().expect_err(bad).to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_assumed_and_said() {
        let node = |text: &str| text.parse::<Machine>().expect(text);
        let listed = ClusterFile {
            coordinator: CoordinatorMachine::default(),
            node: vec![
                node("name=a,memory=64G,link=1G,rtt=1ms"),
                node("name=b,memory=1G"),
            ],
        };
        let cluster = listed
            .resolve(&Assumptions::default(), None)
            .expect("cluster");
        let [a, b] = &cluster.nodes[..] else {
            panic!("two nodes")
        };
        assert_eq!((a.link, a.rtt, a.bandwidth), (1.25e8, 1e-3, 4e10));
        assert_eq!(a.room, 64_000_000_000 - 1_500_000_000 - 1_920_000_000);
        assert_eq!(b.room, 0);
        assert_eq!(cluster.assumed.len(), 5, "{:?}", cluster.assumed);

        let refused = |nodes: Vec<Machine>| {
            let listed = ClusterFile {
                node: nodes,
                ..ClusterFile::default()
            };
            let error = listed.resolve(&Assumptions::default(), None);
            error.expect_err("refused").to_string()
        };
        assert!(refused(Vec::new()).contains("no nodes"));
        assert!(refused(vec![node("name=a")]).contains("node a: its memory"));
        let twice = vec![node("name=a,memory=1G"), node("name=a,memory=1G")];
        assert!(refused(twice).contains("two nodes"));
        assert!(refused(vec![node("name=a,memory=9G,link=0")]).contains("link cannot be 0"));
        assert!(refused(vec![node("name=a b,memory=9G")]).contains("cannot name"));
    }
}
