//! Streams against plain lists of rows.

use proptest::prelude::*;

use super::*;
use crate::engine::kv_cache::block::RowStorage;
use crate::engine::kv_cache::stream_spec::Keep;

const WIDTH: usize = 3;

/// Most rows of a step.
const STEP: usize = 8;

fn spec(storage: RowStorage, keep: Keep, block_rows: usize) -> StreamSpec {
    StreamSpec::new(WIDTH, storage, 1, keep, block_rows)
}

/// A row that says its number and who appended it; every storage holds it exactly.
fn row(number: usize, mark: u8) -> [f32; WIDTH] {
    [number as f32, f32::from(mark), -0.5]
}

fn rows(numbers: std::ops::Range<usize>, mark: u8) -> Vec<f32> {
    numbers.flat_map(|number| row(number, mark)).collect()
}

fn read(stream: &RowStream, numbers: std::ops::Range<usize>) -> Vec<f32> {
    let mut out = vec![f32::NAN; numbers.len() * WIDTH];
    stream.read(numbers.start, &mut out);
    out
}

#[test]
fn rows_come_back_as_stored_and_in_runs_across_blocks() {
    for storage in [RowStorage::F16, RowStorage::F32] {
        let mut stream = RowStream::new(spec(storage, Keep::All, 4), &BlockMeter::default());
        stream.extend(&rows(0..3, 1));
        stream.extend(&rows(3..11, 1));
        for first in 0..11 {
            for end in first..=11 {
                assert_eq!(read(&stream, first..end), rows(first..end, 1));
            }
        }
        let stored = (storage == RowStorage::F32).then(|| row(9, 1));
        assert_eq!(stream.stored(9), stored.as_ref().map(|row| &row[..]));
    }
}

#[test]
fn a_fork_and_a_rewind_copy_nothing_and_an_append_copies_the_open_block() {
    let meter = BlockMeter::default();
    let block = spec(RowStorage::F16, Keep::All, 4).block_bytes();
    let mut stream = RowStream::new(spec(RowStorage::F16, Keep::All, 4), &meter);
    stream.extend(&rows(0..10, 1));
    assert_eq!((stream.bytes(), meter.bytes()), (3 * block, 3 * block));
    let mut fork = stream.clone();
    assert_eq!(fork.own_bytes() + stream.own_bytes(), 0);
    fork.rewind(9);
    assert_eq!(meter.bytes(), 3 * block);
    fork.extend(&rows(9..10, 2));
    assert_eq!(meter.bytes(), 4 * block);
    assert_eq!((fork.own_bytes(), stream.own_bytes()), (block, block));
    assert_eq!(read(&stream, 8..10), rows(8..10, 1));
    assert_eq!(read(&fork, 8..10), [row(8, 1), row(9, 2)].concat());
    // Alone, it writes where it is.
    drop(stream);
    assert_eq!((fork.own_bytes(), meter.bytes()), (3 * block, 3 * block));
    fork.rewind(9);
    fork.extend(&rows(9..10, 3));
    assert_eq!(meter.bytes(), 3 * block);
    fork.rewind(4);
    fork.extend(&rows(4..12, 4));
    assert_eq!(meter.bytes(), 3 * block, "blocks are filled again");
    assert_eq!(read(&fork, 4..12), rows(4..12, 4));
    fork.rewind(4);
    fork.trim_to_needs();
    assert_eq!(meter.bytes(), block);
    drop(fork);
    assert_eq!(meter.bytes(), 0);
}

#[test]
fn a_block_that_a_rewind_left_is_not_filled_again_while_another_reads_it() {
    let meter = BlockMeter::default();
    let spec = spec(RowStorage::F32, Keep::All, 4);
    let mut stream = RowStream::new(spec, &meter);
    stream.extend(&rows(0..12, 1));
    let mut fork = stream.clone();
    // Each has a list of its own; the first three blocks are in both.
    fork.extend(&rows(12..13, 2));
    stream.extend(&rows(12..13, 3));
    stream.rewind(4);
    stream.extend(&rows(4..8, 4));
    assert_eq!(read(&stream, 0..8), [rows(0..4, 1), rows(4..8, 4)].concat());
    assert_eq!(
        read(&fork, 0..13),
        [rows(0..12, 1), rows(12..13, 2)].concat()
    );
    assert_eq!(stream.bytes(), 2 * spec.block_bytes());
}

#[test]
fn a_full_block_is_never_copied() {
    let meter = BlockMeter::default();
    let mut stream = RowStream::new(spec(RowStorage::F32, Keep::All, 4), &meter);
    stream.extend(&rows(0..8, 1));
    let mut fork = stream.clone();
    fork.extend(&rows(8..9, 2));
    stream.extend(&rows(8..9, 3));
    assert_eq!(meter.bytes(), 4 * stream.spec.block_bytes());
    assert_eq!(read(&fork, 7..9), [row(7, 1), row(8, 2)].concat());
    assert_eq!(read(&stream, 7..9), [row(7, 1), row(8, 3)].concat());
}

#[derive(Clone, Debug)]
enum Op {
    /// A step, which drops rows when it is done.
    Extend(usize),
    Fork,
    Rewind(usize),
    TrimToNeeds,
    Drop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..=STEP).prop_map(Op::Extend),
        1 => Just(Op::Fork),
        2 => (0_usize..9).prop_map(Op::Rewind),
        1 => Just(Op::TrimToNeeds),
        1 => Just(Op::Drop),
    ]
}

fn keep() -> impl Strategy<Value = Keep> {
    prop_oneof![
        Just(Keep::All),
        (0_usize..7).prop_map(Keep::Last),
        (1_usize..7, 0_usize..3).prop_map(|(tokens, closed)| Keep::Windows { tokens, closed }),
    ]
}

/// A stream and the rows that it should have.
struct Pair {
    stream: RowStream,
    all: Vec<[f32; WIDTH]>,
    /// The most rows that it had.
    longest: usize,
}

impl Pair {
    fn apply(&mut self, op: &Op, mark: u8) {
        match *op {
            Op::Extend(count) => {
                let numbers = self.all.len()..self.all.len() + count;
                self.stream.extend(&rows(numbers.clone(), mark));
                self.all.extend(numbers.map(|number| row(number, mark)));
                self.longest = self.longest.max(self.all.len());
                assert!(self.stream.bytes() <= self.stream.spec.most_bytes(self.longest, STEP));
                self.stream.trim();
            }
            Op::Rewind(count) => {
                let to = self.all.len().saturating_sub(count);
                if self.stream.earliest() <= to {
                    self.stream.rewind(to);
                    self.all.truncate(to);
                }
            }
            Op::TrimToNeeds => self.stream.trim_to_needs(),
            Op::Fork | Op::Drop => {}
        }
    }

    /// Every row that is needed from some reachable position on is there.
    fn check(&self) {
        let end = self.all.len();
        let earliest = self.stream.earliest();
        assert!(earliest <= end, "its own position is always reachable");
        assert!(self.stream.bytes() <= self.stream.spec.most_bytes(self.longest, 0));
        let first = self.stream.first_needed(earliest);
        assert_eq!(read(&self.stream, first..end), self.all[first..].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_interleaving_leaves_each_holder_its_rows_and_leaks_nothing(
        ops in prop::collection::vec((op(), 0_usize..4), 1..60),
        keep in keep(),
        rewind in 0_usize..7,
        shift in 0_u32..4,
        half: bool,
    ) {
        let storage = if half { RowStorage::F16 } else { RowStorage::F32 };
        let spec = spec(storage, keep, 1 << shift).rewindable(rewind);
        let meter = BlockMeter::default();
        let empty = || Pair {
            stream: RowStream::new(spec, &meter),
            all: Vec::new(),
            longest: 0,
        };
        let mut pairs = vec![empty()];
        for (mark, (op, who)) in (0..).zip(&ops) {
            let who = who % pairs.len();
            match op {
                Op::Fork => {
                    let Pair { stream, all, longest } = &pairs[who];
                    let fork = Pair { stream: stream.clone(), all: all.clone(), longest: *longest };
                    pairs.push(fork);
                }
                Op::Drop => {
                    let own = pairs[who].stream.own_bytes();
                    let before = meter.bytes();
                    pairs.swap_remove(who);
                    prop_assert_eq!(before - meter.bytes(), own);
                    if pairs.is_empty() {
                        pairs.push(empty());
                    }
                }
                op => pairs[who].apply(op, mark),
            }
            pairs.iter().for_each(Pair::check);
            let together: u64 = pairs.iter().map(|pair| pair.stream.bytes()).sum();
            prop_assert!(meter.bytes() <= together);
        }
        pairs.clear();
        prop_assert_eq!(meter.bytes(), 0);
    }
}
