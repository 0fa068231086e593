//! How nodes are named.

use std::fmt;
use std::str::FromStr;

use ds4_proto::channel::{self, AddressError};

/// Prefix of a DNS name whose addresses are nodes.
const DNS: &str = "dns:";

/// A node, or a DNS name that stands for several.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeSpec {
    /// `host:port` or `http://host:port`.
    One(String),
    /// `dns:host:port`: each address of the host is a node; the name is looked up again and again.
    Dns(String),
}

impl NodeSpec {
    /// The `host:port`, or URL, without the prefix.
    #[must_use]
    pub fn address(&self) -> &str {
        match self {
            NodeSpec::One(address) | NodeSpec::Dns(address) => address,
        }
    }
}

impl FromStr for NodeSpec {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some(name) = text.strip_prefix(DNS) else {
            channel::endpoint(text)?;
            return Ok(NodeSpec::One(text.to_owned()));
        };
        if name.contains("://") {
            return Err(AddressError::Url);
        }
        channel::endpoint(name)?;
        Ok(NodeSpec::Dns(name.to_owned()))
    }
}

impl fmt::Display for NodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeSpec::One(address) => f.write_str(address),
            NodeSpec::Dns(name) => write!(f, "{DNS}{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_tells_names_from_nodes() {
        let parse = |text: &str| text.parse::<NodeSpec>();
        assert_eq!(parse("a:1"), Ok(NodeSpec::One("a:1".to_owned())));
        let name = parse("dns:expert.ds4.svc:7443").expect("a name");
        assert_eq!(name, NodeSpec::Dns("expert.ds4.svc:7443".to_owned()));
        assert_eq!(name.to_string(), "dns:expert.ds4.svc:7443");
        assert_eq!(name.address(), "expert.ds4.svc:7443");
        assert_eq!(parse("dns:expert"), Err(AddressError::NoPort));
        assert_eq!(parse("dns:http://expert:1"), Err(AddressError::Url));
        assert_eq!(parse("dns::1"), Err(AddressError::Host));
    }
}
