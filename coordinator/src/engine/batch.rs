//! The rows of one step: the tokens of all its chunks, one after the other.

use super::rope::Rope;

/// The rows of one chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkRows {
    /// Index of the chunk in the step.
    pub(crate) chunk: usize,
    /// The chunk's first row in the batch.
    pub(crate) first: usize,
    /// Rows of the chunk, one for each token.
    pub(crate) len: usize,
}

/// Tokens, positions and rotation angles of every row.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// In the order of their rows, which is that of the step.
    pub(crate) chunks: Vec<ChunkRows>,
    /// Token id of every row.
    pub(crate) tokens: Vec<u32>,
    /// Position of every row in its sequence.
    pub(crate) positions: Vec<usize>,
    /// `(sin, cos)` of every row's pairs, `(rows x rope_dims/2)`, for layers without and with
    /// compression.
    plain_angles: Vec<(f32, f32)>,
    compressing_angles: Vec<(f32, f32)>,
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.tokens.clear();
        self.positions.clear();
        self.plain_angles.clear();
        self.compressing_angles.clear();
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Appends the rows of chunk `chunk`, whose first token stands at `position`.
    pub(crate) fn push(&mut self, chunk: usize, position: usize, tokens: &[u32], ropes: &Ropes) {
        self.chunks.push(ChunkRows {
            chunk,
            first: self.rows(),
            len: tokens.len(),
        });
        self.tokens.extend_from_slice(tokens);
        let mut angles = Vec::new();
        for p in position..position + tokens.len() {
            self.positions.push(p);
            ropes.plain.angles(p, &mut angles);
            self.plain_angles.extend_from_slice(&angles);
            ropes.compressing.angles(p, &mut angles);
            self.compressing_angles.extend_from_slice(&angles);
        }
    }

    /// The angles of one row on layers that compress or not.
    pub(crate) fn angles(&self, row: usize, compressing: bool) -> &[(f32, f32)] {
        let all = if compressing {
            &self.compressing_angles
        } else {
            &self.plain_angles
        };
        let pairs = all.len() / self.rows();
        &all[row * pairs..(row + 1) * pairs]
    }

    /// Drops the chunks for which `keep` is false, and calls `moved(from, to, len)` for every run
    /// of rows that stays, in order.
    pub(crate) fn retain(
        &mut self,
        keep: impl Fn(usize) -> bool,
        mut moved: impl FnMut(usize, usize, usize),
    ) {
        let pairs = self.plain_angles.len() / self.rows().max(1);
        let mut to = 0;
        let mut kept = Vec::with_capacity(self.chunks.len());
        for c in std::mem::take(&mut self.chunks) {
            if !keep(c.chunk) {
                continue;
            }
            self.tokens.copy_within(c.first..c.first + c.len, to);
            self.positions.copy_within(c.first..c.first + c.len, to);
            let span = c.first * pairs..(c.first + c.len) * pairs;
            self.plain_angles.copy_within(span.clone(), to * pairs);
            self.compressing_angles.copy_within(span, to * pairs);
            moved(c.first, to, c.len);
            kept.push(ChunkRows { first: to, ..c });
            to += c.len;
        }
        self.chunks = kept;
        self.tokens.truncate(to);
        self.positions.truncate(to);
        self.plain_angles.truncate(to * pairs);
        self.compressing_angles.truncate(to * pairs);
    }
}

/// The rotary frequencies of layers without and with compression.
#[derive(Debug)]
pub(crate) struct Ropes {
    pub(crate) plain: Rope,
    pub(crate) compressing: Rope,
}
