//! Changed copies of GGUF files: with other names, types, metadata or splits.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ds4_common::gguf::{GgufModel, GgufWriter, Value};
use ds4_common::quant::{GgmlType, dequantize_row};

/// A GGUF model in memory that can be changed and written.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Key and value of each entry, in the order of the file.
    pub metadata: Vec<(String, Value)>,
    /// The tensors in the order of the file.
    pub tensors: Vec<DraftTensor>,
}

/// One tensor of a [`Draft`].
#[derive(Clone, Debug)]
pub struct DraftTensor {
    /// The tensor's name.
    pub name: String,
    /// Length of each axis, the fastest first.
    pub dims: Vec<u64>,
    /// Type of the values.
    pub ty: GgmlType,
    /// The values in that type, rows one after the other.
    pub bytes: Vec<u8>,
}

impl Draft {
    /// Reads the model at `path`.
    ///
    /// # Errors
    /// The file is not a valid GGUF file.
    pub fn read(path: &Path) -> Result<Self> {
        let model = GgufModel::open(path)?;
        let metadata = model
            .metadata()
            .iter()
            .filter(|(key, _)| *key != "general.alignment")
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect();
        let tensors = model
            .tensors()
            .iter()
            .map(|info| {
                Ok(DraftTensor {
                    name: info.name.clone(),
                    dims: info.dims.clone(),
                    ty: info.ty,
                    bytes: model.require(&info.name)?.bytes().to_vec(),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { metadata, tensors })
    }

    /// Sets a key, whether it exists or not.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Removes a key and returns its value.
    ///
    /// # Errors
    /// The key does not exist, so the caller would test nothing.
    pub fn remove(&mut self, key: &str) -> Result<Value> {
        let at = self.metadata.iter().position(|(known, _)| known == key);
        Ok(self.metadata.remove(at.context(key.to_owned())?).1)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The key does not exist.
    pub fn get(&self, key: &str) -> Result<&Value> {
        let found = self.metadata.iter().find(|(known, _)| known == key);
        Ok(&found.context(key.to_owned())?.1)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn tensor_mut(&mut self, name: &str) -> Result<&mut DraftTensor> {
        let found = self.tensors.iter_mut().find(|t| t.name == name);
        found.context(name.to_owned())
    }

    /// Renames every tensor by `rename`; returns how many names changed.
    pub fn rename(&mut self, rename: impl Fn(&str) -> String) -> usize {
        let mut changed = 0;
        for tensor in &mut self.tensors {
            let name = rename(&tensor.name);
            changed += usize::from(name != tensor.name);
            tensor.name = name;
        }
        changed
    }

    /// Converts the tensors that `which` chooses to F32; returns how many changed.
    pub fn to_f32(&mut self, which: impl Fn(&DraftTensor) -> bool) -> usize {
        let mut changed = 0;
        for tensor in self.tensors.iter_mut().filter(|t| which(t)) {
            if !matches!(tensor.ty, GgmlType::F32 | GgmlType::I32) {
                tensor.widen();
                changed += 1;
            }
        }
        changed
    }

    /// Adds an F32 tensor with one axis.
    pub fn add(&mut self, name: &str, values: &[f32]) {
        self.tensors.push(DraftTensor {
            name: name.to_owned(),
            dims: vec![values.len() as u64],
            ty: GgmlType::F32,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    /// Writes the model to `path`.
    ///
    /// # Errors
    /// The draft does not make a valid file, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let all: Vec<&DraftTensor> = self.tensors.iter().collect();
        write(path, &self.metadata, &all)
    }

    /// Writes `parts` files of the standard split form, with all metadata in the first.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_split(&self, folder: &Path, stem: &str, parts: usize) -> Result<Vec<PathBuf>> {
        ensure!(parts > 0 && parts <= self.tensors.len());
        let each = self.tensors.len().div_ceil(parts);
        let mut paths = Vec::new();
        for (no, tensors) in self.tensors.chunks(each).enumerate() {
            let mut metadata = if no == 0 {
                self.metadata.clone()
            } else {
                Vec::new()
            };
            metadata.extend([
                ("split.no".to_owned(), Value::U16(u16::try_from(no)?)),
                ("split.count".to_owned(), Value::U16(u16::try_from(parts)?)),
                (
                    "split.tensors.count".to_owned(),
                    Value::I32(i32::try_from(self.tensors.len())?),
                ),
            ]);
            let path = folder.join(format!("{stem}-{:05}-of-{parts:05}.gguf", no + 1));
            write(&path, &metadata, &tensors.iter().collect::<Vec<_>>())?;
            paths.push(path);
        }
        ensure!(
            paths.len() == parts,
            "the tensors cannot be split into {parts} files"
        );
        Ok(paths)
    }

    /// Writes two files that both have all metadata: one with the embedding and the blocks before
    /// `block`, one with the rest.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_shards(&self, folder: &Path, block: usize) -> Result<[PathBuf; 2]> {
        let in_first = |t: &&DraftTensor| match block_of(&t.name) {
            Some(b) => b < block,
            None => t.name == "token_embd.weight",
        };
        let (first, second): (Vec<_>, Vec<_>) = self.tensors.iter().partition(in_first);
        let paths = ["first.gguf", "second.gguf"].map(|name| folder.join(name));
        write(&paths[0], &self.metadata, &first)?;
        write(&paths[1], &self.metadata, &second)?;
        Ok(paths)
    }
}

impl DraftTensor {
    /// Converts the tensor to F32 with the same values.
    pub fn widen(&mut self) {
        let elements: u64 = self.dims.iter().product();
        let mut values = vec![0.0; elements as usize];
        dequantize_row(self.ty, &self.bytes, &mut values);
        self.ty = GgmlType::F32;
        self.bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }

    /// Lengthens the rows to `width` values by appending the bytes of `fill` to each.
    ///
    /// # Errors
    /// The type has blocks, the rows are that long already, or `fill` has another length.
    pub fn lengthen_rows(&mut self, width: u64, fill: &[u8]) -> Result<()> {
        ensure!(self.ty.block_elements() == 1 && width > self.dims[0]);
        ensure!(fill.len() as u64 == (width - self.dims[0]) * self.ty.block_bytes() as u64);
        let row = self.dims[0] as usize * self.ty.block_bytes();
        self.bytes = self
            .bytes
            .chunks_exact(row)
            .flat_map(|row| row.iter().chain(fill).copied())
            .collect();
        self.dims[0] = width;
        Ok(())
    }
}

/// The block number N of a tensor called `blk.N.…`.
#[must_use]
pub fn block_of(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix("blk.")?.split_once('.')?;
    number.parse().ok()
}

fn write(path: &Path, metadata: &[(String, Value)], tensors: &[&DraftTensor]) -> Result<()> {
    let mut writer = GgufWriter::new();
    for (key, value) in metadata {
        writer.add(key, value.clone())?;
    }
    for tensor in tensors {
        writer.add_tensor(&tensor.name, &tensor.dims, tensor.ty)?;
    }
    let mut data = tensors.iter();
    writer.write_file(path, |_, out| match data.next() {
        Some(tensor) => out.write_all(&tensor.bytes),
        None => Ok(()),
    })?;
    Ok(())
}
