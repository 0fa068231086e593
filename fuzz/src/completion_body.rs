//! The body of a completion request. Token ids beyond those that a prompt may have are counted and
//! not kept; what is refused says why, in short.

use ds4_coordinator::http::read_completion_body;

use crate::check_refusal;

/// The bytes are the body.
pub fn run(data: &[u8]) -> bool {
    const MOST: usize = 4;
    match read_completion_body(data, MOST) {
        Ok((kept, count)) => {
            assert!(kept <= count.min(MOST.max(data.len())) && count <= data.len());
            true
        }
        Err(error) => {
            check_refusal(&error);
            false
        }
    }
}
