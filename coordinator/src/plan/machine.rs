//! The properties of a machine, measured or given.

use serde::{Deserialize, Serialize};

use ds4_common::quantity::{Bandwidth, BitRate, Bytes, Nanos, OpRate};

/// The most characters of a node's name, as in a DNS label.
const MAX_NAME: usize = 63;

/// The machine of one expert node. [`super::Assumptions`] fill in what is absent, except the
/// memory, which a plan requires.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeMachine {
    /// The node's name, unique in its cluster; its slice file has the same name.
    pub name: String,
    /// `host:port` at which the expert node listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Bytes of memory that the node may use, for weights and everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Bytes per second that weights are read from memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Bits per second of the network link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<BitRate>,
    /// Round trip to the coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt: Option<Nanos>,
    /// Operations per second that the kernels reach on many tokens; a multiply-add counts as two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<OpRate>,
}

/// The coordinator's machine. [`super::Assumptions`] fill in what is absent, except the memory,
/// without which a plan reckons with the disk where nodes are lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorMachine {
    /// Bytes of memory, for the model and everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Bytes per second that weights are read from memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Bits per second of the network link, which the messages of all nodes share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<BitRate>,
    /// Operations per second that the kernels reach on many tokens; a multiply-add counts as two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<OpRate>,
    /// Bytes per second that are read from the disk with the model file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bandwidth>,
}

/// Whether `name` is a valid node name, which is safe in file names, flags and tables: 1 to 63
/// ASCII letters, digits, `-`, `_` and `.`, with a letter or digit first.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= MAX_NAME
        && name.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_everywhere() {
        assert!(is_name("rack-2.node_7"));
        let long = "x".repeat(MAX_NAME + 1);
        for bad in [
            "", "..", "../a", "a/b", "a b", "-m", "é", "a,b", "a=b", &long,
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
