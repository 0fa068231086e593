//! Which protocol versions a peer speaks.

use std::fmt;

use crate::limits::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use crate::pb;

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Oldest version.
    pub oldest: u32,
    /// Newest version.
    pub newest: u32,
}

impl Versions {
    /// The versions that this software speaks.
    pub const OURS: Versions = Versions {
        oldest: OLDEST_PROTOCOL_VERSION,
        newest: PROTOCOL_VERSION,
    };

    /// The versions that a peer stated; a peer without an oldest version speaks just one.
    #[must_use]
    pub fn of(oldest: u32, newest: u32) -> Self {
        let oldest = if oldest == 0 { newest } else { oldest };
        Versions { oldest, newest }
    }

    /// The versions that a coordinator states when it requests a description; version 2 stated none.
    #[must_use]
    pub fn of_request(request: &pb::DescribeRequest) -> Self {
        match request.newest_version {
            0 => Versions::of(0, 2),
            newest => Versions::of(request.oldest_version, newest),
        }
    }

    /// The request for a description by a coordinator of this software.
    #[must_use]
    pub fn request() -> pb::DescribeRequest {
        pb::DescribeRequest {
            newest_version: Self::OURS.newest,
            oldest_version: Self::OURS.oldest,
        }
    }

    /// The version in which a node describes itself: the newest that both speak, else this
    /// software's newest.
    #[must_use]
    pub fn of_description(request: &pb::DescribeRequest) -> u32 {
        let common = Self::OURS.common(Self::of_request(request));
        common.unwrap_or(Self::OURS.newest)
    }

    /// The newest version that both speak.
    #[must_use]
    pub fn common(self, other: Versions) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            return write!(f, "{}", self.newest);
        }
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_meet_and_strangers_do_not() {
        let range = |oldest, newest| Versions { oldest, newest };
        assert_eq!(range(2, 3).common(range(3, 4)), Some(3));
        assert_eq!(range(2, 3).common(Versions::of(0, 2)), Some(2));
        assert_eq!(range(2, 3).common(Versions::of(0, 1)), None);
        assert_eq!(range(2, 3).common(range(4, 5)), None);
        assert_eq!(range(2, 3).common(range(3, 2)), None, "an empty range");
        assert_eq!(range(2, 3).to_string(), "2 to 3");
        assert_eq!(Versions::of(0, 2).to_string(), "2");
    }
}
