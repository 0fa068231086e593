//! One layer's routed-expert work for a batch of tokens: a pure function's argument.

use std::ops::Range;

use crate::kernels::{ActRow, Activations};
use crate::quant::{ActivationFormat, BlockQ8, BlockQ8K};
use crate::tiles::{Grid, Subtree, TileRect};

/// A chosen expert and the router's weight for it, which multiplies before the down projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    pub expert: u32,
    pub weight: f32,
}

/// The normed layer input, quantised once by the coordinator for all experts.
#[derive(Clone, Debug, PartialEq)]
pub enum ExpertInput {
    F32(Vec<f32>),
    Q8(Vec<BlockQ8>),
    Q8K(Vec<BlockQ8K>),
}

impl ExpertInput {
    #[must_use]
    pub fn format(&self) -> ActivationFormat {
        match self {
            ExpertInput::F32(_) => ActivationFormat::F32,
            ExpertInput::Q8(_) => ActivationFormat::Q8,
            ExpertInput::Q8K(_) => ActivationFormat::Q8K,
        }
    }

    /// A copy of an activation matrix, as it travels.
    #[must_use]
    pub fn from_activations(activations: &Activations) -> Self {
        let mut input = match activations.format() {
            ActivationFormat::F32 => ExpertInput::F32(Vec::new()),
            ActivationFormat::Q8 => ExpertInput::Q8(Vec::new()),
            ActivationFormat::Q8K => ExpertInput::Q8K(Vec::new()),
        };
        for row in (0..activations.rows()).map(|i| activations.row(i)) {
            match (&mut input, row) {
                (ExpertInput::F32(all), ActRow::F32(row)) => all.extend_from_slice(row),
                (ExpertInput::Q8(all), ActRow::Q8(row)) => all.extend_from_slice(row),
                (ExpertInput::Q8K(all), ActRow::Q8K(row)) => all.extend_from_slice(row),
                _ => unreachable!("a matrix has rows of its own format"),
            }
        }
        input
    }

    /// The row of one token, `hidden` values wide.
    #[must_use]
    pub fn row(&self, token: usize, hidden: usize) -> ActRow<'_> {
        match self {
            ExpertInput::F32(v) => ActRow::F32(&v[token * hidden..(token + 1) * hidden]),
            ExpertInput::Q8(v) => {
                let blocks = hidden / 32;
                ActRow::Q8(&v[token * blocks..(token + 1) * blocks])
            }
            ExpertInput::Q8K(v) => {
                let blocks = hidden / 256;
                ActRow::Q8K(&v[token * blocks..(token + 1) * blocks])
            }
        }
    }

    /// Values held, counted in activations.
    #[must_use]
    pub fn elements(&self) -> usize {
        match self {
            ExpertInput::F32(v) => v.len(),
            ExpertInput::Q8(v) => v.len() * 32,
            ExpertInput::Q8K(v) => v.len() * 256,
        }
    }
}

/// The routed-expert work of one layer for `tokens` tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertBatch {
    pub layer: usize,
    pub tokens: usize,
    /// Experts a token chose.
    pub experts_used: usize,
    /// `tokens * experts_used`, a token's in slot order.
    pub routes: Vec<Route>,
    /// `tokens` rows of `hidden` values.
    pub input: ExpertInput,
    /// Whether the inner activation is quantised before a quantised down projection.
    pub round: bool,
}

impl ExpertBatch {
    /// The routes of one token.
    #[must_use]
    pub fn routes_of(&self, token: usize) -> &[Route] {
        &self.routes[token * self.experts_used..(token + 1) * self.experts_used]
    }

    /// The work of some of the tokens alone.
    #[must_use]
    pub fn part(&self, tokens: Range<usize>) -> ExpertBatch {
        let input = |elements: usize| {
            let row = elements / self.tokens.max(1);
            tokens.start * row..tokens.end * row
        };
        ExpertBatch {
            layer: self.layer,
            tokens: tokens.len(),
            experts_used: self.experts_used,
            routes: self.routes[tokens.start * self.experts_used..tokens.end * self.experts_used]
                .to_vec(),
            input: match &self.input {
                ExpertInput::F32(v) => ExpertInput::F32(v[input(v.len())].to_vec()),
                ExpertInput::Q8(v) => ExpertInput::Q8(v[input(v.len())].to_vec()),
                ExpertInput::Q8K(v) => ExpertInput::Q8K(v[input(v.len())].to_vec()),
            },
            round: self.round,
        }
    }

    /// Whether `token` has a leaf below `subtree`, so that its holder returns a row.
    #[must_use]
    pub fn has_row(&self, token: usize, subtree: Subtree) -> bool {
        subtree.has_leaf(self.routes_of(token).iter().map(|r| r.expert))
    }

    /// Rows that a holder of `rects` returns: rectangle by rectangle, subtree by subtree, the
    /// tokens that have a row in ascending order.
    #[must_use]
    pub fn reply_rows(&self, grid: Grid, rects: &[TileRect]) -> usize {
        rects
            .iter()
            .flat_map(|rect| rect.subtrees(grid))
            .map(|tree| (0..self.tokens).filter(|&t| self.has_row(t, tree)).count())
            .sum()
    }

    /// Checks every length and id against the model's shape; `experts_used` is what its router chooses for
    /// a token.
    ///
    /// # Errors
    /// Names the field that is off.
    pub fn check(
        &self,
        layers: usize,
        grid: Grid,
        hidden: usize,
        experts_used: usize,
    ) -> Result<(), BatchError> {
        if self.layer >= layers {
            return Err(BatchError::Layer {
                layer: self.layer,
                layers,
            });
        }
        if self.tokens == 0 || self.experts_used == 0 {
            return Err(BatchError::Empty);
        }
        if self.experts_used != experts_used {
            return Err(BatchError::ExpertsUsed {
                found: self.experts_used,
                expected: experts_used,
            });
        }
        let routes = self.tokens.checked_mul(self.experts_used);
        if routes != Some(self.routes.len()) {
            return Err(BatchError::Routes {
                found: self.routes.len(),
                tokens: self.tokens,
                experts_used: self.experts_used,
            });
        }
        if let Some(route) = self.routes.iter().find(|r| r.expert >= grid.experts) {
            return Err(BatchError::Expert {
                expert: route.expert,
                experts: grid.experts,
            });
        }
        if self.tokens.checked_mul(hidden) != Some(self.input.elements()) {
            return Err(BatchError::Input {
                found: self.input.elements(),
                tokens: self.tokens,
                hidden,
            });
        }
        Ok(())
    }
}

/// A batch that does not fit the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("layer {layer} of a model with {layers} layers")]
    Layer { layer: usize, layers: usize },
    #[error("an expert batch without tokens or experts")]
    Empty,
    #[error("{found} experts a token, where the model's router chooses {expected}")]
    ExpertsUsed { found: usize, expected: usize },
    #[error("{found} routes for {tokens} tokens with {experts_used} experts each")]
    Routes {
        found: usize,
        tokens: usize,
        experts_used: usize,
    },
    #[error("expert {expert} of a model with {experts} experts a layer")]
    Expert { expert: u32, experts: u32 },
    #[error("{found} input values for {tokens} tokens of {hidden}")]
    Input {
        found: usize,
        tokens: usize,
        hidden: usize,
    },
    #[error("input in {found:?} blocks, where layer {layer} takes {expected:?}")]
    Format {
        layer: usize,
        found: ActivationFormat,
        expected: ActivationFormat,
    },
    #[error("tensor {tensor}: {reason}")]
    Weights { tensor: String, reason: String },
    #[error("tiles {rect} are not held here")]
    NotHeld { rect: TileRect },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_work_of_its_tokens() {
        let route = |expert| Route {
            expert,
            weight: expert as f32,
        };
        let batch = ExpertBatch {
            layer: 4,
            tokens: 3,
            experts_used: 2,
            routes: (0..6).map(route).collect(),
            input: ExpertInput::F32((0..12).map(|i| i as f32).collect()),
            round: true,
        };
        let part = batch.part(1..3);
        assert_eq!(
            (part.layer, part.tokens, part.experts_used, part.round),
            (4, 2, 2, true)
        );
        assert_eq!(part.routes, batch.routes[2..]);
        let values = (4..12).map(|i| i as f32).collect();
        assert_eq!(part.input, ExpertInput::F32(values));
        assert_eq!(batch.part(0..3), batch);
    }

    #[test]
    fn a_batch_with_another_number_of_experts_a_token_is_refused() {
        let grid = Grid {
            experts: 4,
            blocks: 1,
        };
        let route = Route {
            expert: 3,
            weight: 1.0,
        };
        let batch = ExpertBatch {
            layer: 0,
            tokens: 2,
            experts_used: 3,
            routes: vec![route; 6],
            input: ExpertInput::F32(vec![0.0; 8]),
            round: true,
        };
        assert_eq!(batch.check(1, grid, 4, 3), Ok(()));
        for expected in [2, 4] {
            let error = BatchError::ExpertsUsed { found: 3, expected };
            assert_eq!(batch.check(1, grid, 4, expected), Err(error));
        }
    }
}
