//! One model out of its files: a single file, the parts of a split, or layer shards.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file_watch::FileWatch;
use super::mmap::Mapping;
use super::parse::{Header, parse};
use super::split::{self, SplitPart};
use super::tensor::{Tensor, TensorInfo, UnsupportedTensor};
use super::{GgufError, Metadata};

/// One logical model over one or more mapped GGUF files. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GgufModel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    paths: Vec<PathBuf>,
    mappings: Vec<Arc<Mapping>>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    unsupported: Vec<UnsupportedTensor>,
    by_name: HashMap<String, TensorIndex>,
}

/// Which list a tensor is in, and where.
#[derive(Clone, Copy, Debug)]
enum TensorIndex {
    Readable(usize),
    Unsupported(usize),
}

/// One file, opened and parsed.
struct OpenedFile {
    path: PathBuf,
    mapping: Mapping,
    header: Header,
    metadata: Metadata,
    part: Option<SplitPart>,
}

impl OpenedFile {
    fn open(path: &Path) -> Result<Self, GgufError> {
        let mapping = Mapping::open(path)?;
        let mut header = parse(mapping.bytes()).map_err(|problem| GgufError::Format {
            file: path.to_path_buf(),
            problem,
        })?;
        let mut metadata = Metadata::new(path.to_path_buf());
        for (key, value) in std::mem::take(&mut header.metadata) {
            metadata.insert(key, value);
        }
        let part = split::part(path, &metadata)?;
        Ok(Self {
            path: path.to_path_buf(),
            mapping,
            header,
            metadata,
            part,
        })
    }
}

impl GgufModel {
    /// Opens the model that `path` belongs to: the file alone, or, if its split.* keys say that it
    /// is one part of several, all parts beside it.
    ///
    /// # Errors
    /// A file is missing, unreadable or not a valid GGUF file, or the parts do not belong together.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::open_parts(&[path.to_path_buf()])
    }

    /// Opens one model from several files: layer shards, each of which holds other tensors of the
    /// model, or parts of a split model (the parts that are not named are found beside the named).
    ///
    /// The metadata is that of the first file, completed by the others'.
    ///
    /// # Errors
    /// No path or the same file twice; a file is missing, unreadable or not a valid GGUF file; two
    /// files hold the same tensor, or state different values of the model's keys.
    pub fn open_parts(paths: &[PathBuf]) -> Result<Self, GgufError> {
        let mut files = Vec::new();
        let mut known: Vec<PathBuf> = Vec::new();
        for (i, path) in paths.iter().enumerate() {
            let real = canonical(path)?;
            for other in &paths[..i] {
                if canonical(other)? == real {
                    return Err(GgufError::SameFileTwice { file: path.clone() });
                }
            }
            if known.contains(&real) {
                continue;
            }
            let group = open_group(path)?;
            for file in &group {
                known.push(canonical(&file.path)?);
            }
            files.extend(group);
        }
        Self::join(files)
    }

    fn join(files: Vec<OpenedFile>) -> Result<Self, GgufError> {
        let mut files = files.into_iter();
        let Some(first) = files.next() else {
            return Err(GgufError::NoFiles);
        };
        let metadata = first.metadata.clone();
        let mut inner = Inner {
            paths: Vec::new(),
            mappings: Vec::new(),
            metadata,
            tensors: Vec::new(),
            unsupported: Vec::new(),
            by_name: HashMap::new(),
        };
        inner.add(first)?;
        for file in files {
            merge_metadata(&mut inner.metadata, &file)?;
            inner.add(file)?;
        }
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The keys of all files, merged.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// All tensors of readable types, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.inner.tensors
    }

    /// The tensors whose type this engine cannot read.
    #[must_use]
    pub fn unsupported(&self) -> &[UnsupportedTensor] {
        &self.inner.unsupported
    }

    /// `None` if there is no such tensor, or its type cannot be read.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        match *self.inner.by_name.get(name)? {
            TensorIndex::Readable(i) => {
                let info = &self.inner.tensors[i];
                Tensor::new(
                    Arc::new(info.clone()),
                    Arc::clone(&self.inner.mappings[info.file]),
                )
            }
            TensorIndex::Unsupported(_) => None,
        }
    }

    /// Whether there is such a tensor, of whatever type.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.inner.by_name.contains_key(name)
    }

    /// A tensor that is needed.
    ///
    /// # Errors
    /// There is no such tensor, or its type cannot be read.
    pub fn require(&self, name: &str) -> Result<Tensor, GgufError> {
        if let Some(tensor) = self.tensor(name) {
            return Ok(tensor);
        }
        let tensor = name.to_owned();
        if let Some(&TensorIndex::Unsupported(i)) = self.inner.by_name.get(name) {
            let found = &self.inner.unsupported[i];
            let file = self.inner.paths[found.file].clone();
            return Err(GgufError::UnsupportedTensor {
                file,
                tensor,
                problem: found.ty,
            });
        }
        Err(GgufError::MissingTensor {
            file: self.name().to_path_buf(),
            tensor,
        })
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.inner
            .mappings
            .iter()
            .map(|m| m.bytes().len() as u64)
            .sum()
    }

    /// Notices changes of the files since they were opened.
    #[must_use]
    pub fn watch(&self) -> FileWatch {
        FileWatch::new(self.inner.mappings.clone())
    }

    /// The files, in the order that [`TensorInfo::file`] counts.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.inner.paths
    }

    /// The path that messages about the whole model name: its first file.
    #[must_use]
    pub fn name(&self) -> &Path {
        self.inner.metadata.source()
    }
}

impl Inner {
    fn add(&mut self, file: OpenedFile) -> Result<(), GgufError> {
        let index = self.paths.len();
        for raw in file.header.tensors {
            if let Some(&earlier) = self.by_name.get(&raw.name) {
                let earlier = match earlier {
                    TensorIndex::Readable(i) => self.tensors[i].file,
                    TensorIndex::Unsupported(i) => self.unsupported[i].file,
                };
                return Err(GgufError::DuplicateTensor {
                    tensor: raw.name,
                    first: self.paths[earlier].clone(),
                    second: file.path,
                });
            }
            let (name, dims, offset, bytes) = (raw.name, raw.dims, raw.offset, raw.bytes);
            match raw.ty {
                Ok(ty) => {
                    self.by_name
                        .insert(name.clone(), TensorIndex::Readable(self.tensors.len()));
                    self.tensors.push(TensorInfo {
                        name,
                        dims,
                        ty,
                        offset,
                        bytes,
                        file: index,
                    });
                }
                Err(ty) => {
                    self.by_name.insert(
                        name.clone(),
                        TensorIndex::Unsupported(self.unsupported.len()),
                    );
                    let file = index;
                    self.unsupported.push(UnsupportedTensor {
                        name,
                        dims,
                        ty,
                        offset,
                        file,
                    });
                }
            }
        }
        self.paths.push(file.path);
        self.mappings.push(Arc::new(file.mapping));
        Ok(())
    }
}

/// Absolute, links followed, so that one file under two names is recognised.
fn canonical(path: &Path) -> Result<PathBuf, GgufError> {
    path.canonicalize().map_err(|problem| GgufError::Io {
        file: path.to_path_buf(),
        problem,
    })
}

/// The file and, if it is a part of a split model, all other parts, in order.
fn open_group(path: &Path) -> Result<Vec<OpenedFile>, GgufError> {
    let named = OpenedFile::open(path)?;
    let Some(part) = named.part else {
        return Ok(vec![named]);
    };
    let paths = split::siblings(path, part)?;
    for (no, sibling) in (0u32..).zip(&paths) {
        if !sibling.exists() {
            let file = sibling.clone();
            return Err(GgufError::MissingPart {
                file,
                part: no + 1,
                count: part.count,
            });
        }
    }
    let mut group: Vec<OpenedFile> = Vec::with_capacity(paths.len());
    let mut named = Some(named);
    for (no, sibling) in (0u32..).zip(paths) {
        let opened = match named.take_if(|_| no == part.no) {
            Some(named) => named,
            None => OpenedFile::open(&sibling)?,
        };
        let found = opened.part.unwrap_or(SplitPart { no: 0, count: 1 });
        if found
            != (SplitPart {
                no,
                count: part.count,
            })
        {
            return Err(GgufError::WrongPart {
                file: sibling,
                part: no + 1,
                count: part.count,
                found_part: found.no + 1,
                found_count: found.count,
            });
        }
        group.push(opened);
    }
    check_tensor_count(&group)?;
    Ok(group)
}

fn check_tensor_count(group: &[OpenedFile]) -> Result<(), GgufError> {
    let found = group.iter().map(|f| f.header.tensors.len() as u64).sum();
    for file in group {
        if let Some(expected) = split::tensor_count(&file.metadata)?
            && expected != found
        {
            let (file, parts) = (file.path.clone(), group.len());
            return Err(GgufError::TensorCount {
                file,
                expected,
                found,
                parts,
            });
        }
    }
    Ok(())
}

/// Adds the keys that only a later file has. What describes the model must not differ; what
/// describes the file or its maker may.
fn merge_metadata(all: &mut Metadata, file: &OpenedFile) -> Result<(), GgufError> {
    const ARCHITECTURE: &str = "general.architecture";
    let architecture = all
        .optional_str(ARCHITECTURE)?
        .map(|name| format!("{name}."));
    for (key, value) in file.metadata.iter() {
        match all.get(key) {
            None => {
                all.insert(key, value.clone());
            }
            Some(known) => {
                let of_model = key == ARCHITECTURE
                    || architecture
                        .as_deref()
                        .is_some_and(|prefix| key.starts_with(prefix));
                if of_model && known != value {
                    return Err(GgufError::ShardsDisagree {
                        key: key.to_owned(),
                        first: all.source().to_path_buf(),
                        second: file.path.clone(),
                    });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
