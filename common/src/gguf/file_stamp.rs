//! What the operating system says about an open file.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// What the operating system says about an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    pub(super) bytes: u64,
    /// Seconds and nanoseconds of the last write.
    pub(super) modified: (i64, i64),
    /// Seconds and nanoseconds of the last change of anything.
    pub(super) changed: (i64, i64),
    /// Names that the file has; none once it was deleted or replaced.
    pub(super) links: u64,
}

impl FileStamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        FileStamp {
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            links: meta.nlink(),
        }
    }

    /// What changes when bytes are written, unless the writer sets the time back.
    pub(super) fn content(&self) -> (u64, (i64, i64)) {
        (self.bytes, self.modified)
    }
}
