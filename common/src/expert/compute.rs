//! The routed experts' feed-forward: gate and up rows of a tile, SwiGLU, the router's weight, one
//! rounding of the inner block, and the tile's column strip of down.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::layer::ExpertLayer;
use super::schedule::{PairGroup, Schedule, SumStep};
use super::{BatchError, ExpertBatch, ExpertInput};
use crate::kernels::{ActRow, Activations, Kernels, Matrix};
use crate::math::{add_row, add_row_within, silu};
use crate::quant::{ActivationFormat, GgmlType};
use crate::tiles::{Span, TileRect};

/// Most rows of down that one task computes for all pairs: long enough to be a stream from memory,
/// and so that the activations, which every task reads, are read seldom.
const MOST_DOWN_ROWS: usize = 256;

/// Fewest rows of down in one task, which still are a stream where many threads share them.
const FEWEST_DOWN_ROWS: usize = 64;

/// Fewest tasks for each thread, so that no thread waits long for the last one.
const TASKS_PER_THREAD: usize = 4;

/// gate = silu(min(gate, clamp)) · clamp(up, ±clamp) · weight, elementwise.
#[inline(always)]
pub fn swiglu(gate: &mut [f32], up: &[f32], clamp: f32, weight: f32) {
    for (g, &u) in gate.iter_mut().zip(up) {
        *g = swiglu_one(*g, u, clamp, weight);
    }
}

#[inline(always)]
fn swiglu_one(gate: f32, up: f32, clamp: f32, weight: f32) -> f32 {
    let gate = if gate > clamp { clamp } else { gate };
    // Spelled out, since f32::max would turn NaN into a number.
    let up = if up > clamp {
        clamp
    } else if up < -clamp {
        -clamp
    } else {
        up
    };
    silu(gate) * up * weight
}

/// Buffers of [`super::ExpertStore::compute`], which grow with the batches and are kept between
/// calls.
#[derive(Debug, Default)]
pub struct ExpertScratch {
    schedule: Schedule,
    /// The input in the layouts of gate and up, where it came as plain values.
    gate_input: Activations,
    up_input: Activations,
    /// One for each (expert, block), experts outermost.
    inner: Vec<InnerTask>,
    /// One for each range of down rows: output rows x rows of the range.
    outputs: Vec<Vec<f32>>,
}

/// One block of one expert, for all of its pairs.
#[derive(Debug, Default)]
struct InnerTask {
    /// Pairs x features of the block: the products of gate, then SwiGLU.
    gate: Vec<f32>,
    /// Pairs x features of the block.
    up: Vec<f32>,
    /// What down multiplies.
    activations: Activations,
}

/// Per-thread buffers of the down projection.
#[derive(Default)]
struct DownScratch {
    /// Of one expert: pairs x blocks x rows of the range.
    contributions: Vec<f32>,
    /// Slots x blocks x rows of the range.
    waiting: Vec<f32>,
}

thread_local! {
    static DOWN: RefCell<DownScratch> = RefCell::default();
}

/// Appends the rows of one rectangle to `out`. Returns the number of expert block operations:
/// (token, chosen expert, block) triples.
pub(super) fn compute_rect(
    kernels: Kernels,
    layer: &ExpertLayer,
    batch: &ExpertBatch,
    rect: TileRect,
    scratch: &mut ExpertScratch,
    out: &mut Vec<f32>,
) -> Result<u64, BatchError> {
    let ExpertScratch {
        schedule,
        gate_input,
        up_input,
        inner,
        outputs,
    } = scratch;
    schedule.plan(rect, batch);
    let blocks = rect.blocks.len() as usize;
    let inputs = Inputs::new(layer, batch, gate_input, up_input)?;
    let tasks = schedule.groups.len() * blocks;
    inner.resize_with(tasks.max(inner.len()), InnerTask::default);
    let compute = RectCompute {
        kernels,
        layer,
        schedule,
        rect,
        blocks,
    };
    compute.inner(batch, &inputs, &mut inner[..tasks])?;
    compute.down(&inner[..tasks], outputs, out)?;
    Ok((schedule.pairs.len() * blocks) as u64)
}

/// The batch's input as rows for gate and for up.
struct Inputs<'a> {
    gate: Vec<ActRow<'a>>,
    up: Vec<ActRow<'a>>,
}

impl<'a> Inputs<'a> {
    fn new(
        layer: &ExpertLayer,
        batch: &'a ExpertBatch,
        gate_input: &'a mut Activations,
        up_input: &'a mut Activations,
    ) -> Result<Self, BatchError> {
        let wanted = |ty: GgmlType| {
            if batch.round {
                ty.activation_format()
            } else {
                ActivationFormat::F32
            }
        };
        let (gate, up) = (wanted(layer.gate.ty()), wanted(layer.up.ty()));
        let found = batch.input.format();
        let hidden = batch.input.elements() / batch.tokens;
        match &batch.input {
            input if gate == found && up == found => {
                let rows: Vec<_> = (0..batch.tokens).map(|t| input.row(t, hidden)).collect();
                Ok(Inputs {
                    gate: rows.clone(),
                    up: rows,
                })
            }
            ExpertInput::F32(values) => {
                gate_input.set(gate, hidden, values);
                up_input.set(up, hidden, values);
                let rows = |a: &'a Activations| (0..batch.tokens).map(|t| a.row(t)).collect();
                Ok(Inputs {
                    gate: rows(gate_input),
                    up: rows(up_input),
                })
            }
            _ => Err(BatchError::Format {
                layer: batch.layer,
                found,
                expected: if gate == found { up } else { gate },
            }),
        }
    }
}

/// A rectangle of one layer, with what was planned for it.
struct RectCompute<'a> {
    kernels: Kernels,
    layer: &'a ExpertLayer,
    schedule: &'a Schedule,
    rect: TileRect,
    /// Blocks of the rectangle.
    blocks: usize,
}

impl RectCompute<'_> {
    /// Each pair's row out of the tokens' rows.
    fn of_pairs<'r>(&self, rows: &[ActRow<'r>]) -> Vec<ActRow<'r>> {
        self.schedule
            .pairs
            .iter()
            .map(|p| rows[p.token as usize])
            .collect()
    }

    /// Gate, up and SwiGLU of every (expert, block), in the format that down multiplies with.
    fn inner(
        &self,
        batch: &ExpertBatch,
        inputs: &Inputs<'_>,
        tasks: &mut [InnerTask],
    ) -> Result<(), BatchError> {
        let gate_rows = self.of_pairs(&inputs.gate);
        let up_rows = self.of_pairs(&inputs.up);
        let format = if batch.round {
            self.layer.down.ty().activation_format()
        } else {
            ActivationFormat::F32
        };
        tasks.par_iter_mut().enumerate().try_for_each(|(i, task)| {
            let group = &self.schedule.groups[i / self.blocks];
            let features = self.features(i);
            let width = features.len();
            let pairs = group.pairs.clone();
            let count = pairs.len();
            task.gate.resize(width * count, 0.0);
            task.up.resize(width * count, 0.0);
            let gate = self.layer.gate.expert(group.expert)?;
            let up = self.layer.up.expert(group.expert)?;
            let next = self.gate_rows(i + 1)?;
            let up_next = up.row_range(features.clone());
            let (gate_xs, up_xs) = (&gate_rows[pairs.clone()], &up_rows[pairs.clone()]);
            let k = self.kernels;
            k.multiply_rows(
                &gate,
                features.clone(),
                gate_xs,
                Some(&up_next),
                &mut task.gate,
            );
            k.multiply_rows(&up, features, up_xs, next.as_ref(), &mut task.up);
            let both = task
                .gate
                .chunks_exact_mut(width)
                .zip(task.up.chunks_exact(width));
            for ((gate, up), pair) in both.zip(&self.schedule.pairs[pairs]) {
                swiglu(gate, up, self.layer.clamp, pair.weight);
            }
            task.activations.set(format, width, &task.gate);
            Ok(())
        })
    }

    /// The inner features of task `i`, among those that the layer holds.
    fn features(&self, i: usize) -> Range<usize> {
        let block = self.rect.blocks.start + (i % self.blocks) as u32;
        self.layer.features(Span::new(block, block + 1))
    }

    /// The rows of gate that inner task `i` begins with; `None` after the last task.
    fn gate_rows(&self, i: usize) -> Result<Option<Matrix<'_>>, BatchError> {
        let Some(group) = self.schedule.groups.get(i / self.blocks) else {
            return Ok(None);
        };
        let gate = self.layer.gate.expert(group.expert)?;
        Ok(Some(gate.row_range(self.features(i))))
    }

    /// Down in ranges of rows, each range for all pairs, added by the tree.
    fn down(
        &self,
        tasks: &[InnerTask],
        outputs: &mut Vec<Vec<f32>>,
        out: &mut Vec<f32>,
    ) -> Result<(), BatchError> {
        let hidden = self.layer.hidden;
        let rows = self.schedule.rows.len();
        let per_task = hidden / (TASKS_PER_THREAD * rayon::current_num_threads());
        let range_rows = (per_task / FEWEST_DOWN_ROWS * FEWEST_DOWN_ROWS)
            .clamp(FEWEST_DOWN_ROWS, MOST_DOWN_ROWS);
        let ranges = hidden.div_ceil(range_rows);
        outputs.resize_with(ranges.max(outputs.len()), Vec::new);
        // Expert by expert, block by block, pair by pair.
        let mids: Vec<ActRow<'_>> = tasks
            .iter()
            .flat_map(|t| (0..t.activations.rows()).map(|i| t.activations.row(i)))
            .collect();
        let strips = self.strips()?;
        outputs[..ranges]
            .par_iter_mut()
            .enumerate()
            .for_each(|(range, output)| {
                let first = range * range_rows;
                let height = range_rows.min(hidden - first);
                output.resize(rows * height, 0.0);
                DOWN.with_borrow_mut(|down| {
                    self.down_rows(&strips, &mids, first..first + height, down, output);
                });
            });
        let start = out.len();
        out.resize(start + rows * hidden, 0.0);
        for (row, out) in out[start..].chunks_exact_mut(hidden).enumerate() {
            for (part, output) in out.chunks_mut(range_rows).zip(&*outputs) {
                part.copy_from_slice(&output[row * part.len()..][..part.len()]);
            }
        }
        Ok(())
    }

    /// The columns of down that belong to the rectangle, expert by expert.
    fn strips(&self) -> Result<Vec<Matrix<'_>>, BatchError> {
        let features = self.layer.features(self.rect.blocks);
        let strip = |expert| {
            let down = self.layer.down.expert(expert)?;
            self.layer.down.strip(&down, features.clone())
        };
        self.schedule
            .groups
            .iter()
            .map(|group| strip(group.expert))
            .collect()
    }

    /// Where the blocks of a group's pairs are among those of all pairs.
    fn of_group(&self, group: &PairGroup) -> Range<usize> {
        group.pairs.start * self.blocks..group.pairs.end * self.blocks
    }

    /// A range of down rows for every output row.
    fn down_rows(
        &self,
        strips: &[Matrix<'_>],
        mids: &[ActRow<'_>],
        rows: Range<usize>,
        down: &mut DownScratch,
        output: &mut [f32],
    ) {
        let DownScratch {
            contributions,
            waiting,
        } = down;
        let height = rows.len();
        let of_pair = self.blocks * height;
        waiting.resize(self.schedule.slots * of_pair, 0.0);
        for (g, group) in self.schedule.groups.iter().enumerate() {
            let next = match strips.get(g + 1) {
                Some(next) => Some(next.row_range(rows.clone())),
                // The first rows of the next range.
                None => strips[0]
                    .rows()
                    .checked_sub(rows.end)
                    .map(|left| strips[0].row_range(rows.end..rows.end + left.min(height))),
            };
            if let Some(group) = self.schedule.groups.get(g + 1) {
                let soon = &mids[self.of_group(group)];
                soon.iter().for_each(|mid| self.kernels.prefetch(*mid));
            }
            let pairs = group.pairs.clone();
            let mids = &mids[self.of_group(group)];
            contributions.resize(pairs.len() * of_pair, 0.0);
            let k = self.kernels;
            k.multiply_rows_by_block(&strips[g], rows.clone(), mids, next.as_ref(), contributions);
            let steps = &self.schedule.steps[group.steps.clone()];
            k.vectorised(|| settle(steps, pairs.start, contributions, waiting, of_pair));
        }
        for (row, sum) in self
            .schedule
            .rows
            .iter()
            .zip(output.chunks_exact_mut(height))
        {
            let first = (row.blocks.start - self.rect.blocks.start) as usize;
            let at = |block: usize| row.slot * of_pair + (first + block) * height;
            for &(into, from) in &self.schedule.block_adds[row.block_adds.clone()] {
                add_row_within(waiting, at(into), at(from), height);
            }
            sum.copy_from_slice(&waiting[at(0)..][..height]);
        }
    }
}

/// Does the sums that the pairs from `first` on make possible; `contributions` are theirs.
#[inline(always)]
fn settle(
    steps: &[SumStep],
    first: usize,
    contributions: &[f32],
    waiting: &mut [f32],
    of_pair: usize,
) {
    for step in steps {
        match *step {
            SumStep::Keep { pair, slot } => {
                let new = &contributions[(pair - first) * of_pair..][..of_pair];
                waiting[slot * of_pair..][..of_pair].copy_from_slice(new);
            }
            SumStep::Add { pair, slot } => {
                let new = &contributions[(pair - first) * of_pair..][..of_pair];
                add_row(&mut waiting[slot * of_pair..][..of_pair], new);
            }
            SumStep::Merge { from, into } => {
                add_row_within(waiting, into * of_pair, from * of_pair, of_pair);
            }
        }
    }
}
