//! What is known of a machine, measured or given.

use serde::{Deserialize, Serialize};

use ds4_common::quantity::{Bandwidth, BitRate, Bytes, Nanos, OpRate};

/// Characters of a node's name.
const MAX_NAME: usize = 63;

/// One expert node's machine. What is absent is assumed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Unique in its cluster; names the node's slice too.
    pub name: String,
    /// `host:port` of its expert node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Memory that the node may use, its own needs included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Weights that the node reads from memory in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Rate of its network link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<BitRate>,
    /// Round trip between it and the coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt: Option<Nanos>,
    /// Operations that its kernels do on many tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<OpRate>,
}

/// The coordinator's machine. What is absent is assumed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorMachine {
    /// As for a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// As for a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// As for a node; all nodes' messages pass it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<BitRate>,
    /// As for a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<OpRate>,
    /// Bytes a second that it reads from the disk with its model file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bandwidth>,
}

/// Whether `name` can name a node, and with that a file, in every place where names appear:
/// letters, digits, `-`, `_` and `.`, a letter or digit first.
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
