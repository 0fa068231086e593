//! How many files and sockets the process may have open at the same time.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to `wanted` if the system allows it, and returns the limit that holds then;
/// `None` if there is none.
pub fn raise_to(wanted: u64) -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current?;
    let possible = limit.maximum.map_or(wanted, |most| wanted.min(most));
    if possible <= current {
        return Some(current);
    }
    let raised = Rlimit {
        current: Some(possible),
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => Some(possible),
        Err(error) => {
            tracing::debug!(%error, wanted = possible, "cannot raise the limit of open files");
            Some(current)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_never_shrinks_and_stays_below_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        assert_eq!(raise_to(1), before.current);
        let raised = raise_to(u64::MAX >> 1);
        if let (Some(raised), Some(most)) = (raised, before.maximum) {
            assert!(raised <= most);
        }
        assert!(raised >= before.current);
    }
}
