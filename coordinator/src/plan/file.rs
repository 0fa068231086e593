//! The plan as a TOML file: the model, the machines, and which node holds which tiles.
//!
//! ```toml
//! version = 1
//!
//! [model]
//! name = "DeepSeek V4 Flash"
//! fingerprint = "…"        # 64 hex digits; absent if there was no model file
//! layers = 43
//! experts = 256
//! blocks = 8
//! cut = "1x2"              # for people: expert groups x block strips, if the cut is even
//!
//! [[node]]
//! name = "a"
//! address = "10.0.0.1:50051"
//! memory = "96G"
//!
//! [[holding]]              # one for each run of layers in which the node holds the same
//! node = "a"
//! layers = "0..43"
//! tiles = ["experts=0..256,blocks=0..4"]
//!
//! [[replica]]              # the part of them that the node only stands by for
//! node = "a"
//! layers = "0..43"
//! tiles = ["experts=0..256,blocks=2..4"]
//! ```

mod raw;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::{Path, PathBuf};

use ds4_common::model::Fingerprint;
use ds4_common::tiles::{Grid, GridCut, Holdings, TileRect};

use super::held_rects::held_rects;
use super::machine::{CoordinatorMachine, NodeMachine};

/// Version of the file format: of its fields and their meaning.
pub const VERSION: u32 = 1;

/// The most nodes of a plan.
pub const MAX_NODES: usize = 32;

/// A checked plan: node names are valid and unique, tiles lie inside the grid, and, unless
/// `partial`, every tile of every layer is held by at least one node.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanFile {
    /// The model that is spread over the nodes.
    pub model: PlanModel,
    /// The coordinator's machine.
    pub coordinator: CoordinatorMachine,
    /// The nodes, at least one and at most [`MAX_NODES`], in the order of the file.
    pub nodes: Vec<PlanNode>,
    /// Whether tiles may be held by no node; the coordinator computes these from its own model
    /// file.
    pub partial: bool,
}

/// The model that a plan is for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanModel {
    /// The model's name, for people.
    pub name: String,
    /// Identifies the weights; absent if the plan was made without a model file.
    pub fingerprint: Option<Fingerprint>,
    /// Number of layers.
    pub layers: usize,
    /// The tiles of one layer.
    pub grid: Grid,
    /// The cut into equal rectangles that the placement follows, if it follows one.
    pub cut: Option<GridCut>,
}

/// A node and the tiles that it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanNode {
    /// The node's machine; its name identifies the node.
    pub machine: NodeMachine,
    /// All tiles that the node holds.
    pub holdings: Holdings,
    /// The tiles among them of which another node holds the primary replica: this node stands by.
    pub replicas: Holdings,
}

/// Why a plan or a list of machines cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum PlanFileError {
    /// The file cannot be read or written.
    #[error("{}: {problem}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        problem: std::io::Error,
    },
    /// The file is larger than such files need to be.
    #[error("{} is larger than {most} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit in bytes.
        most: u64,
    },
    /// Not TOML, or a field that is missing, unknown or of another type.
    #[error("{}, line {line}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the TOML parser reports.
        problem: String,
    },
    /// A plan in a format that this program does not read.
    #[error("{}: plan version {found} is not supported, expected version {VERSION}", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A value that fits its type but not the plan.
    #[error("{}: {place}: {problem}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The node, the layers and the field.
        place: String,
        /// What is wrong with the value.
        problem: String,
    },
    /// A tile that no node holds, in a plan that is not `partial`.
    #[error(
        "{}: no node holds {rect} of layer {layer} (`partial = true` leaves such tiles to the \
         coordinator)",
        file.display()
    )]
    Uncovered {
        /// The file.
        file: PathBuf,
        /// The layer, from 0.
        layer: usize,
        /// The tiles.
        rect: TileRect,
    },
    /// The plan was made for other weights or another shape.
    #[error("the plan is for {plan}, but the model has {model}")]
    OtherModel {
        /// The plan's shape or fingerprint.
        plan: String,
        /// The model's.
        model: String,
    },
}

/// Reads a text file of at most `most` bytes.
pub(super) fn read_text(path: &Path, most: u64) -> Result<String, PlanFileError> {
    let file = || path.to_path_buf();
    let failed = |problem| PlanFileError::Io {
        file: file(),
        problem,
    };
    let mut text = String::new();
    let opened = std::fs::File::open(path).map_err(failed)?;
    let read = opened.take(most + 1).read_to_string(&mut text);
    if read.map_err(failed)? as u64 > most {
        return Err(PlanFileError::TooLarge { file: file(), most });
    }
    Ok(text)
}

impl PlanFile {
    /// The name and the tiles of every node, in the order of the file.
    #[must_use]
    pub fn nodes(&self) -> Vec<(String, Holdings)> {
        let node = |n: &PlanNode| (n.machine.name.clone(), n.holdings.clone());
        self.nodes.iter().map(node).collect()
    }

    /// The node called `name`, if there is one.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&PlanNode> {
        self.nodes.iter().find(|node| node.machine.name == name)
    }

    /// Checks that a model is the one that the plan is for. A plan without a fingerprint fits every
    /// model of its shape.
    ///
    /// # Errors
    /// [`PlanFileError::OtherModel`].
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

    /// The first layer with tiles that no node holds, and a rectangle of such tiles.
    #[must_use]
    pub fn uncovered(&self) -> Option<(usize, TileRect)> {
        let mut last: Option<Vec<&[TileRect]>> = None;
        for layer in 0..self.model.layers {
            let held: Vec<&[TileRect]> =
                self.nodes.iter().map(|n| n.holdings.rects(layer)).collect();
            if last.as_ref() == Some(&held) {
                continue;
            }
            let all = held_rects(self.model.grid, &held);
            if let Some(gap) = all.iter().find(|rect| rect.nodes.is_empty()) {
                return Some((layer, gap.rect));
            }
            last = Some(held);
        }
        None
    }
}
