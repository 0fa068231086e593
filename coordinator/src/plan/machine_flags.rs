//! Machines as flags describe them: `property=value`, separated by commas.

use std::str::FromStr;

use ds4_common::quantity::QuantityError;

use super::cluster_spec::ClusterSpecError;
use super::machine::{CoordinatorMachine, NodeMachine};

const NODE_PROPERTIES: &str = "name=, address=, memory=, bandwidth=, link=, rtt= or compute=";
const COORDINATOR_PROPERTIES: &str = "memory=, bandwidth=, link=, compute= or disk=";

impl FromStr for NodeMachine {
    type Err = ClusterSpecError;

    /// Parses a flag like `name=a,memory=64G,bandwidth=40G,link=10G,rtt=0.1ms`.
    fn from_str(text: &str) -> Result<Self, ClusterSpecError> {
        let mut machine = NodeMachine::default();
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

/// One `field=value` of the flag `text`.
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
    use ds4_common::quantity::{Bandwidth, Bytes, Nanos};

    use super::*;

    #[test]
    fn flags_name_machines() {
        let text = "name=a,address=10.0.0.1:50051,memory=64G,bandwidth=40G,link=10G,rtt=0.1ms";
        let machine: NodeMachine = text.parse().expect("a machine");
        assert_eq!(machine.memory, Some(Bytes(64_000_000_000)));
        assert_eq!(machine.rtt, Some(Nanos(100_000)));
        assert_eq!(machine.compute, None);
        let own: CoordinatorMachine = "disk=2G,bandwidth=100G".parse().expect("a machine");
        assert_eq!(own.disk, Some(Bandwidth(2_000_000_000)));
        for (bad, named) in [
            ("", "name="),
            ("memory=64G", "does not name the node"),
            ("name=a,speed=3", "speed=3"),
            ("name=a,memory=lots", "memory: invalid memory size \"lots\""),
            ("name=a,memory=1G,memory=2G", "memory is given twice"),
            ("name=a,name=b", "name is given twice"),
        ] {
            let error = bad.parse::<NodeMachine>().expect_err(bad).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
