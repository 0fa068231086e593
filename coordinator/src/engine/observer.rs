//! The seam through which the values of a step can be looked at, for diagnosis. A step without an
//! observer pays one comparison at each point.

use std::sync::Arc;

use ds4_common::expert::ExpertBatch;

/// Where in the forward pass values are shown, in the order of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// All streams after the embedding, `(rows x streams x hidden)`.
    Embedding,
    /// The normed input of attention, `(rows x hidden)`.
    AttentionInput,
    /// What attention adds, `(rows x hidden)`.
    AttentionOutput,
    /// All streams after attention, `(rows x streams x hidden)`.
    AttentionStreams,
    /// The normed input of router and experts, `(rows x hidden)`.
    ExpertInput,
    /// The router's logits, `(rows x experts)`.
    RouterLogits,
    /// The shared expert's output, `(rows x hidden)`.
    SharedExpert,
    /// The sum over the routed experts, as the expert backend returned it, `(rows x hidden)`.
    RoutedSum,
    /// Shared expert and routed experts together, `(rows x hidden)`.
    ExpertOutput,
    /// All streams after the layer, `(rows x streams x hidden)`.
    LayerStreams,
    /// The normed input of the head, `(rows x hidden)`.
    HeadInput,
    /// The logits, `(rows x vocabulary)`.
    Logits,
}

impl Point {
    /// A short name, the same in every release.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Point::Embedding => "embedding",
            Point::AttentionInput => "attention.in",
            Point::AttentionOutput => "attention.out",
            Point::AttentionStreams => "attention.streams",
            Point::ExpertInput => "experts.in",
            Point::RouterLogits => "router.logits",
            Point::SharedExpert => "experts.shared",
            Point::RoutedSum => "experts.routed",
            Point::ExpertOutput => "experts.out",
            Point::LayerStreams => "layer.streams",
            Point::HeadInput => "head.in",
            Point::Logits => "logits",
        }
    }
}

/// What a step shows.
#[derive(Clone, Copy, Debug)]
pub enum Observation<'a> {
    /// Values of all rows of the step.
    Values {
        /// The layer; `None` before the first and after the last.
        layer: Option<usize>,
        /// What they are.
        point: Point,
        /// Row after row.
        values: &'a [f32],
    },
    /// The work that the expert backend gets: the routes and the quantised input.
    Experts(&'a Arc<ExpertBatch>),
}

/// Looks at the values of a step while it runs.
pub trait Observer: Send {
    /// Called at each [`Point`], in the order of the forward pass.
    fn observe(&mut self, seen: Observation<'_>);
}
