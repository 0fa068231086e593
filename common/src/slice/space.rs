//! Free space on a disk.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::SliceError;

/// Bytes that this process may still write to the file system of `folder`.
///
/// # Errors
/// The operating system does not tell.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of the disk that a file takes now; 0 if there is none.
#[must_use]
pub fn allocated_bytes(file: &Path) -> u64 {
    // POSIX counts in units of 512 bytes, whatever the file system's block size.
    std::fs::metadata(file).map_or(0, |meta| meta.blocks().saturating_mul(512))
}

/// Refuses to write what would not fit, before anything is written.
///
/// # Errors
/// `needed` is more than is free; the error has both numbers.
pub fn ensure_room(folder: &Path, needed: u64) -> Result<(), SliceError> {
    let free = free_bytes(folder).map_err(|problem| SliceError::Io {
        file: folder.to_path_buf(),
        action: "cannot be queried for free space",
        problem,
    })?;
    if needed > free {
        return Err(SliceError::Room {
            folder: folder.to_path_buf(),
            needed,
            free,
        });
    }
    Ok(())
}
