//! The only place where files are mapped.
//!
//! A mapping is read-only and shared with every other process that maps the file: resident memory
//! is the page cache. The length is checked when the file is opened. A file that is shortened
//! while it is mapped cannot be guarded against: touching a page that is gone ends the process,
//! with a line that names the file ([`bus_error`]). Bytes that are rewritten in place change under
//! the reader, which [`super::FileWatch`] notices. Replace model files by renaming, never in place.
#![allow(unsafe_code)]

mod bus_error;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, MmapOptions};
#[cfg(target_os = "linux")]
use rustix::io::Errno;

use super::GgufError;
use super::file_stamp::FileStamp;
use bus_error::NamedRange;

/// A whole file, mapped read-only, with its handle kept for reads that must not touch the mapping.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    file: File,
    /// What the file was when it was opened.
    opened: FileStamp,
    /// Names the file in the last line of a process that touches a page that is gone; ahead of the
    /// mapping, so that it is dropped before the addresses are free for others.
    _named: NamedRange,
    map: Mmap,
}

impl Mapping {
    /// Maps a file; takes no longer for a large one.
    ///
    /// # Errors
    /// The path is not a regular file, the file is empty, or it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = || path.to_path_buf();
        let io = |problem| GgufError::Io {
            file: file(),
            problem,
        };
        // Checked before opening: opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(GgufError::NotAFile { file: file() });
        }
        let handle = File::open(path).map_err(io)?;
        let meta = handle.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(GgufError::NotAFile { file: file() });
        }
        if meta.len() == 0 {
            return Err(GgufError::Empty { file: file() });
        }
        let length = usize::try_from(meta.len())
            .map_err(|_| io(io::Error::other("it is larger than the address space")))?;
        // SAFETY: `length` is the length that the open regular file has now, and the mapping is
        // private to this struct and only ever read. That the file is not shortened or rewritten
        // meanwhile is up to the caller, as the module's documentation says.
        let map = unsafe { MmapOptions::new().len(length).map(&handle) }.map_err(io)?;
        Ok(Self {
            path: path.to_path_buf(),
            file: handle,
            opened: FileStamp::of(&meta),
            _named: NamedRange::new(&map, path),
            map,
        })
    }

    /// The path under which the file was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file was when it was opened.
    pub(super) fn opened(&self) -> FileStamp {
        self.opened
    }

    /// What the open file is at present, whatever its path leads to.
    pub(super) fn stamp(&self) -> io::Result<FileStamp> {
        Ok(FileStamp::of(&self.file.metadata()?))
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Fills `out` from `offset` on through the file handle, so that no page of the mapping
    /// becomes resident.
    ///
    /// # Errors
    /// The file cannot be read, or ends earlier.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// Prefetches a byte range: tells the operating system to read it, and returns at once.
    ///
    /// # Errors
    /// The range is not inside of the file, or the operating system refuses.
    pub fn will_need(&self, range: Range<usize>) -> io::Result<()> {
        self.advise(Advice::WillNeed, range)
    }

    /// Reads a byte range and maps its pages before it returns, so that later reads do not fault;
    /// in huge pages where operating system and file system have them for files.
    ///
    /// # Errors
    /// The range is not inside of the file, or it cannot be read.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Err(error) = self.advise(Advice::HugePage, range.clone()) {
            tracing::debug!(%error, "no huge pages for files");
        }
        #[cfg(target_os = "linux")]
        match self.advise(Advice::PopulateRead, range.clone()) {
            // Kernels before 5.14 do not know this advice.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            done => return done,
        }
        self.will_need(range.clone())?;
        let touched = self.map[range]
            .iter()
            .step_by(LEAST_PAGE)
            .fold(0, |sum: u8, &b| sum ^ b);
        std::hint::black_box(touched);
        Ok(())
    }

    fn advise(&self, advice: Advice, range: Range<usize>) -> io::Result<()> {
        if range.start > range.end || range.end > self.map.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "range outside of the file",
            ));
        }
        if range.is_empty() {
            return Ok(());
        }
        self.map.advise_range(advice, range.start, range.len())
    }
}

/// No supported system has smaller pages.
const LEAST_PAGE: usize = 4096;
