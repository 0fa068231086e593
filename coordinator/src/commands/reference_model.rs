//! The small model that comes with the source, so that everything runs before a real model is
//! there.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Where the build's source tree keeps it.
const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/golden/tiny-b/tiny-b.gguf"
);

/// # Errors
/// The source tree that the binary was built from is gone.
pub fn path() -> Result<PathBuf> {
    let path = Path::new(PATH);
    ensure!(
        path.exists(),
        "name a model with -m: the reference model is only in the source tree"
    );
    // Without the detour over the crate's folder, for messages.
    Ok(path.canonicalize()?)
}
