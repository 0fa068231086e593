//! Whether mapped files are still what they were when they were opened.
//!
//! What is asked is the open file, not its path: a file that another one replaced by renaming keeps
//! its bytes, and whoever mapped it goes on with them. A file that is written to or cut in place
//! changes under its readers. Its length or its time of modification gives that away; a writer
//! that sets the time back leaves a trace in the time of the last change, which other acts (a link,
//! other permissions) leave as well.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::file_stamp::FileStamp;
use super::mmap::Mapping;

/// How a file changed in place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FileChange {
    /// It is shorter.
    #[error("it was truncated from {from} to {to} bytes")]
    Truncated {
        /// Bytes that are mapped.
        from: u64,
        /// Bytes that it has.
        to: u64,
    },
    /// It is longer.
    #[error("it grew from {from} to {to} bytes")]
    Grown {
        /// Bytes that are mapped.
        from: u64,
        /// Bytes that it has.
        to: u64,
    },
    /// It was written to.
    #[error("it was written to")]
    Rewritten,
    /// The operating system says nothing about it any more.
    #[error("it cannot be examined: {0}")]
    Unreadable(String),
}

/// A file that changed in place while it was mapped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{} changed while it was in use: {change}", file.display())]
pub struct FileChanged {
    /// The path under which it was opened.
    pub file: PathBuf,
    /// What happened to it.
    pub change: FileChange,
}

/// What happened to a file that may have left its bytes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileEvent {
    /// It has no name any more: it was deleted, or another file took its place. Its mapping keeps
    /// its bytes.
    Replaced(PathBuf),
    /// Something about it other than its length and its time of modification changed.
    Touched(PathBuf),
}

/// The files of a model, with what they were when their bytes were last known to be right.
#[derive(Debug)]
pub struct FileWatch {
    files: Vec<WatchedFile>,
}

#[derive(Debug)]
struct WatchedFile {
    mapping: Arc<Mapping>,
    accepted: Mutex<FileStamp>,
}

impl FileWatch {
    /// Watches files from what they were when they were opened.
    pub(super) fn new(mappings: Vec<Arc<Mapping>>) -> Self {
        let files = mappings.into_iter().map(|mapping| WatchedFile {
            accepted: Mutex::new(mapping.opened()),
            mapping,
        });
        FileWatch {
            files: files.collect(),
        }
    }

    /// Whether every file has the length and the time of modification that were accepted. Takes
    /// about a microsecond for each file.
    ///
    /// # Errors
    /// Names the first file that changed in place.
    pub fn check(&self) -> Result<(), FileChanged> {
        for file in &self.files {
            file.compare()?;
        }
        Ok(())
    }

    /// As [`Self::check`], and tells once what else happened.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn poll(&self) -> Result<Vec<FileEvent>, FileChanged> {
        let mut events = Vec::new();
        for file in &self.files {
            let found = file.compare()?;
            let mut accepted = file.accepted();
            if *accepted == found {
                continue;
            }
            let path = file.mapping.path().to_path_buf();
            events.push(match found.links {
                0 if accepted.links > 0 => FileEvent::Replaced(path),
                _ => FileEvent::Touched(path),
            });
            *accepted = found;
        }
        Ok(events)
    }

    /// What the files are at present; `None` unless all can be examined and are as long as their
    /// mappings.
    #[must_use]
    pub fn stamps(&self) -> Option<Vec<FileStamp>> {
        let stamp = |file: &WatchedFile| {
            let stamp = file.mapping.stamp().ok()?;
            (stamp.bytes == file.mapping.opened().bytes).then_some(stamp)
        };
        self.files.iter().map(stamp).collect()
    }

    /// Accepts what [`Self::stamps`] returned: the files' bytes were checked since then.
    pub fn accept(&self, stamps: &[FileStamp]) {
        for (file, stamp) in self.files.iter().zip(stamps) {
            *file.accepted() = *stamp;
        }
    }
}

impl WatchedFile {
    fn accepted(&self) -> std::sync::MutexGuard<'_, FileStamp> {
        // A stamp is written whole.
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compare(&self) -> Result<FileStamp, FileChanged> {
        let accepted = *self.accepted();
        let changed = |change| FileChanged {
            file: self.mapping.path().to_path_buf(),
            change,
        };
        let unreadable = |error: io::Error| changed(FileChange::Unreadable(error.to_string()));
        let found = self.mapping.stamp().map_err(unreadable)?;
        let (from, to) = (accepted.bytes, found.bytes);
        if found.content() == accepted.content() {
            return Ok(found);
        }
        Err(changed(match from.cmp(&to) {
            std::cmp::Ordering::Greater => FileChange::Truncated { from, to },
            std::cmp::Ordering::Less => FileChange::Grown { from, to },
            std::cmp::Ordering::Equal => FileChange::Rewritten,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes, OpenOptions, Permissions};
    use std::io::Write;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use tempfile::TempDir;

    fn watched(folder: &TempDir) -> (PathBuf, FileWatch) {
        let path = folder.path().join("a.bin");
        std::fs::write(&path, [7; 10_000]).expect("written");
        // Writes soon after another may share its timestamp, where clocks tick coarsely.
        let past = std::time::SystemTime::now() - std::time::Duration::from_secs(9);
        let file = File::options().write(true).open(&path).expect("open");
        file.set_times(FileTimes::new().set_modified(past))
            .expect("times");
        let mapping = Mapping::open(&path).expect("mapped");
        (path, FileWatch::new(vec![Arc::new(mapping)]))
    }

    #[test]
    fn a_file_that_is_cut_extended_or_written_to_is_named() {
        let folder = TempDir::new().expect("folder");
        let (path, watch) = watched(&folder);
        assert_eq!(watch.poll(), Ok(Vec::new()));
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        file.write_all_at(&[8], 5).expect("written");
        let changed = watch.check().expect_err("written to");
        assert_eq!(changed.change, FileChange::Rewritten);
        assert!(changed.to_string().starts_with(&path.display().to_string()));
        // Checked and found right, it is as good as before.
        let stamps = watch.stamps().expect("of the same length");
        watch.accept(&stamps);
        assert_eq!(watch.check(), Ok(()));
        file.set_len(9000).expect("cut");
        let cut = FileChange::Truncated {
            from: 10_000,
            to: 9000,
        };
        assert_eq!(watch.check().expect_err("cut").change, cut);
        assert_eq!(watch.stamps(), None, "it is shorter than its mapping");
        file.set_len(10_001).expect("extended");
        let error = watch.poll().expect_err("extended").to_string();
        assert!(error.contains("grew from 10000 to 10001"), "{error}");
    }

    #[test]
    fn what_leaves_the_bytes_alone_is_told_once() {
        let folder = TempDir::new().expect("folder");
        let (path, watch) = watched(&folder);
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
        let touched = FileEvent::Touched(path.clone());
        assert_eq!(watch.poll(), Ok(vec![touched]));
        assert_eq!(watch.poll(), Ok(Vec::new()));
        let other = folder.path().join("b.bin");
        let mut file = File::create(&other).expect("created");
        file.write_all(&[9; 20]).expect("written");
        std::fs::rename(&other, &path).expect("renamed");
        assert_eq!(watch.poll(), Ok(vec![FileEvent::Replaced(path)]));
        assert_eq!((watch.poll(), watch.check()), (Ok(Vec::new()), Ok(())));
    }
}
