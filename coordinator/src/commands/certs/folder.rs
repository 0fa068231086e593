//! The folder in which an authority and its members' files are.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::authority::Authority;

/// Name of the authority's files.
pub(super) const CA: &str = "ca";

/// The authority whose key is in the folder.
pub(super) fn read_authority(folder: &Path) -> Result<Authority> {
    let certificates = trusted(folder)?;
    let key = read(&path(folder, CA, "key"))?;
    let authority = Authority::from_pem(&certificates, &key);
    authority.with_context(|| format!("cannot use the authority in {}", folder.display()))
}

/// The certificates of the authorities that members are to trust.
pub(super) fn trusted(folder: &Path) -> Result<String> {
    read(&path(folder, CA, "pem"))
}

pub(super) fn path(folder: &Path, name: &str, kind: &str) -> PathBuf {
    folder.join(format!("{name}.{kind}"))
}

/// Reads a file of text.
pub(super) fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Whether both are the same folder.
pub(super) fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Who may read a file.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// Everyone may read.
    Everyone,
    /// Only the owner may read.
    Owner,
}

/// Writes to a file beside it first, then renames: a new key is never readable by others, and no
/// file is ever half written.
pub(super) fn write(file: &Path, text: &str, access: Access) -> Result<()> {
    let mode = match access {
        Access::Everyone => 0o644,
        Access::Owner => 0o600,
    };
    let beside = file.with_extension("new");
    let written = || -> std::io::Result<()> {
        // An interrupted run may have left one, with any access.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut new: File = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&beside, file)
    };
    if let Err(error) = written() {
        bail!("cannot write {}: {error}", file.display());
    }
    Ok(())
}
