//! Tiles of the routed experts and the one tree by which their contributions are added.
//!
//! A layer's routed experts form a grid: one axis is the expert, the other the block of
//! [`BLOCK_WIDTH`] of the expert's inner width. The contribution of a chosen expert's block to a
//! token is one row of `hidden` floats. Rows are added by a binary tree that depends on the grid
//! alone, experts innermost:
//!
//! ```text
//!                 root
//!              ┌────┴────┐            blocks: halves of the padded range
//!           b0..1      b2..3
//!          ┌──┴──┐    ┌──┴──┐
//!          b0    b1   b2    b3
//!        ┌─┴─┐                        experts inside one block: likewise, by expert id
//!      e0..3 e4..7
//! ```
//!
//! An expert that a token did not choose has no leaf, and a subtree without leaves is skipped, so
//! no zero is ever added. A node that holds a set of tiles returns one row for each maximal subtree that
//! the set covers; any cover of the grid then gives the same bits.

mod choice;
mod grid;
mod holdings;
mod reduction;
mod set;

pub use choice::{ChoiceError, GridCut, TileChoice};
pub use grid::{BLOCK_WIDTH, Grid, MAX_RECTS, Span, TileError, TileRect};
pub use holdings::Holdings;
pub use reduction::{Reduction, Subtree, fold_axis};
pub use set::TileSet;
