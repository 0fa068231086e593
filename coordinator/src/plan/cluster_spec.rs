//! The machines that a plan is for: as a file or flags list them, and completed by assumptions.

use std::path::Path;

use ds4_common::quantity::{Bandwidth, BitRate, Bytes, Nanos, OpRate, QuantityError};
use serde::{Deserialize, Serialize};

use super::file::{MAX_NODES, PlanFileError, read_text};
use super::machine::{CoordinatorMachine, NodeMachine, is_name};

/// The machines of a cluster as a TOML file or flags list them: `[coordinator]` and `[[node]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// The coordinator's machine.
    #[serde(default)]
    pub coordinator: CoordinatorMachine,
    /// The expert nodes' machines, in the order of the file.
    #[serde(default)]
    pub node: Vec<NodeMachine>,
}

/// Properties of machines that do not state their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assumptions {
    /// Bytes per second that weights are read from memory.
    pub bandwidth: Bandwidth,
    /// Bits per second of the network link.
    pub link: BitRate,
    /// Round trip between a node and the coordinator.
    pub rtt: Nanos,
    /// Operations per second of 8-bit integer kernels; a multiply-add counts as two.
    pub compute: OpRate,
    /// Bytes per second that the coordinator reads from the disk with its model file.
    pub disk: Bandwidth,
}

/// The machines of a cluster with a number for every property.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSpec {
    /// The coordinator's machine.
    pub coordinator: CoordinatorNumbers,
    /// The nodes, at least one; plans refer to them by index.
    pub nodes: Vec<NodeNumbers>,
    /// Each assumption that at least one machine needed, in words.
    pub assumed: Vec<String>,
}

/// The properties of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeNumbers {
    /// The machine as it was listed.
    pub machine: NodeMachine,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of it that weights may take.
    pub room: u64,
    /// Bytes per second that weights are read from memory.
    pub bandwidth: f64,
    /// Bytes per second of the network link.
    pub link: f64,
    /// Seconds of a round trip to the coordinator.
    pub rtt: f64,
    /// Operations per second.
    pub compute: f64,
}

/// The properties of the coordinator's machine.
#[derive(Clone, Debug, PartialEq)]
pub struct CoordinatorNumbers {
    /// The machine as it was listed.
    pub machine: CoordinatorMachine,
    /// Bytes of memory, if known.
    pub memory: Option<u64>,
    /// Bytes per second that weights are read from memory.
    pub bandwidth: f64,
    /// Bytes per second of the network link, which the messages of all nodes share.
    pub link: f64,
    /// Operations per second.
    pub compute: f64,
    /// Bytes per second that are read from the disk with the model file.
    pub disk: f64,
}

/// Why no plan can be made for a list of machines.
#[derive(Debug, thiserror::Error)]
pub enum ClusterSpecError {
    /// The list is empty.
    #[error("there are no nodes to plan for")]
    NoNodes,
    /// The list is longer than a plan may be.
    #[error("{0} nodes are more than the limit of {MAX_NODES}")]
    TooMany(usize),
    /// A name that could not be used in files and flags.
    #[error(
        "'{0}' is not a valid node name: use 1 to 63 letters, digits, '-', '_' and '.', with a \
         letter or digit first"
    )]
    Name(String),
    /// A name that two nodes have.
    #[error("two nodes are named {0}")]
    Twice(String),
    /// A node whose memory was neither given nor measured.
    #[error("node {0}: memory is not given: add a size like memory=64G")]
    Memory(String),
    /// A property that is divided by and must be positive.
    #[error("{whose}: {field} must not be 0")]
    Zero {
        /// The node, or the coordinator.
        whose: String,
        /// The property.
        field: &'static str,
    },
    /// Something other than a known `property=value`.
    #[error("'{part}' is not a property of a machine: expected {expected}")]
    Property {
        /// The text between two commas.
        part: String,
        /// All known properties.
        expected: &'static str,
    },
    /// A property whose value cannot be read.
    #[error("'{text}': {field}: {problem}")]
    Value {
        /// The whole flag.
        text: String,
        /// The property.
        field: String,
        /// What is wrong with its value.
        problem: QuantityError,
    },
    /// A property that is given more than once.
    #[error("'{text}': {field} is given twice")]
    Repeated {
        /// The whole flag.
        text: String,
        /// The property.
        field: String,
    },
    /// A node without a name.
    #[error("'{0}' does not name the node: add name=NAME")]
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
    /// Reads the TOML file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is too large, or has a field that is missing, unknown or wrong.
    pub fn read(path: &Path) -> Result<Self, PlanFileError> {
        const MAX_BYTES: u64 = 1 << 20;
        let text = read_text(path, MAX_BYTES)?;
        toml::from_str(&text).map_err(|error| PlanFileError::syntax(path, &text, &error))
    }

    /// Checks the machines and takes from `assumed` what they do not state. `reserve` bytes of
    /// every node's memory are kept free of weights, by default [`default_reserve`].
    ///
    /// # Errors
    /// There are no nodes or too many, or one has an invalid or repeated name, no memory size, or a
    /// rate of 0.
    pub fn resolve(
        &self,
        assumed: &Assumptions,
        reserve: Option<Bytes>,
    ) -> Result<ClusterSpec, ClusterSpecError> {
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
        Ok(ClusterSpec {
            coordinator,
            nodes,
            assumed: notes.0,
        })
    }
}

/// Bytes of a node's memory that its buffers and the system keep: 1.5 GB, enough for the largest
/// calls, and 3%.
#[must_use]
pub fn default_reserve(memory: u64) -> u64 {
    1_500_000_000 + memory / 100 * 3
}

fn node_numbers(
    machine: &NodeMachine,
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

/// The assumptions that were needed, each once.
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
        let note = format!("{} of memory bandwidth", assumed.bandwidth);
        let assumed = (assumed.bandwidth.get(), note);
        self.take(whose, "bandwidth", given.map(Bandwidth::get), assumed)
    }

    fn link(
        &mut self,
        whose: &str,
        given: Option<BitRate>,
        assumed: &Assumptions,
    ) -> Result<f64, ClusterSpecError> {
        let note = format!("links of {}", assumed.link);
        let assumed = (assumed.link.get() / 8.0, note);
        self.take(whose, "link", given.map(|l| l.get() / 8.0), assumed)
    }

    fn compute(
        &mut self,
        whose: &str,
        given: Option<OpRate>,
        assumed: &Assumptions,
    ) -> Result<f64, ClusterSpecError> {
        let note = format!("{} on 8-bit numbers", assumed.compute);
        let assumed = (assumed.compute.get(), note);
        self.take(whose, "compute", given.map(OpRate::get), assumed)
    }

    fn disk(
        &mut self,
        whose: &str,
        given: Option<Bandwidth>,
        assumed: &Assumptions,
    ) -> Result<f64, ClusterSpecError> {
        let note = format!("{} from the coordinator's disk", assumed.disk);
        let assumed = (assumed.disk.get(), note);
        self.take(whose, "disk", given.map(Bandwidth::get), assumed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_assumed_and_said() {
        let node = |text: &str| text.parse::<NodeMachine>().expect(text);
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
        let assumed = [
            "40GB/s of memory bandwidth",
            "0.3TOP/s on 8-bit numbers",
            "a round trip of 200us",
            "links of 10Gbit/s",
            "0.5GB/s from the coordinator's disk",
        ];
        let mut found = cluster.assumed.clone();
        found.sort_by_key(|note| assumed.iter().position(|known| known == note));
        assert_eq!(found, assumed);

        let refused = |nodes: Vec<NodeMachine>| {
            let listed = ClusterFile {
                node: nodes,
                ..ClusterFile::default()
            };
            let error = listed.resolve(&Assumptions::default(), None);
            error.expect_err("refused").to_string()
        };
        assert!(refused(Vec::new()).contains("no nodes"));
        assert!(refused(vec![node("name=a")]).contains("node a: memory is not given"));
        let twice = vec![node("name=a,memory=1G"), node("name=a,memory=1G")];
        assert!(refused(twice).contains("two nodes"));
        assert!(refused(vec![node("name=a,memory=9G,link=0")]).contains("link must not be 0"));
        assert!(refused(vec![node("name=a b,memory=9G")]).contains("not a valid node name"));
    }
}
