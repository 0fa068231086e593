//! The fields of the TOML file, their checks, and the way back from a plan to its text.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use ds4_common::model::Fingerprint;
use ds4_common::tiles::{Grid, GridCut, Holdings, TileChoice, TileRect};
use ds4_proto::limits::{MAX_AXIS, MAX_LAYERS};
use serde::{Deserialize, Serialize};

use super::{MAX_NODES, PlanFile, PlanFileError, PlanModel, PlanNode, VERSION, read_text};
use crate::plan::machine::{CoordinatorMachine, NodeMachine, is_name};

const HEADER: &str =
    "# Which node of a ds4 cluster holds which tiles. Written by `ds4-coord plan`.\n\n";

/// The most bytes of a plan file: far more than any cluster needs.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// The one field that files of all versions have.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    version: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    model: RawModel,
    #[serde(default, skip_serializing_if = "is_default")]
    coordinator: CoordinatorMachine,
    node: Vec<NodeMachine>,
    #[serde(default)]
    holding: Vec<RawHolding>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replica: Vec<RawHolding>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    layers: u32,
    experts: u32,
    blocks: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cut: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHolding {
    node: String,
    layers: String,
    tiles: Vec<String>,
}

fn is_default(machine: &CoordinatorMachine) -> bool {
    *machine == CoordinatorMachine::default()
}

/// The file and its text, for errors.
struct PlanSource<'a> {
    file: &'a Path,
    text: &'a str,
}

impl PlanSource<'_> {
    fn syntax(&self, error: &toml::de::Error) -> PlanFileError {
        PlanFileError::syntax(self.file, self.text, error)
    }

    fn value(&self, place: impl Into<String>, problem: impl ToString) -> PlanFileError {
        PlanFileError::Value {
            file: self.file.to_path_buf(),
            place: place.into(),
            problem: problem.to_string(),
        }
    }

    fn bound(&self, place: &str, value: u32, most: u32) -> Result<u32, PlanFileError> {
        if (1..=most).contains(&value) {
            return Ok(value);
        }
        Err(self.value(place, format!("{value} is not between 1 and {most}")))
    }
}

impl PlanFile {
    /// Reads and checks the TOML file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is too large, is of another version, or has a wrong field; see
    /// [`PlanFileError`].
    pub fn read(path: &Path) -> Result<Self, PlanFileError> {
        Self::parse(&read_text(path, MAX_BYTES)?, path)
    }

    /// As [`Self::read`], from a text; `source` is the path that errors name.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, source: &Path) -> Result<Self, PlanFileError> {
        parse(text, source)
    }

    /// The text that [`Self::parse`] reads back as the same plan.
    #[must_use]
    pub fn to_toml(&self) -> String {
        show(self)
    }

    /// Writes the plan to `path`, which is replaced at once or not at all.
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
}

impl PlanFileError {
    /// The line and the reason of an error of the TOML parser, whose own message spans several
    /// lines and quotes the text.
    pub(in crate::plan) fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.as_bytes().iter().take(start);
        PlanFileError::Syntax {
            file: file.to_path_buf(),
            line: 1 + before.filter(|&&byte| byte == b'\n').count(),
            problem: error.message().trim().replace('\n', ", "),
        }
    }
}

fn parse(text: &str, file: &Path) -> Result<PlanFile, PlanFileError> {
    let source = PlanSource { file, text };
    // Comes first, because another version may have other fields.
    let Versioned { version } = toml::from_str(text).map_err(|e| source.syntax(&e))?;
    if version != VERSION {
        let file = file.to_path_buf();
        return Err(PlanFileError::Version {
            file,
            found: version,
        });
    }
    let raw: RawPlan = toml::from_str(text).map_err(|e| source.syntax(&e))?;
    let model = model(&source, &raw.model)?;
    check_nodes(&source, &raw.node)?;
    let held = holdings(&source, &model, &raw.node, &raw.holding)?;
    let copies = holdings(&source, &model, &raw.node, &raw.replica)?;
    let nodes = raw.node.into_iter().zip(held.into_iter().zip(copies));
    let nodes = nodes.map(|(machine, (holdings, replicas))| {
        for layer in 0..model.layers {
            let rects = replicas.rects(layer).iter();
            if let Some(rect) = rects.copied().find(|r| !holdings.covers(layer, *r)) {
                let place = format!("node {}: replica", machine.name);
                let problem = format!("the node does not hold {rect} of layer {layer}");
                return Err(source.value(place, problem));
            }
        }
        Ok(PlanNode {
            machine,
            holdings,
            replicas,
        })
    });
    let nodes = nodes.collect::<Result<Vec<_>, PlanFileError>>()?;
    let plan = PlanFile {
        model,
        coordinator: raw.coordinator,
        nodes,
        partial: raw.partial,
    };
    match plan.uncovered() {
        Some((layer, rect)) if !plan.partial => {
            let file = file.to_path_buf();
            Err(PlanFileError::Uncovered { file, layer, rect })
        }
        _ => Ok(plan),
    }
}

/// The tiles of every node, as `listed` in the tables of one kind.
fn holdings(
    source: &PlanSource<'_>,
    model: &PlanModel,
    nodes: &[NodeMachine],
    listed: &[RawHolding],
) -> Result<Vec<Holdings>, PlanFileError> {
    let mut tiles = vec![vec![Vec::new(); model.layers]; nodes.len()];
    for holding in listed {
        let named = |machine: &NodeMachine| machine.name == holding.node;
        let Some(node) = nodes.iter().position(named) else {
            let place = format!("holding of node {:?}", holding.node);
            return Err(source.value(place, "no node has this name"));
        };
        add_holding(source, model, holding, &mut tiles[node])?;
    }
    let all = nodes.iter().zip(tiles).map(|(machine, tiles)| {
        Holdings::new(model.grid, tiles)
            .map_err(|e| source.value(format!("node {}", machine.name), e))
    });
    all.collect()
}

fn model(source: &PlanSource<'_>, raw: &RawModel) -> Result<PlanModel, PlanFileError> {
    let fingerprint = raw.fingerprint.as_deref().map(|text| {
        let wrong = || source.value("model.fingerprint", "expected 64 hex digits");
        parse_fingerprint(text).ok_or_else(wrong)
    });
    let grid = Grid {
        experts: source.bound("model.experts", raw.experts, MAX_AXIS)?,
        blocks: source.bound("model.blocks", raw.blocks, MAX_AXIS)?,
    };
    let cut = raw.cut.as_deref().map(|text| {
        let cut: Result<GridCut, _> = text.parse();
        cut.map_err(|e| source.value("model.cut", e))
    });
    Ok(PlanModel {
        name: raw.name.clone(),
        fingerprint: fingerprint.transpose()?,
        layers: source.bound("model.layers", raw.layers, MAX_LAYERS)? as usize,
        grid,
        cut: cut.transpose()?,
    })
}

fn parse_fingerprint(text: &str) -> Option<Fingerprint> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| Some((digit(*high)? * 16 + digit(*low)?) as u8);
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    let whole = rest.is_empty().then_some(&bytes[..])?;
    Fingerprint::try_from(whole).ok()
}

fn check_nodes(source: &PlanSource<'_>, nodes: &[NodeMachine]) -> Result<(), PlanFileError> {
    if nodes.is_empty() || nodes.len() > MAX_NODES {
        let found = format!("found {} nodes, expected 1 to {MAX_NODES}", nodes.len());
        return Err(source.value("node", found));
    }
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    for machine in nodes {
        let name = &machine.name;
        if !is_name(name) {
            let rule = "a name has 1 to 63 letters, digits, '-', '_' and '.', and starts with a \
                        letter or digit";
            return Err(source.value(format!("node {name:?}: name"), rule));
        }
        if !names.insert(name) {
            return Err(source.value(format!("node {name}: name"), "two nodes have this name"));
        }
        if let Some(address) = &machine.address
            && !addresses.insert(address)
        {
            let problem = format!("another node also has the address {address}");
            return Err(source.value(format!("node {name}: address"), problem));
        }
    }
    Ok(())
}

fn add_holding(
    source: &PlanSource<'_>,
    model: &PlanModel,
    holding: &RawHolding,
    tiles: &mut [Vec<TileRect>],
) -> Result<(), PlanFileError> {
    let place = |field: &str| {
        format!(
            "node {}, layers {:?}: {field}",
            holding.node, holding.layers
        )
    };
    let layers = parse_layers(&holding.layers, model.layers)
        .map_err(|problem| source.value(place("layers"), problem))?;
    if let Some(twice) = layers.clone().find(|&l| !tiles[l].is_empty()) {
        let problem = format!("layer {twice} is also in another holding of this node");
        return Err(source.value(place("layers"), problem));
    }
    let choice: Result<TileChoice, _> = holding.tiles.join("+").parse();
    let set = choice
        .and_then(|choice| choice.resolve(model.grid))
        .map_err(|e| source.value(place("tiles"), e))?;
    for layer in layers {
        tiles[layer] = set.rects().to_vec();
    }
    Ok(())
}

/// Reads `START..END`, a range within the model's layers that is not empty.
fn parse_layers(text: &str, layers: usize) -> Result<Range<usize>, String> {
    let parsed = text
        .split_once("..")
        .and_then(|(start, end)| Some(start.trim().parse().ok()?..end.trim().parse().ok()?));
    match parsed {
        Some(range) if !range.is_empty() && range.end <= layers => Ok(range),
        Some(_) => Err(format!("the model has layers 0..{layers}")),
        None => Err("expected START..END".to_owned()),
    }
}

fn show(plan: &PlanFile) -> String {
    let model = &plan.model;
    let raw = RawPlan {
        version: VERSION,
        partial: plan.partial,
        model: RawModel {
            name: model.name.clone(),
            fingerprint: model.fingerprint.map(|f| f.to_string()),
            layers: model.layers as u32,
            experts: model.grid.experts,
            blocks: model.grid.blocks,
            cut: model
                .cut
                .map(|cut| format!("{}x{}", cut.groups, cut.strips)),
        },
        coordinator: plan.coordinator.clone(),
        node: plan.nodes.iter().map(|n| n.machine.clone()).collect(),
        holding: list(plan, |node| &node.holdings),
        replica: list(plan, |node| &node.replicas),
    };
    // Cannot fail: there are only texts, integers and lists of tables.
    let text = toml::to_string(&raw).unwrap_or_default();
    format!("{HEADER}{text}")
}

fn list<'p>(plan: &'p PlanFile, of: impl Fn(&'p PlanNode) -> &'p Holdings) -> Vec<RawHolding> {
    let mut listed = Vec::new();
    for node in &plan.nodes {
        for (layers, set) in of(node).runs() {
            if let Some(set) = set {
                listed.push(RawHolding {
                    node: node.machine.name.clone(),
                    layers: format!("{}..{}", layers.start, layers.end),
                    tiles: set.rects().iter().map(show_rect).collect(),
                });
            }
        }
    }
    listed
}

/// The form that the node's flag `--tiles` takes.
fn show_rect(rect: &TileRect) -> String {
    format!("experts={},blocks={}", rect.experts, rect.blocks)
}
