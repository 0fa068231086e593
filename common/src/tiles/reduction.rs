//! The canonical tree: the subtrees of a rectangle, and the order in which rows are added.

use super::{Grid, Span, TileError, TileRect};

/// A node of the canonical tree: several blocks of all experts, or some experts of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subtree {
    /// Blocks of the leaves.
    pub blocks: Span,
    /// Expert ids of the leaves.
    pub experts: Span,
}

impl Subtree {
    /// Whether a token that chose `experts` has a leaf below this node.
    #[must_use]
    pub fn has_leaf(self, mut experts: impl Iterator<Item = u32>) -> bool {
        experts.any(|e| self.experts.contains(e))
    }
}

impl TileRect {
    /// The maximal subtrees of the canonical tree inside this rectangle, in tree order.
    #[must_use]
    pub fn subtrees(self, grid: Grid) -> Vec<Subtree> {
        let mut found = Vec::new();
        if self.experts.covers(grid.whole().experts) {
            let experts = grid.whole().experts;
            aligned_spans(grid.blocks, self.blocks, &mut |blocks| {
                found.push(Subtree { blocks, experts });
            });
        } else {
            for block in self.blocks.start..self.blocks.end {
                let blocks = Span::new(block, block + 1);
                aligned_spans(grid.experts, self.experts, &mut |experts| {
                    found.push(Subtree { blocks, experts });
                });
            }
        }
        found
    }
}

/// Calls `visit` for each maximal aligned power-of-two span of `0..total` (padded up) inside
/// `want`, in ascending order, cut off at `total`.
fn aligned_spans(total: u32, want: Span, visit: &mut dyn FnMut(Span)) {
    fn descend(node: Span, total: u32, want: Span, visit: &mut dyn FnMut(Span)) {
        let inside = Span::new(node.start, node.end.min(total));
        if inside.is_empty() || inside.end <= want.start || want.end <= inside.start {
            return;
        }
        if want.covers(inside) {
            visit(inside);
            return;
        }
        let middle = node.start + node.len() / 2;
        descend(Span::new(node.start, middle), total, want, visit);
        descend(Span::new(middle, node.end), total, want, visit);
    }
    descend(Span::new(0, total.next_power_of_two()), total, want, visit);
}

/// The adds of the canonical tree over leaves that are given by their position along one axis.
///
/// `positions` must ascend; `add(dst, src)` is called with indices into it, left operand first,
/// and leaf 0 holds the sum at the end. Leaves at one position are added in their order.
pub fn fold_axis(total: u32, positions: &[u32], add: &mut dyn FnMut(usize, usize)) {
    fn descend(
        node: Span,
        positions: &[u32],
        first: usize,
        last: usize,
        add: &mut dyn FnMut(usize, usize),
    ) {
        if last - first < 2 {
            return;
        }
        if node.len() == 1 {
            for i in first + 1..last {
                add(first, i);
            }
            return;
        }
        let middle = node.start + node.len() / 2;
        let split = first + positions[first..last].partition_point(|&p| p < middle);
        descend(Span::new(node.start, middle), positions, first, split, add);
        descend(Span::new(middle, node.end), positions, split, last, add);
        if first < split && split < last {
            add(first, split);
        }
    }
    let node = Span::new(0, total.next_power_of_two());
    descend(node, positions, 0, positions.len(), add);
}

/// How the rows of a cover's subtrees are added into the final row of a token.
#[derive(Clone, Debug)]
pub struct Reduction {
    subtrees: Vec<Subtree>,
    /// Positions in `subtrees`, in tree order.
    order: Vec<usize>,
    grid: Grid,
}

impl Reduction {
    /// The adds that join `subtrees`, which cover every tile of `grid` exactly once.
    ///
    /// # Errors
    /// The subtrees leave a tile out or hold one twice.
    pub fn new(grid: Grid, subtrees: Vec<Subtree>) -> Result<Self, TileError> {
        let mut order: Vec<usize> = (0..subtrees.len()).collect();
        order.sort_by_key(|&i| (subtrees[i].blocks, subtrees[i].experts));
        let mut block = 0;
        let mut expert = 0;
        for &i in &order {
            let Subtree { blocks, experts } = subtrees[i];
            if blocks.start != block || experts.start != expert {
                return Err(TileError::Cover {
                    block: block.min(blocks.start),
                    expert,
                });
            }
            expert = experts.end;
            if expert == grid.experts {
                expert = 0;
                block = blocks.end;
            } else if blocks.len() != 1 {
                return Err(TileError::Cover { block, expert });
            }
        }
        if block != grid.blocks || expert != 0 {
            return Err(TileError::Cover { block, expert });
        }
        Ok(Reduction {
            subtrees,
            order,
            grid,
        })
    }

    /// The subtrees, in the order in which they were given.
    #[must_use]
    pub fn subtrees(&self) -> &[Subtree] {
        &self.subtrees
    }

    /// The adds for one token. `present(i)` says whether the token has a row for subtree `i`;
    /// `add(dst, src)` names subtrees. Returns the subtree whose row ends as the sum, `None` if no
    /// subtree has a row.
    pub fn fold(
        &self,
        present: impl Fn(usize) -> bool,
        mut add: impl FnMut(usize, usize),
    ) -> Option<usize> {
        let here: Vec<usize> = self.order.iter().copied().filter(|&i| present(i)).collect();
        let mut block_roots: Vec<usize> = Vec::with_capacity(here.len());
        let mut at = 0;
        while at < here.len() {
            let block = self.subtrees[here[at]].blocks;
            let run = here[at..]
                .iter()
                .take_while(|&&i| self.subtrees[i].blocks == block)
                .count();
            let members = &here[at..at + run];
            let starts: Vec<u32> = members
                .iter()
                .map(|&i| self.subtrees[i].experts.start)
                .collect();
            fold_axis(self.grid.experts, &starts, &mut |d, s| {
                add(members[d], members[s])
            });
            block_roots.push(members[0]);
            at += run;
        }
        let starts: Vec<u32> = block_roots
            .iter()
            .map(|&i| self.subtrees[i].blocks.start)
            .collect();
        fold_axis(self.grid.blocks, &starts, &mut |d, s| {
            add(block_roots[d], block_roots[s])
        });
        block_roots.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds random leaf values by the tree through a cover cut into `rects`.
    fn sum_by(
        grid: Grid,
        rects: &[TileRect],
        chosen: &[u32],
        leaf: impl Fn(u32, u32) -> f32,
    ) -> f32 {
        let subtrees: Vec<Subtree> = rects.iter().flat_map(|r| r.subtrees(grid)).collect();
        let mut rows: Vec<Option<f32>> = subtrees
            .iter()
            .map(|tree| {
                let experts: Vec<u32> = chosen
                    .iter()
                    .copied()
                    .filter(|e| tree.experts.contains(*e))
                    .collect();
                let mut blocks: Vec<f32> = Vec::new();
                for b in tree.blocks.start..tree.blocks.end {
                    let mut v: Vec<f32> = experts.iter().map(|&e| leaf(e, b)).collect();
                    fold_axis(grid.experts, &experts, &mut |d, s| v[d] += v[s]);
                    blocks.push(*v.first()?);
                }
                let at: Vec<u32> = (tree.blocks.start..tree.blocks.end).collect();
                fold_axis(grid.blocks, &at, &mut |d, s| blocks[d] += blocks[s]);
                blocks.first().copied()
            })
            .collect();
        let reduction = Reduction::new(grid, subtrees).expect("cover");
        let present: Vec<bool> = rows.iter().map(Option::is_some).collect();
        let root = reduction
            .fold(
                |i| present[i],
                |d, s| rows[d] = Some(rows[d].unwrap() + rows[s].unwrap()),
            )
            .expect("a root");
        rows[root].unwrap()
    }

    #[test]
    fn every_cut_gives_the_same_bits() {
        for (experts, blocks) in [(8, 1), (5, 3), (7, 8), (256, 8), (1, 1), (6, 12)] {
            let grid = Grid { experts, blocks };
            let leaf = |e: u32, b: u32| {
                let x = e.wrapping_mul(2_654_435_761).wrapping_mul(b + 1) as f32;
                (x * 1e-3).sin() * 10f32.powi((e % 9) as i32 - 4)
            };
            let chosen: Vec<u32> = (0..experts).filter(|e| e % 3 != 1).collect();
            let whole = sum_by(grid, &[grid.whole()], &chosen, leaf);
            for groups in 1..=experts.min(9) {
                for strips in 1..=blocks {
                    let rects = grid.cut(groups, strips).expect("legal cut");
                    let cut = sum_by(grid, &rects, &chosen, leaf);
                    assert_eq!(
                        cut.to_bits(),
                        whole.to_bits(),
                        "{grid} as {groups}x{strips}"
                    );
                }
            }
        }
    }

    #[test]
    fn whole_node_returns_one_row() {
        let grid = Grid {
            experts: 5,
            blocks: 3,
        };
        assert_eq!(grid.whole().subtrees(grid).len(), 1);
    }

    #[test]
    fn gaps_and_overlaps_are_refused() {
        let grid = Grid {
            experts: 8,
            blocks: 2,
        };
        let rects = grid.cut(2, 2).expect("cut");
        let trees = |rects: &[TileRect]| rects.iter().flat_map(|r| r.subtrees(grid)).collect();
        assert!(Reduction::new(grid, trees(&rects)).is_ok());
        assert!(Reduction::new(grid, trees(&rects[1..])).is_err());
        assert!(Reduction::new(grid, trees(&rects[..3])).is_err());
        let mut twice = rects.clone();
        twice.push(rects[0]);
        assert!(Reduction::new(grid, trees(&twice)).is_err());
        assert!(Reduction::new(grid, Vec::new()).is_err());
    }
}
