//! The small model in the source tree, with which everything runs before a real model is there.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Its path in the source tree that the binary was built from.
const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/golden/tiny-b/tiny-b.gguf"
);

/// The path of the reference model.
///
/// # Errors
/// The source tree that the binary was built from does not exist.
pub fn path() -> Result<PathBuf> {
    let path = Path::new(PATH);
    ensure!(
        path.exists(),
        "no model: name one with -m, since the reference model exists only in the source tree"
    );
    // Messages show the path without the detour through the crate's folder.
    Ok(path.canonicalize()?)
}
