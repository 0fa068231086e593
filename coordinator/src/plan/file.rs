//! The plan as a TOML file: which model, which machines, and who holds which tiles.
//!
//! ```toml
//! version = 1
//!
//! [model]
//! name = "DeepSeek V4 Flash"
//! fingerprint = "…"        # 64 hex digits; absent where no model file was at hand
//! layers = 43
//! experts = 256
//! blocks = 8
//! cut = "1x2"              # for people: expert groups x block strips, where it is even
//!
//! [[node]]
//! name = "a"
//! address = "10.0.0.1:50051"
//! memory = "96G"
//!
//! [[holding]]              # as many a node as it has runs of layers that hold the same
//! node = "a"
//! layers = "0..43"
//! tiles = ["experts=0..256,blocks=0..4"]
//!
//! [[replica]]              # which of them the node only stands by for
//! node = "a"
//! layers = "0..43"
//! tiles = ["experts=0..256,blocks=2..4"]
//! ```

mod raw;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use ds4_common::model::Fingerprint;
use ds4_common::tiles::{Grid, GridCut, Holdings, TileRect};

use super::cover::pieces;
use super::machine::{CoordinatorMachine, Machine};

/// Version of the file's fields and their meaning.
pub const VERSION: u32 = 1;

/// Bytes of a plan file: far more than any cluster needs.
const MAX_BYTES: u64 = 4 << 20;

/// Nodes of a plan.
pub const MAX_NODES: usize = 32;

/// A checked plan: names are unique and legal, tiles are inside of the grid, and, unless
/// `partial`, every tile of every layer is held by some node.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanFile {
    pub model: PlanModel,
    pub coordinator: CoordinatorMachine,
    /// In the order of the file, at least one.
    pub nodes: Vec<PlanNode>,
    /// Whether the coordinator computes tiles that no node holds from its own model file.
    pub partial: bool,
}

/// The model that is spread.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanModel {
    pub name: String,
    /// Absent where the plan was made without the model's file.
    pub fingerprint: Option<Fingerprint>,
    pub layers: usize,
    pub grid: Grid,
    /// The even cut that the plan is, if it is one.
    pub cut: Option<GridCut>,
}

/// A node and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanNode {
    pub machine: Machine,
    /// Everything that it holds.
    pub holdings: Holdings,
    /// The part of it that other nodes compute as long as they are there.
    pub replicas: Holdings,
}

/// A plan that cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum PlanFileError {
    #[error("{}: {problem}", file.display())]
    Io {
        file: PathBuf,
        problem: std::io::Error,
    },
    #[error("{} has more than {most} bytes", file.display())]
    TooLarge { file: PathBuf, most: u64 },
    /// No TOML, a field that is missing, unknown or of another type.
    #[error("{}, line {line}: {problem}", file.display())]
    Syntax {
        file: PathBuf,
        line: usize,
        problem: String,
    },
    #[error("{} is a plan of version {found}, this program reads version {VERSION}", file.display())]
    Version { file: PathBuf, found: u32 },
    /// A value that fits its type but not the plan.
    #[error("{}: {place}: {problem}", file.display())]
    Value {
        file: PathBuf,
        /// The node, the layers and the field.
        place: String,
        problem: String,
    },
    #[error(
        "{}: no node holds {rect} of layer {layer} (`partial = true` leaves such tiles to the \
         coordinator)",
        file.display()
    )]
    Uncovered {
        file: PathBuf,
        layer: usize,
        rect: TileRect,
    },
    #[error("the plan is for {plan}, the model has {model}")]
    OtherModel { plan: String, model: String },
}

impl PlanFile {
    /// # Errors
    /// The file cannot be read, or names what in it is wrong.
    pub fn read(path: &Path) -> Result<Self, PlanFileError> {
        Self::parse(&super::read_text(path, MAX_BYTES)?, path)
    }

    /// As [`Self::read`], of a text; `source` is the path that messages name.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn parse(text: &str, source: &Path) -> Result<Self, PlanFileError> {
        raw::parse(text, source)
    }

    /// The form that [`Self::read`] reads.
    #[must_use]
    pub fn to_toml(&self) -> String {
        raw::show(self)
    }

    /// Replaces `path` at once or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), PlanFileError> {
        let failed = |problem| PlanFileError::Io {
            file: path.to_path_buf(),
            problem,
        };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        std::fs::write(&partial, self.to_toml())
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(failed)
    }

    /// Every node's name and tiles, in the order of the file.
    #[must_use]
    pub fn nodes(&self) -> Vec<(String, Holdings)> {
        let node = |n: &PlanNode| (n.machine.name.clone(), n.holdings.clone());
        self.nodes.iter().map(node).collect()
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&PlanNode> {
        self.nodes.iter().find(|node| node.machine.name == name)
    }

    /// Refuses another model than the plan's. A plan without a fingerprint fits every model of its
    /// shape.
    ///
    /// # Errors
    /// Names both sides' values.
    pub fn check_model(
        &self,
        fingerprint: &Fingerprint,
        layers: usize,
        grid: Grid,
    ) -> Result<(), PlanFileError> {
        let shape = |layers: usize, grid: Grid| format!("{layers} layers of {grid}");
        let ours = &self.model;
        let (plan, model) = if (ours.layers, ours.grid) != (layers, grid) {
            (shape(ours.layers, ours.grid), shape(layers, grid))
        } else if let Some(expected) = ours.fingerprint.filter(|f| f != fingerprint) {
            let text = |f: &Fingerprint| format!("the fingerprint {f}");
            (text(&expected), text(fingerprint))
        } else {
            return Ok(());
        };
        Err(PlanFileError::OtherModel { plan, model })
    }

    /// The first tiles that no node holds, and their layer.
    #[must_use]
    pub fn uncovered(&self) -> Option<(usize, TileRect)> {
        let mut last: Option<Vec<&[TileRect]>> = None;
        for layer in 0..self.model.layers {
            let held: Vec<&[TileRect]> =
                self.nodes.iter().map(|n| n.holdings.rects(layer)).collect();
            if last.as_ref() == Some(&held) {
                continue;
            }
            let all = pieces(self.model.grid, &held);
            if let Some(gap) = all.iter().find(|piece| piece.holders.is_empty()) {
                return Some((layer, gap.rect));
            }
            last = Some(held);
        }
        None
    }
}
