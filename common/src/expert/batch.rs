//! One layer's routed-expert work for a batch of tokens: the argument of a pure function.
//!
//! A batch is checked once, where it enters a process: [`ExpertBatch::new`] is its only
//! constructor, and refuses counts that contradict each other and ids outside of the model.
//! Whatever takes an [`ExpertBatch`] can index by it.

use std::ops::{Deref, Range};

use super::MoeShape;
use crate::kernels::{ActRow, Activations};
use crate::quant::{ActivationFormat, BlockQ8, BlockQ8K};
use crate::tiles::{Subtree, TileRect};

/// A chosen expert and the router's weight for it, which multiplies before the down projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// Id of the expert in its layer.
    pub expert: u32,
    /// Factor of the expert's inner activation.
    pub weight: f32,
}

/// The normed layer input, quantised once by the coordinator for all experts: tokens x hidden,
/// row after row.
#[derive(Clone, Debug, PartialEq)]
pub enum ExpertInput {
    /// Plain values.
    F32(Vec<f32>),
    /// Blocks of 32 values.
    Q8(Vec<BlockQ8>),
    /// Blocks of 256 values.
    Q8K(Vec<BlockQ8K>),
}

impl ExpertInput {
    /// How the values are stored.
    #[must_use]
    pub fn format(&self) -> ActivationFormat {
        match self {
            ExpertInput::F32(_) => ActivationFormat::F32,
            ExpertInput::Q8(_) => ActivationFormat::Q8,
            ExpertInput::Q8K(_) => ActivationFormat::Q8K,
        }
    }

    /// A copy of an activation matrix, in the form that travels.
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

    /// Number of activations, whatever their format: tokens x hidden.
    #[must_use]
    pub fn elements(&self) -> usize {
        match self {
            ExpertInput::F32(v) => v.len(),
            ExpertInput::Q8(v) => v.len() * 32,
            ExpertInput::Q8K(v) => v.len() * 256,
        }
    }
}

/// The fields of an [`ExpertBatch`], as their maker states them.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchFields {
    /// The layer whose experts are to compute, counted from 0.
    pub layer: usize,
    /// Rows of the input.
    pub tokens: usize,
    /// Tokens x experts used, the routes of a token in slot order.
    pub routes: Vec<Route>,
    /// Tokens x hidden.
    pub input: ExpertInput,
    /// Whether the inner activation is quantised before a quantised down projection.
    pub round: bool,
}

/// The routed-expert work of one layer for some tokens. Its counts agree with each other, and its
/// ids are those of a model with [`ExpertBatch::shape`].
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertBatch {
    shape: MoeShape,
    fields: BatchFields,
}

impl Deref for ExpertBatch {
    type Target = BatchFields;

    fn deref(&self) -> &BatchFields {
        &self.fields
    }
}

impl ExpertBatch {
    /// Checks every length and id against the model's shape.
    ///
    /// # Errors
    /// Names the field that contradicts the shape or another field.
    pub fn new(shape: MoeShape, fields: BatchFields) -> Result<Self, BatchError> {
        let BatchFields { layer, tokens, .. } = fields;
        if layer >= shape.layers {
            return Err(BatchError::Layer {
                layer,
                layers: shape.layers,
            });
        }
        if tokens == 0 || shape.experts_used == 0 {
            return Err(BatchError::Empty);
        }
        let routes = fields.routes.len();
        if tokens.checked_mul(shape.experts_used) != Some(routes) {
            return Err(BatchError::Routes {
                found: routes,
                tokens,
                experts_used: shape.experts_used,
            });
        }
        let experts = shape.grid.experts;
        if let Some(route) = fields.routes.iter().find(|r| r.expert >= experts) {
            return Err(BatchError::Expert {
                expert: route.expert,
                experts,
            });
        }
        let elements = fields.input.elements();
        if tokens.checked_mul(shape.hidden) != Some(elements) {
            return Err(BatchError::Input {
                found: elements,
                tokens,
                hidden: shape.hidden,
            });
        }
        Ok(ExpertBatch { shape, fields })
    }

    /// The model's shape that the batch was checked against.
    #[must_use]
    pub fn shape(&self) -> &MoeShape {
        &self.shape
    }

    /// Refuses a batch of a model of another shape, so that ids and lengths fit what is indexed
    /// by them.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn expect_shape(&self, expected: &MoeShape) -> Result<(), BatchError> {
        if self.shape != *expected {
            return Err(BatchError::Shape {
                found: self.shape,
                expected: *expected,
            });
        }
        Ok(())
    }

    /// The routes of one token, in slot order.
    #[must_use]
    pub fn routes_of(&self, token: usize) -> &[Route] {
        self.routes_of_all(token..token + 1)
    }

    /// The routes of several tokens, token after token.
    #[must_use]
    pub fn routes_of_all(&self, tokens: Range<usize>) -> &[Route] {
        let used = self.shape.experts_used;
        &self.fields.routes[tokens.start * used..tokens.end * used]
    }

    /// The work of some of the tokens alone.
    ///
    /// # Panics
    /// `tokens` is empty or reaches beyond the batch.
    #[must_use]
    pub fn part(&self, tokens: Range<usize>) -> ExpertBatch {
        assert!(!tokens.is_empty(), "a batch has at least one token");
        let input = |elements: usize| {
            let row = elements / self.tokens;
            tokens.start * row..tokens.end * row
        };
        let fields = BatchFields {
            layer: self.layer,
            tokens: tokens.len(),
            routes: self.routes_of_all(tokens.clone()).to_vec(),
            input: match &self.input {
                ExpertInput::F32(v) => ExpertInput::F32(v[input(v.len())].to_vec()),
                ExpertInput::Q8(v) => ExpertInput::Q8(v[input(v.len())].to_vec()),
                ExpertInput::Q8K(v) => ExpertInput::Q8K(v[input(v.len())].to_vec()),
            },
            round: self.round,
        };
        ExpertBatch {
            shape: self.shape,
            fields,
        }
    }

    /// Whether `token` has a leaf below `subtree`, so that a node that holds the subtree returns a row.
    #[must_use]
    pub fn has_row(&self, token: usize, subtree: Subtree) -> bool {
        subtree.has_leaf(self.routes_of(token).iter().map(|r| r.expert))
    }

    /// Those of `tokens` that have a row for `subtree`, ascending. A reply holds the rows of its
    /// rectangles' subtrees in this order, one subtree after the other.
    #[inline]
    pub fn rows_of(&self, tokens: Range<usize>, subtree: Subtree) -> impl Iterator<Item = usize> {
        tokens.filter(move |&token| self.has_row(token, subtree))
    }

    /// Number of rows that a node that holds `rects` returns for the tokens in `tokens`.
    #[must_use]
    pub fn reply_rows(&self, tokens: Range<usize>, rects: &[TileRect]) -> usize {
        rects
            .iter()
            .flat_map(|rect| rect.subtrees(self.shape.grid))
            .map(|subtree| self.rows_of(tokens.clone(), subtree).count())
            .sum()
    }
}

/// A batch that does not fit the model, or the weights that are here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The layer is beyond the last one.
    #[error("layer {layer} does not exist: the model has {layers} layers")]
    Layer {
        /// Layer of the batch.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// There is nothing to compute.
    #[error("the batch has no tokens or no experts")]
    Empty,
    /// The number of routes is not tokens x experts used.
    #[error("found {found} routes, expected {experts_used} for each of {tokens} tokens")]
    Routes {
        /// Routes of the batch.
        found: usize,
        /// Tokens of the batch.
        tokens: usize,
        /// Experts that the model's router chooses for a token.
        experts_used: usize,
    },
    /// A route names an expert that the model does not have.
    #[error("expert {expert} does not exist: a layer has {experts} experts")]
    Expert {
        /// Id in the route.
        expert: u32,
        /// Experts of a layer.
        experts: u32,
    },
    /// The input is not tokens x hidden.
    #[error("found {found} input values, expected {hidden} for each of {tokens} tokens")]
    Input {
        /// Activations of the batch.
        found: usize,
        /// Tokens of the batch.
        tokens: usize,
        /// Values of a token.
        hidden: usize,
    },
    /// The batch was made for another model.
    #[error("the batch is for a model with {found}, but the weights have {expected}")]
    Shape {
        /// Shape that the batch was checked against.
        found: MoeShape,
        /// Shape of the weights.
        expected: MoeShape,
    },
    /// The input is quantised otherwise than the weights need it.
    #[error("the input is in {found:?} blocks, but layer {layer} takes {expected:?}")]
    Format {
        /// Layer of the batch.
        layer: usize,
        /// Format of the input.
        found: ActivationFormat,
        /// Format that the layer's gate or up projection multiplies with.
        expected: ActivationFormat,
    },
    /// The weights cannot be read.
    #[error("tensor {tensor}: {reason}")]
    Weights {
        /// Name in the file.
        tensor: String,
        /// What is wrong with its bytes.
        reason: String,
    },
    /// No part of the layer that is here holds all of a rectangle.
    #[error("tiles {rect} are not held here")]
    NotHeld {
        /// The rectangle that was requested.
        rect: TileRect,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiles::Grid;

    const SHAPE: MoeShape = MoeShape {
        layers: 5,
        hidden: 4,
        experts_used: 2,
        grid: Grid {
            experts: 6,
            blocks: 1,
        },
    };

    fn fields() -> BatchFields {
        let route = |expert| Route {
            expert,
            weight: expert as f32,
        };
        BatchFields {
            layer: 4,
            tokens: 3,
            routes: (0..6).map(route).collect(),
            input: ExpertInput::F32((0..12).map(|i| i as f32).collect()),
            round: true,
        }
    }

    #[test]
    fn a_part_is_the_work_of_its_tokens() {
        let batch = ExpertBatch::new(SHAPE, fields()).expect("a legal batch");
        let part = batch.part(1..3);
        assert_eq!((part.layer, part.tokens, part.round), (4, 2, true));
        assert_eq!(part.shape(), &SHAPE);
        assert_eq!(part.routes, batch.routes[2..]);
        let values = (4..12).map(|i| i as f32).collect();
        assert_eq!(part.input, ExpertInput::F32(values));
        assert_eq!(batch.part(0..3), batch);
    }

    #[test]
    fn fields_that_contradict_the_shape_or_each_other_are_refused() {
        type Lie = fn(&mut BatchFields);
        let lies: [(Lie, BatchError); 5] = [
            (
                |batch| batch.layer = 5,
                BatchError::Layer {
                    layer: 5,
                    layers: 5,
                },
            ),
            (|batch| batch.tokens = 0, BatchError::Empty),
            (
                |batch| batch.routes.truncate(5),
                BatchError::Routes {
                    found: 5,
                    tokens: 3,
                    experts_used: 2,
                },
            ),
            (
                |batch| batch.routes[3].expert = 6,
                BatchError::Expert {
                    expert: 6,
                    experts: 6,
                },
            ),
            (
                |batch| batch.input = ExpertInput::F32(vec![0.0; 11]),
                BatchError::Input {
                    found: 11,
                    tokens: 3,
                    hidden: 4,
                },
            ),
        ];
        for (lie, error) in lies {
            let mut fields = fields();
            lie(&mut fields);
            assert_eq!(ExpertBatch::new(SHAPE, fields), Err(error));
        }
        for experts_used in [1, 3] {
            let other = MoeShape {
                experts_used,
                ..SHAPE
            };
            let error = BatchError::Routes {
                found: 6,
                tokens: 3,
                experts_used,
            };
            assert_eq!(ExpertBatch::new(other, fields()), Err(error));
        }
    }

    #[test]
    fn a_batch_of_another_model_is_refused() {
        let batch = ExpertBatch::new(SHAPE, fields()).expect("a legal batch");
        assert_eq!(batch.expect_shape(&SHAPE), Ok(()));
        let expected = MoeShape { layers: 9, ..SHAPE };
        let error = BatchError::Shape {
            found: SHAPE,
            expected,
        };
        assert_eq!(batch.expect_shape(&expected), Err(error));
    }
}
