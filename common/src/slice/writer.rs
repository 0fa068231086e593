//! Writes a slice so that it may be interrupted at any byte.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blake3::{Hash, Hasher};

use super::copy::hash_of;
use super::head::SliceHead;
use super::{SliceError, allocated_bytes};

/// What the name of an unfinished slice ends in.
pub const PART_SUFFIX: &str = ".part";

/// Where a slice is while it is not complete.
#[must_use]
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PART_SUFFIX);
    PathBuf::from(name)
}

/// A slice that is being written, tensor after tensor, into a file of another name.
///
/// The data of a tensor reaches the disk before its hash does, so a hash in the head vouches for
/// its tensor, and an interrupted file goes on after the last one tensor whose hash is there and
/// right. The file takes its name when it is complete.
#[derive(Debug)]
pub struct SliceWriter {
    path: PathBuf,
    part: PathBuf,
    file: File,
    head: SliceHead,
    /// The tensor that comes next; all before it are there.
    next: usize,
    /// Bytes of it that are written.
    written: u64,
    hasher: Hasher,
}

impl SliceWriter {
    /// Begins the slice at `path`, or continues what an interrupted writer left. `checked` is
    /// called with the number of bytes that each step has read back.
    ///
    /// # Errors
    /// The file cannot be written, or another process writes it.
    pub fn open(
        path: &Path,
        mut head: SliceHead,
        checked: &mut dyn FnMut(u64),
    ) -> Result<Self, SliceError> {
        let part = part_path(path);
        let failed = |problem| io_error(&part, "cannot be opened for writing", problem);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SliceError::Busy { file: part }),
            Err(TryLockError::Error(problem)) => return Err(failed(problem)),
        }
        head.rename(path.to_path_buf());
        let mut writer = SliceWriter {
            path: path.to_path_buf(),
            part,
            file,
            head,
            next: 0,
            written: 0,
            hasher: Hasher::new(),
        };
        match writer.left_behind() {
            Some(old) => writer.take_over(&old, checked)?,
            None => {
                writer.file.set_len(0).map_err(|e| writer.failed(e))?;
                let bytes = writer.head.file_bytes();
                writer.file.set_len(bytes).map_err(|e| writer.failed(e))?;
                writer.write_head()?;
            }
        }
        Ok(writer)
    }

    /// The head in the file, if it is one of this slice.
    fn left_behind(&self) -> Option<SliceHead> {
        let length = self.file.metadata().ok()?.len();
        if length != self.head.file_bytes() {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(self.head.head_bytes()).ok()?];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        let old = SliceHead::parse(self.part.clone(), &bytes, length).ok()?;
        (old.identity() == self.head.identity()).then_some(old)
    }

    /// Goes on behind the tensors of `old` that are there and right.
    fn take_over(
        &mut self,
        old: &SliceHead,
        checked: &mut dyn FnMut(u64),
    ) -> Result<(), SliceError> {
        for tensor in old.tensors() {
            let Some(stated) = tensor.hash else { break };
            let read = |out: &mut [u8], at| self.file.read_exact_at(out, tensor.offset + at);
            let found = hash_of(tensor.bytes, read, checked)
                .map_err(|problem| io_error(&self.part, "cannot be read back", problem))?;
            if found != stated {
                break;
            }
            self.head.set_hash(self.next, Some(stated));
            self.next += 1;
        }
        // Hashes behind the first wrong one are dropped.
        self.write_head()
    }

    /// The head, with the hashes of complete tensors.
    #[must_use]
    pub fn head(&self) -> &SliceHead {
        &self.head
    }

    /// The tensor that comes next, by number, and the bytes of it that are there; `None` when all
    /// are there.
    #[must_use]
    pub fn position(&self) -> Option<(usize, u64)> {
        (self.next < self.head.tensors().len()).then_some((self.next, self.written))
    }

    /// Bytes that are there of the tensor that comes next.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.written
    }

    /// Bytes of tensors that are there.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        let whole = &self.head.tensors()[..self.next];
        whole.iter().map(|t| t.bytes).sum::<u64>() + self.written
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.head.tensors().iter().map(|t| t.bytes).sum()
    }

    /// Appends to the tensor that comes next.
    ///
    /// # Errors
    /// That is more than its bytes, or the file cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SliceError> {
        let tensor = self.head.tensors().get(self.next);
        let room = tensor.map_or(0, |t| t.bytes - self.written);
        let Some(tensor) = tensor.filter(|_| bytes.len() as u64 <= room) else {
            return Err(self.wrong(format!(
                "was given {} bytes more than the {room} that are missing",
                bytes.len() as u64 - room
            )));
        };
        self.file
            .write_all_at(bytes, tensor.offset + self.written)
            .map_err(|e| self.failed(e))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Takes back what was appended to the tensor that comes next.
    pub fn restart_tensor(&mut self) {
        self.written = 0;
        self.hasher.reset();
    }

    /// Ends the tensor that comes next: brings it to the disk, then its hash. If the sender says
    /// what the hash must be and it is not, the tensor starts again.
    ///
    /// # Errors
    /// The tensor has too few bytes or another hash, or the file cannot be written.
    pub fn end_tensor(&mut self, expected: Option<Hash>) -> Result<(), SliceError> {
        let missing = match self.head.tensors().get(self.next) {
            Some(tensor) => tensor.bytes - self.written,
            None => return Err(self.wrong("ends without having begun".to_owned())),
        };
        if missing > 0 {
            return Err(self.wrong(format!("lacks {missing} bytes")));
        }
        let found = self.hasher.finalize();
        if let Some(stated) = expected.filter(|hash| *hash != found) {
            let tensor = self.head.tensors()[self.next].name.clone();
            self.restart_tensor();
            return Err(SliceError::TensorHash {
                file: self.part.clone(),
                tensor,
                stated,
                found,
            });
        }
        self.file.sync_data().map_err(|e| self.failed(e))?;
        self.head.set_hash(self.next, Some(found));
        self.write_head()?;
        self.next += 1;
        self.restart_tensor();
        Ok(())
    }

    /// Ends the slice: from here on it has its name.
    ///
    /// # Errors
    /// Tensors are missing, or the file cannot be written or renamed.
    pub fn finish(mut self) -> Result<SliceHead, SliceError> {
        if let Some((present, _)) = self.position() {
            return Err(SliceError::Incomplete {
                file: self.part,
                present,
                tensors: self.head.tensors().len(),
            });
        }
        // The hashes must not be behind the digest that vouches for them.
        self.file.sync_data().map_err(|e| self.failed(e))?;
        self.head.set_digest();
        self.write_head()?;
        self.file.sync_all().map_err(|e| self.failed(e))?;
        std::fs::rename(&self.part, &self.path)
            .map_err(|problem| io_error(&self.part, "cannot be renamed", problem))?;
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|problem| io_error(folder, "cannot be written", problem))?;
        Ok(self.head)
    }

    fn write_head(&self) -> Result<(), SliceError> {
        let bytes = self.head.encode()?;
        self.file
            .write_all_at(&bytes, 0)
            .map_err(|e| self.failed(e))
    }

    fn failed(&self, problem: io::Error) -> SliceError {
        io_error(&self.part, "cannot be written", problem)
    }

    fn wrong(&self, problem: String) -> SliceError {
        let tensor = self.head.tensors().get(self.next);
        SliceError::Tensor {
            file: self.part.clone(),
            tensor: tensor.map_or_else(|| "after the last one".to_owned(), |t| t.name.clone()),
            problem,
        }
    }

    /// Bytes of the disk that writing `head` at `path` takes beyond what an interrupted writer
    /// has taken.
    #[must_use]
    pub fn missing_bytes(path: &Path, head: &SliceHead) -> u64 {
        head.file_bytes()
            .saturating_sub(allocated_bytes(&part_path(path)))
    }
}

fn io_error(file: &Path, action: &'static str, problem: io::Error) -> SliceError {
    SliceError::Io {
        file: file.to_path_buf(),
        action,
        problem,
    }
}
