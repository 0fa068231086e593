//! A file that is written whole or not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file that gets its name when it is finished. Dropped before that, it leaves an older file of
/// that name as it was.
#[derive(Debug)]
pub struct OutFile(OutTarget);

#[derive(Debug)]
enum OutTarget {
    /// Beside the file that it becomes, since only a rename within one file system is atomic.
    Temporary { file: NamedTempFile, path: PathBuf },
    /// A pipe or a device, which a rename would replace by a file.
    Special(File),
}

impl OutFile {
    /// Starts a file that will be called `path`.
    ///
    /// # Errors
    /// `path` is a folder, or its folder is missing or cannot be written to.
    pub fn create(path: &Path) -> io::Result<Self> {
        let path = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            // Links are followed, so that they stay.
            Ok(found) if found.is_file() => path.canonicalize()?,
            Ok(_) => {
                let file = OpenOptions::new().write(true).open(path)?;
                return Ok(OutFile(OutTarget::Special(file)));
            }
            Err(_) => path.to_owned(),
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".ds4-")
            .suffix(".part")
            // As for any new file; the process's umask applies.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        Ok(OutFile(OutTarget::Temporary { file, path }))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It cannot be renamed; it is then removed.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            OutTarget::Temporary { file, path } => {
                file.persist(path).map_err(|error| error.error)?;
            }
            OutTarget::Special(mut file) => file.flush()?,
        }
        Ok(())
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            OutTarget::Temporary { file, .. } => file.write(bytes),
            OutTarget::Special(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            OutTarget::Temporary { file, .. } => file.flush(),
            OutTarget::Special(file) => file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_that_is_given_up_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.npy");
        std::fs::write(&path, "old").unwrap();
        let mut out = OutFile::create(&path).unwrap();
        out.write_all(b"half of ").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(out);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["out.npy"]);

        let mut out = OutFile::create(&path).unwrap();
        out.write_all(b"new").unwrap();
        out.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["out.npy"]);
    }

    #[test]
    fn links_and_devices_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let [link, target] = ["link", "target"].map(|name| folder.path().join(name));
        std::fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut out = OutFile::create(&link).unwrap();
        out.write_all(b"new").unwrap();
        out.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");

        let device = Path::new("/dev/null");
        OutFile::create(device).unwrap().finish().unwrap();
        assert!(!std::fs::metadata(device).unwrap().is_file());
    }

    #[test]
    fn what_cannot_be_written_is_known_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let error = OutFile::create(folder.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        let error = OutFile::create(&folder.path().join("no/out.npy")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
