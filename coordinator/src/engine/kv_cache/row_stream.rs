//! A growing list of rows that several sequences can share: blocks behind reference counts, copied
//! when one of the holders writes.
//!
//! ```text
//! row        0 1 2 3 | 4 5 6 7 | 8 9 . .      blocks of 4 rows; the first may be dropped
//! sequence   ────────────────────► end = 10
//! its fork   ────────────────► end = 9         row 9 is invisible to it, and its own row 9 goes
//!                                              into a copy of the last block
//! ```

use std::sync::Arc;

use super::block::{Block, BlockMeter};
use super::stream_spec::StreamSpec;

/// The rows of one stream of one sequence. Row `i` lies in block `i / block_rows`, whatever was
/// dropped before it. A clone shares the blocks, and takes constant time and memory.
#[derive(Clone, Debug)]
pub(crate) struct RowStream {
    spec: StreamSpec,
    /// Number of the first block that is held.
    first_block: usize,
    /// Rows that were appended, counted from the start of the sequence. Blocks may hold more: what
    /// lies behind is of another holder, or from before a rewind.
    end: usize,
    blocks: Arc<Vec<Arc<Block>>>,
    meter: BlockMeter,
}

impl RowStream {
    pub(super) fn new(spec: StreamSpec, meter: &BlockMeter) -> Self {
        RowStream {
            spec,
            first_block: 0,
            end: 0,
            blocks: Arc::default(),
            meter: meter.clone(),
        }
    }

    /// Tokens per row.
    pub(crate) fn ratio(&self) -> usize {
        self.spec.ratio
    }

    /// The first token whose row the token at `position` needs.
    pub(crate) fn first_needed(&self, position: usize) -> usize {
        self.spec.keep.first_needed(position)
    }

    /// Appends rows, `(count x width)`.
    pub(crate) fn extend(&mut self, mut rows: &[f32]) {
        let StreamSpec { width, .. } = self.spec;
        debug_assert_eq!(rows.len() % width, 0);
        while !rows.is_empty() {
            let used = self.end & (self.spec.block_rows() - 1);
            let count = (rows.len() / width).min(self.spec.block_rows() - used);
            let (fitting, rest) = rows.split_at(count * width);
            self.open_block(used).extend(fitting);
            self.end += count;
            rows = rest;
        }
    }

    /// The block that the next row goes to, its own alone and with `used` rows.
    fn open_block(&mut self, used: usize) -> &mut Block {
        let spec = &self.spec;
        let at = (self.end >> spec.block_shift) - self.first_block;
        if Arc::get_mut(&mut self.blocks).is_none() {
            // What lies behind is of the other holder.
            self.blocks = Arc::new(self.blocks[..at + usize::from(used > 0)].to_vec());
        }
        let blocks = Arc::make_mut(&mut self.blocks);
        // A rewind leaves blocks to be filled again, unless someone else still reads them.
        let own = |block: &mut Arc<Block>| Arc::get_mut(block).is_some();
        if used == 0 && !blocks.get_mut(at).is_some_and(own) {
            blocks.truncate(at);
            let block = Block::new(spec.storage, spec.block_elements(), &self.meter);
            blocks.push(Arc::new(block));
        }
        let open = Arc::make_mut(&mut blocks[at]);
        open.truncate(used * spec.width);
        open
    }

    /// Block and element at which a row starts.
    #[inline]
    fn locate(&self, row: usize) -> (&Block, usize) {
        let at = (row >> self.spec.block_shift) - self.first_block;
        let slot = row & (self.spec.block_rows() - 1);
        (&self.blocks[at], slot * self.spec.width)
    }

    /// Copies rows `first..first + out.len() / width` to `out`, a block at a time.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) {
        debug_assert!(first + out.len() / self.spec.width <= self.end);
        let (mut row, mut rest) = (first, out);
        while !rest.is_empty() {
            let (block, at) = self.locate(row);
            let count = rest.len().min(self.spec.block_elements() - at);
            let (now, later) = rest.split_at_mut(count);
            block.read(at, now);
            row += count / self.spec.width;
            rest = later;
        }
    }

    /// A row as it is stored, or `None` where rows are rounded to f16.
    pub(crate) fn stored(&self, row: usize) -> Option<&[f32]> {
        debug_assert!(row < self.end);
        let (block, at) = self.locate(row);
        block.stored(at, self.spec.width)
    }

    /// Drops the blocks of rows that neither the next token needs nor a token after a rewind.
    pub(crate) fn trim(&mut self) {
        let position = self.end * self.spec.ratio;
        self.drop_before(position.saturating_sub(self.spec.rewind));
    }

    /// Drops all blocks that going on from here does not need, those that a rewind left included.
    pub(super) fn trim_to_needs(&mut self) {
        self.drop_before(self.end * self.spec.ratio);
        let kept = self.end.div_ceil(self.spec.block_rows()) - self.first_block;
        if kept < self.blocks.len() {
            match Arc::get_mut(&mut self.blocks) {
                Some(blocks) => blocks.truncate(kept),
                None => self.blocks = Arc::new(self.blocks[..kept].to_vec()),
            }
        }
    }

    /// Drops the blocks of rows that the token at `position` does not need.
    fn drop_before(&mut self, position: usize) {
        let row = self.first_needed(position) / self.spec.ratio;
        let first = row >> self.spec.block_shift;
        let gone = first.saturating_sub(self.first_block);
        if gone == 0 {
            return;
        }
        match Arc::get_mut(&mut self.blocks) {
            Some(blocks) => drop(blocks.drain(..gone)),
            None => self.blocks = Arc::new(self.blocks[gone..].to_vec()),
        }
        self.first_block = first;
    }

    /// The earliest position from which the sequence can go on, as far as this stream's rows
    /// matter.
    pub(super) fn earliest(&self) -> usize {
        self.spec
            .earliest(self.first_block << self.spec.block_shift)
    }

    /// Forgets the rows behind those of the first `tokens` tokens. Their blocks stay, to be filled
    /// again by the rows that come instead: freeing and allocating takes longer than all else.
    pub(super) fn rewind(&mut self, tokens: usize) {
        self.end = self.spec.rows_of(tokens);
    }

    /// Appends rows of zeros until they are those of `tokens` tokens.
    pub(super) fn grow(&mut self, tokens: usize) {
        while self.end < self.spec.rows_of(tokens) {
            let missing = self.spec.rows_of(tokens) - self.end;
            let count = missing.min(self.spec.block_rows());
            self.extend(&vec![0.0; count * self.spec.width]);
            self.trim();
        }
    }

    /// Bytes of all blocks that are held.
    pub(super) fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * self.spec.block_bytes()
    }

    /// Bytes of the blocks that no one else holds.
    pub(super) fn own_bytes(&self) -> u64 {
        if Arc::strong_count(&self.blocks) > 1 {
            return 0;
        }
        let own = self.blocks.iter().filter(|b| Arc::strong_count(b) == 1);
        own.count() as u64 * self.spec.block_bytes()
    }
}

#[cfg(test)]
mod tests;
