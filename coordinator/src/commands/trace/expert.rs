//! One expert alone: on every instruction set of this machine and on every node that holds it.

use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ds4_cli::print_line;
use ds4_common::expert::{BatchFields, ExpertBatch, ExpertStore, TileComputer};
use ds4_common::tiles::{Grid, Span, TileRect, TileSet};
use ds4_proto::security::Security;

use super::all_kernels;
use super::report::digest;
use crate::cluster::call_once;
use crate::commands::assembly::Assembly;

/// Longest wait for one node.
const DEADLINE: Duration = Duration::from_secs(60);

/// `LAYER:ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertName {
    /// Layer, from 0.
    pub layer: usize,
    /// Id of the expert in its layer.
    pub expert: u32,
}

impl FromStr for ExpertName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let parsed = parts.and_then(|(layer, expert)| {
            Some(ExpertName {
                layer: layer.parse().ok()?,
                expert: expert.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| "expected LAYER:ID, for example 3:17".to_owned())
    }
}

/// The tiles of one expert, block by block, so that each gives a row of its own.
pub(super) fn tiles(expert: u32, blocks: Range<u32>) -> Vec<TileRect> {
    let tile = |block| TileRect {
        experts: Span::new(expert, expert + 1),
        blocks: Span::new(block, block + 1),
    };
    blocks.map(tile).collect()
}

/// What one place computed.
struct Answer {
    place: String,
    /// Block and row, ascending.
    rows: Vec<(u32, Vec<f32>)>,
}

/// Computes an expert everywhere and prints a line for each place.
///
/// # Errors
/// The expert does not exist, a node does not answer, or a place differs from the scalar kernels on
/// the coordinator's file.
pub(super) async fn compare(
    name: ExpertName,
    batch: &ExpertBatch,
    assembly: &Assembly,
    nodes: &[String],
    security: &Security,
) -> Result<()> {
    let ExpertName { layer, expert } = name;
    let grid = batch.shape().grid;
    ensure!(
        expert < grid.experts,
        "--expert: expert {expert} does not exist: a layer has {}",
        grid.experts
    );
    let routes = batch.routes_of(0);
    let slot = routes.iter().position(|route| route.expert == expert);
    let chosen = match slot {
        Some(slot) => format!("route {slot} of the token"),
        None => "not chosen by the token's router".to_owned(),
    };
    let batch = with_expert(batch, expert)?;
    let weight = batch.routes_of(0)[slot.unwrap_or(0)].weight;
    print_line!("layer {layer} expert {expert}: {chosen}, weight {weight:e}")?;

    let mut answers = here(assembly, &batch, expert, grid)?;
    let expected = assembly.model.expectation()?;
    let mut silent = 0;
    for node in nodes {
        let endpoint = security.endpoint(node)?;
        let choose = |held: &ds4_common::tiles::Holdings| {
            let all = tiles(expert, 0..grid.blocks).into_iter();
            let held = all
                .filter(|tile| held.covers(layer, *tile))
                .collect::<Vec<_>>();
            TileSet::new(grid, held).ok()
        };
        match call_once(node, endpoint, &expected, &batch, choose, DEADLINE).await {
            Ok(Some(found)) => {
                let blocks = found.tiles.rects().iter().map(|rect| rect.blocks.start);
                let rows = found.rows.chunks_exact(batch.shape().hidden);
                answers.push(Answer {
                    place: format!("node {node}"),
                    rows: blocks.zip(rows.map(<[f32]>::to_vec)).collect(),
                });
            }
            Ok(None) => print_line!("{:<28} does not hold it", format!("node {node}"))?,
            Err(error) => {
                silent += 1;
                print_line!("{:<28} no answer: {}", format!("node {node}"), error.reason)?;
            }
        }
    }
    let differing = print_table(&answers)?;
    match (differing.is_empty(), silent) {
        (false, _) => bail!(
            "layer {layer} expert {expert} differs on {}",
            differing.join(", ")
        ),
        (true, 0) => Ok(()),
        (true, _) => bail!("{silent} of {} nodes did not answer", nodes.len()),
    }
}

/// The batch, with `expert` in the place of the first route unless a route leads to it.
fn with_expert(batch: &ExpertBatch, expert: u32) -> Result<ExpertBatch> {
    let mut fields = BatchFields::clone(batch);
    if !fields.routes.iter().any(|route| route.expert == expert) {
        let first = fields
            .routes
            .first_mut()
            .context("a token without routes")?;
        first.expert = expert;
    }
    Ok(ExpertBatch::new(*batch.shape(), fields)?)
}

/// With every instruction set, from the coordinator's own file.
fn here(assembly: &Assembly, batch: &ExpertBatch, expert: u32, grid: Grid) -> Result<Vec<Answer>> {
    let model = &assembly.model;
    let store = ExpertStore::new(&model.hp, &model.tensors)?;
    let tiles = tiles(expert, 0..grid.blocks);
    let mut answers = Vec::new();
    for kernels in all_kernels() {
        let mut out = Vec::new();
        let mut computer = TileComputer::new(store.clone(), kernels);
        let engine = &assembly.engine;
        engine.on_threads(|| computer.compute(batch, &tiles, &mut out))?;
        let rows = out.chunks_exact(store.hidden()).map(<[f32]>::to_vec);
        answers.push(Answer {
            place: kernels.name().to_owned(),
            rows: (0..).zip(rows).collect(),
        });
    }
    Ok(answers)
}

/// Prints all places, and returns those that differ from the first.
fn print_table(answers: &[Answer]) -> Result<Vec<String>> {
    let Some((definition, _)) = answers.split_first() else {
        return Ok(Vec::new());
    };
    let mut differing = Vec::new();
    for answer in answers {
        let all: Vec<f32> = answer
            .rows
            .iter()
            .flat_map(|(_, row)| row.clone())
            .collect();
        let blocks = match &answer.rows[..] {
            [] => "no block".to_owned(),
            [(first, _), .., (last, _)] => format!("blocks {first}..{}", last + 1),
            [(only, _)] => format!("block {only}"),
        };
        let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let differs = |(block, row): &&(u32, Vec<f32>)| {
            let defined = definition.rows.iter().find(|(other, _)| other == block);
            defined.is_none_or(|(_, defined)| bits(defined) != bits(row))
        };
        let wrong = answer.rows.iter().filter(differs);
        let wrong: Vec<String> = wrong.map(|(block, _)| block.to_string()).collect();
        let verdict = match wrong.is_empty() {
            true => "same".to_owned(),
            false => {
                differing.push(format!("{} (block {})", answer.place, wrong.join(", ")));
                format!("DIFFERS in block {}", wrong.join(", "))
            }
        };
        print_line!(
            "{:<28} {blocks:<14} {} {verdict}",
            answer.place,
            digest(&all)
        )?;
    }
    Ok(differing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_is_named_by_layer_and_id() {
        let parsed = "3:17".parse();
        assert_eq!(
            parsed,
            Ok(ExpertName {
                layer: 3,
                expert: 17
            })
        );
        for bad in ["3", "3:", ":1", "a:b", "3:1:2", "-1:2"] {
            assert!(bad.parse::<ExpertName>().is_err(), "{bad}");
        }
    }
}
