//! The reference models, what independent engines compute from them, and how to compare.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A reference model: `a` has four layers, `b` starts as Flash does, `w` has eight tile blocks.
#[derive(Clone, Copy, Debug)]
pub struct Reference(
    /// Name of its folder in `tests/golden` and of its file.
    pub &'static str,
);

/// All reference models.
pub const ALL: [Reference; 3] = [
    Reference("tiny-a"),
    Reference("tiny-b"),
    Reference("tiny-w"),
];

/// An array from a `.npy` file, row-major.
#[derive(Clone, Debug)]
pub struct Array<T> {
    /// Length of each axis, the slowest first.
    pub shape: Vec<usize>,
    /// As many values as the product of `shape`.
    pub values: Vec<T>,
}

impl Reference {
    /// The folder with the model and what was computed from it.
    #[must_use]
    pub fn folder(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("golden")
            .join(self.0)
    }

    /// The GGUF file.
    #[must_use]
    pub fn model(self) -> PathBuf {
        self.folder().join(format!("{}.gguf", self.0))
    }

    /// Token ids of `text` (a chat and its greedy continuation) or `rand`.
    ///
    /// # Errors
    /// The file is missing or is not a list of ids.
    pub fn tokens(self, name: &str) -> Result<Vec<u32>> {
        let path = self.folder().join(format!("{name}.tokens.json"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Prompt length of `text`, and the ids that greedy decoding continues it with.
    ///
    /// # Errors
    /// The file is missing or malformed.
    pub fn greedy(self) -> Result<(usize, Vec<u32>)> {
        let text = std::fs::read_to_string(self.folder().join("greedy.json"))?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let prompt = json["prompt_tokens"].as_u64().context("prompt_tokens")? as usize;
        Ok((prompt, serde_json::from_value(json["greedy_ids"].clone())?))
    }

    /// The f32 array in `file`.
    ///
    /// # Errors
    /// The file is missing or is not an f32 array.
    pub fn floats(self, file: &str) -> Result<Array<f32>> {
        read_npy(&self.folder().join(file))
    }

    /// The i32 array in `file`.
    ///
    /// # Errors
    /// The file is missing or is not an i32 array.
    pub fn ints(self, file: &str) -> Result<Array<i32>> {
        read_npy(&self.folder().join(file))
    }
}

fn read_npy<T: npyz::Deserialize>(path: &Path) -> Result<Array<T>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let npy = npyz::NpyFile::new(&bytes[..])?;
    let shape = npy.shape().iter().map(|&d| d as usize).collect();
    Ok(Array {
        shape,
        values: npy.into_vec()?,
    })
}

/// How far logits are from the reference, over all positions.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// The largest absolute difference of two logits.
    pub max_abs: f32,
    /// Median over positions of the RMS over the vocabulary, relative to the standard deviation
    /// of all reference logits.
    pub relative_rms_median: f64,
    /// Share of positions with the same arg-max.
    pub argmax_agreement: f64,
}

/// Compares `found` with the reference `want`, both (positions x `vocab`).
///
/// # Errors
/// The two differ in length.
pub fn distance(found: &[f32], want: &[f32], vocab: usize) -> Result<Distance> {
    ensure!(
        found.len() == want.len(),
        "{} logits instead of {}",
        found.len(),
        want.len()
    );
    let mean = want.iter().map(|&v| f64::from(v)).sum::<f64>() / want.len() as f64;
    let variance = want
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>()
        / want.len() as f64;
    let rows = found.chunks_exact(vocab).zip(want.chunks_exact(vocab));
    let mut rms: Vec<f64> = rows
        .clone()
        .map(|(f, w)| {
            let square: f64 = f.iter().zip(w).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            (square / vocab as f64 / variance).sqrt()
        })
        .collect();
    rms.sort_by(f64::total_cmp);
    let agree = rows.filter(|(f, w)| argmax(f) == argmax(w)).count();
    Ok(Distance {
        max_abs: found
            .iter()
            .zip(want)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max),
        relative_rms_median: rms[rms.len() / 2],
        argmax_agreement: agree as f64 / rms.len() as f64,
    })
}

/// Index of the largest value; the lowest index among equal ones.
#[must_use]
pub fn argmax(row: &[f32]) -> usize {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&v| v == best).unwrap_or(0)
}
