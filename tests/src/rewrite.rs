//! Changed copies of GGUF files: other names, other types, other metadata, other files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ds4_common::gguf::{GgufModel, GgufWriter, Value};
use ds4_common::quant::{GgmlType, dequantize_row};

/// A whole GGUF model in memory, to be changed and written.
#[derive(Clone, Debug)]
pub struct Draft {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<DraftTensor>,
}

#[derive(Clone, Debug)]
pub struct DraftTensor {
    pub name: String,
    /// Fastest first.
    pub dims: Vec<u64>,
    pub ty: GgmlType,
    pub bytes: Vec<u8>,
}

impl Draft {
    /// # Errors
    /// The file can't be read as GGUF.
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

    /// Sets a key, whether it was there or not.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Takes a key away.
    ///
    /// # Errors
    /// It is not there, so that the caller would test nothing.
    pub fn remove(&mut self, key: &str) -> Result<Value> {
        let at = self.metadata.iter().position(|(known, _)| known == key);
        Ok(self.metadata.remove(at.context(key.to_owned())?).1)
    }

    /// # Errors
    /// The key is not there.
    pub fn get(&self, key: &str) -> Result<&Value> {
        let found = self.metadata.iter().find(|(known, _)| known == key);
        Ok(&found.context(key.to_owned())?.1)
    }

    /// # Errors
    /// There is no such tensor.
    pub fn tensor_mut(&mut self, name: &str) -> Result<&mut DraftTensor> {
        let found = self.tensors.iter_mut().find(|t| t.name == name);
        found.context(name.to_owned())
    }

    /// Gives every tensor the name that `rename` says; how many changed.
    pub fn rename(&mut self, rename: impl Fn(&str) -> String) -> usize {
        let mut changed = 0;
        for tensor in &mut self.tensors {
            let name = rename(&tensor.name);
            changed += usize::from(name != tensor.name);
            tensor.name = name;
        }
        changed
    }

    /// Stores the tensors that `which` chooses as the F32 values that they stand for; how many
    /// changed.
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

    /// Adds a small F32 tensor.
    pub fn add(&mut self, name: &str, values: &[f32]) {
        self.tensors.push(DraftTensor {
            name: name.to_owned(),
            dims: vec![values.len() as u64],
            ty: GgmlType::F32,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    /// # Errors
    /// This would be no valid file, or it can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let all: Vec<&DraftTensor> = self.tensors.iter().collect();
        write(path, &self.metadata, &all)
    }

    /// Writes `parts` standard split files; all metadata is in the first.
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
        ensure!(paths.len() == parts, "{parts} parts do not come out even");
        Ok(paths)
    }

    /// Writes two files with all metadata each: the blocks before `block` with the embedding, and
    /// the rest.
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
    /// As F32, the same values.
    pub fn widen(&mut self) {
        let elements: u64 = self.dims.iter().product();
        let mut values = vec![0.0; elements as usize];
        dequantize_row(self.ty, &self.bytes, &mut values);
        self.ty = GgmlType::F32;
        self.bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }

    /// Longer rows; what is added to each is `fill`.
    ///
    /// # Errors
    /// The type has blocks, or the rows are that long already.
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

/// The block number of `blk.N.…`.
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
