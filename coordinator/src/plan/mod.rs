//! Which node holds which tiles: the plan, how it is made, and the file that it is kept in.

mod cover;
mod file;
mod machine;
mod quantity;

use std::io::Read;
use std::path::Path;

pub use cover::{Piece, pieces};
pub use file::{MAX_NODES, PlanFile, PlanFileError, PlanModel, PlanNode, VERSION};
pub use machine::{CoordinatorMachine, Machine, is_name};
pub use quantity::{Bandwidth, BitRate, Bytes, Nanos, OpRate, QuantityError};

/// A text file of at most `most` bytes.
fn read_text(path: &Path, most: u64) -> Result<String, PlanFileError> {
    let file = || path.to_path_buf();
    let failed = |problem| PlanFileError::Io {
        file: file(),
        problem,
    };
    let mut text = String::new();
    let opened = std::fs::File::open(path).map_err(failed)?;
    let read = opened.take(most + 1).read_to_string(&mut text);
    if read.map_err(failed)? as u64 > most {
        return Err(PlanFileError::TooLarge { file: file() });
    }
    Ok(text)
}
