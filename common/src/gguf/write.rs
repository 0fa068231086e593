//! Writes GGUF files: model files for tests, and the heads of slices.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::error::FormatError;
use super::parse::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, LEAST_ALIGNMENT, MOST_ALIGNMENT, MOST_DIMENSIONS,
    tensor_bytes,
};
use super::value::{Array, Value};
use crate::quant::GgmlType;

/// Writes a valid GGUF v3 file: first declare keys and tensors, then stream the tensors' data.
///
/// Nothing but the header is held in memory, so a file may be larger than it.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    alignment: u64,
    metadata: Vec<(String, Value)>,
    tensors: Vec<PlannedTensor>,
    names: HashSet<String>,
    /// End of the data section so far.
    end: u64,
}

/// A declared tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Name in the file.
    pub name: String,
    /// Fastest first.
    pub dims: Vec<u64>,
    /// Type of the elements.
    pub ty: GgmlType,
    /// From the start of the data section.
    pub offset: u64,
    /// What the data callback must write.
    pub bytes: u64,
}

/// Why a file cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// A file cannot be created, written or renamed.
    #[error("cannot write {}: {problem}", file.display())]
    File {
        /// File that the message names.
        file: PathBuf,
        /// The error of the operating system.
        problem: io::Error,
    },
    /// The sink failed.
    #[error("cannot write the model: {0}")]
    Io(io::Error),
    /// The declared keys or tensors cannot be stored.
    #[error("this would not be a valid GGUF file: {0}")]
    Format(FormatError),
    /// `general.alignment` was added as a key.
    #[error("general.alignment is set by the writer's alignment and cannot be added")]
    AlignmentKey,
    /// The data of a tensor is longer or shorter than declared.
    #[error("tensor {tensor} needs {expected} bytes of data, but {written} were written")]
    Length {
        /// Name of the tensor.
        tensor: String,
        /// Bytes that its shape and type take.
        expected: u64,
        /// Bytes that were written.
        written: u64,
    },
}

// Messages hold their causes already: as a source, a cause would be shown twice.
impl From<io::Error> for WriteError {
    fn from(problem: io::Error) -> Self {
        Self::Io(problem)
    }
}

impl From<FormatError> for WriteError {
    fn from(problem: FormatError) -> Self {
        Self::Format(problem)
    }
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// An empty file with the default alignment.
    #[must_use]
    pub fn new() -> Self {
        Self {
            alignment: DEFAULT_ALIGNMENT,
            metadata: Vec::new(),
            tensors: Vec::new(),
            names: HashSet::new(),
            end: 0,
        }
    }

    /// Another alignment than the default; also written as a key.
    ///
    /// # Errors
    /// It is not a power of two, is out of range, or tensors were declared before.
    pub fn with_alignment(mut self, alignment: u32) -> Result<Self, WriteError> {
        let wide = u64::from(alignment);
        let legal = wide.is_power_of_two() && (LEAST_ALIGNMENT..=MOST_ALIGNMENT).contains(&wide);
        if !legal || !self.tensors.is_empty() {
            return Err(WriteError::Format(FormatError::Alignment {
                found: alignment.to_string(),
                least: LEAST_ALIGNMENT,
                most: MOST_ALIGNMENT,
            }));
        }
        self.alignment = wide;
        self.metadata
            .push((ALIGNMENT_KEY.to_owned(), Value::U32(alignment)));
        Ok(self)
    }

    /// Adds a key, behind those that were added before.
    ///
    /// # Errors
    /// The key was added before, or is that of the alignment.
    pub fn add(&mut self, key: &str, value: Value) -> Result<(), WriteError> {
        if key == ALIGNMENT_KEY {
            return Err(WriteError::AlignmentKey);
        }
        if self.metadata.iter().any(|(known, _)| known == key) {
            return Err(WriteError::Format(FormatError::DuplicateKey {
                key: key.to_owned(),
            }));
        }
        self.metadata.push((key.to_owned(), value));
        Ok(())
    }

    /// Declares the next tensor. Data must come in the order of declaration.
    ///
    /// # Errors
    /// The name was declared before, or the shape is not legal for the type.
    pub fn add_tensor(&mut self, name: &str, dims: &[u64], ty: GgmlType) -> Result<(), WriteError> {
        let tensor = || name.to_owned();
        if self.names.contains(name) {
            return Err(WriteError::Format(FormatError::DuplicateTensor {
                tensor: tensor(),
            }));
        }
        if dims.is_empty() || dims.len() > MOST_DIMENSIONS {
            let dimensions = u32::try_from(dims.len()).unwrap_or(u32::MAX);
            let problem = FormatError::Dimensions {
                tensor: tensor(),
                dimensions,
            };
            return Err(WriteError::Format(problem));
        }
        if dims.contains(&0) {
            let problem = FormatError::ZeroDimension {
                tensor: tensor(),
                dims: dims.to_vec(),
            };
            return Err(WriteError::Format(problem));
        }
        let bytes = tensor_bytes(name, dims, ty)?;
        let too_large = || FormatError::TooLarge {
            tensor: tensor(),
            dims: dims.to_vec(),
        };
        let offset = self
            .end
            .checked_next_multiple_of(self.alignment)
            .ok_or_else(too_large)?;
        self.end = offset.checked_add(bytes).ok_or_else(too_large)?;
        self.names.insert(tensor());
        self.tensors.push(PlannedTensor {
            name: tensor(),
            dims: dims.to_vec(),
            ty,
            offset,
            bytes,
        });
        Ok(())
    }

    /// The declared tensors, in order.
    #[must_use]
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// Writes everything to `sink`; `data` is called once a tensor, in order, and writes exactly
    /// its bytes. Returns the number of bytes written.
    ///
    /// # Errors
    /// Writing fails, or `data` writes another number of bytes.
    pub fn write_to<W: Write>(
        &self,
        sink: W,
        mut data: impl FnMut(&PlannedTensor, &mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, WriteError> {
        let mut out = Counted { sink, written: 0 };
        out.write_all(&self.head())?;
        for tensor in &self.tensors {
            out.pad(self.alignment)?;
            let start = out.written;
            data(tensor, &mut out)?;
            let written = out.written - start;
            if written != tensor.bytes {
                let (tensor, expected) = (tensor.name.clone(), tensor.bytes);
                return Err(WriteError::Length {
                    tensor,
                    expected,
                    written,
                });
            }
        }
        out.sink.flush()?;
        Ok(out.written)
    }

    /// As [`Self::write_to`], into a file that appears under its name only when it is complete.
    ///
    /// # Errors
    /// As [`Self::write_to`]; the incomplete file is removed.
    pub fn write_file(
        &self,
        path: &Path,
        data: impl FnMut(&PlannedTensor, &mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, WriteError> {
        const BUFFER: usize = 1 << 20;
        let failed = |problem| WriteError::File {
            file: path.to_path_buf(),
            problem,
        };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(failed)?;
        let result = self
            .write_to(BufWriter::with_capacity(BUFFER, &file), data)
            .map_err(|error| match error {
                WriteError::Io(problem) => failed(problem),
                other => other,
            })
            .and_then(|n| std::fs::rename(&partial, path).map(|()| n).map_err(failed));
        if result.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&partial);
        }
        result
    }

    /// The file's bytes up to the data section.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(b"GGUF");
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            out.extend(value.value_type().id().to_le_bytes());
            value.encode(&mut out);
        }
        for t in &self.tensors {
            put_string(&mut out, &t.name);
            // At most MOST_DIMENSIONS.
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.ty.id().to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        // The alignment is bounded by MOST_ALIGNMENT.
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        out
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Value {
    /// Appends the value as a file holds it, without its type.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.extend(v.to_le_bytes()),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(v) => put_string(out, v),
            Value::Array(v) => put_array(out, v),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.element_type().id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(v) => v.iter().for_each(|&x| out.push(u8::from(x))),
        Array::String(v) => v.iter().for_each(|x| put_string(out, x)),
        Array::Array(v) => v.iter().for_each(|x| put_array(out, x)),
        Array::U64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}

struct Counted<W> {
    sink: W,
    written: u64,
}

impl<W: Write> Counted<W> {
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let gap = self.written.next_multiple_of(alignment) - self.written;
        // The alignment is bounded by MOST_ALIGNMENT.
        self.write_all(&vec![0; gap as usize])
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.sink.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
