//! How fast a machine reads memory and multiplies, measured in short turns so that other work
//! gets in between.

use std::time::{Duration, Instant};

use crate::kernels::Kernels;
use crate::memory_limit;
use crate::threads::Threads;

/// Bytes of weights that are read over and over; more than most caches hold.
const READ_BYTES: usize = 256 << 20;

/// Fewer weights than this would be read from a cache: other memory is read then.
const LEAST_BYTES: usize = 128 << 20;

/// Bytes between two looks at the clock while weights may still come from a disk.
const WARM_STEP: usize = 16 << 20;

/// The same of weights in memory: long against the threads' start, short against a turn.
const READ_STEP: usize = 64 << 20;

/// Time of one turn. A call that arrives during a turn waits for its end.
const TURN: Duration = Duration::from_millis(40);

/// First length of the loop that multiplies; doubled until it takes [`MULTIPLY`].
const FIRST_ROUNDS: u32 = 1 << 16;

/// Time of one loop that multiplies.
const MULTIPLY: Duration = Duration::from_millis(10);

/// Turns that multiply.
const MULTIPLY_TURNS: usize = 3;

/// A measurement between two of its turns.
#[derive(Debug)]
pub struct Measurement {
    budget: Duration,
    spent: Duration,
    stage: Stage,
    /// Memory to read where there are no weights, or too few.
    own: Vec<u8>,
    /// Bytes that were read once, and are in memory.
    warm: usize,
    cursor: usize,
    reads: Vec<f64>,
    multiplies: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Warm,
    Read,
    Multiply,
    Done,
}

/// What the turns of a [`Measurement`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes per second that all threads together read from memory.
    pub read: f64,
    /// 8-bit operations per second of all threads, two for a product; `None` for kernels without
    /// vectors.
    pub operations: Option<f64>,
}

/// What a machine can do, as measured on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRates {
    /// Bytes per second that all threads together read from memory.
    pub read: u64,
    /// 8-bit operations per second of all threads, two for a product. `None` where the kernels have
    /// no instructions for that.
    pub operations: Option<u64>,
    /// Bytes that the process may take, if the system tells.
    pub memory: Option<u64>,
    /// Cores that the process may use.
    pub cores: u32,
    /// Instruction set of the kernels.
    pub kernels: String,
}

impl MachineRates {
    /// The rates that `kernels` reached on this machine, in a process that may take `memory` bytes.
    #[must_use]
    pub fn of(rates: Rates, kernels: Kernels, memory: Option<u64>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        MachineRates {
            read: rates.read as u64,
            operations: rates.operations.map(|rate| rate as u64),
            memory,
            cores: u32::try_from(cores).unwrap_or(u32::MAX),
            kernels: kernels.name().to_owned(),
        }
    }
}

impl Measurement {
    /// A measurement that computes for about `budget`, a third of which brings the weights into
    /// memory.
    #[must_use]
    pub fn new(budget: Duration) -> Self {
        Measurement {
            budget,
            spent: Duration::ZERO,
            stage: Stage::Warm,
            own: Vec::new(),
            warm: 0,
            cursor: 0,
            reads: Vec::new(),
            multiplies: Vec::new(),
        }
    }

    /// Computes for about 40 ms on the current rayon pool. `weights` must be the same in every
    /// turn. Returns the rates once they are known; further turns change nothing.
    pub fn turn(&mut self, kernels: Kernels, weights: &[&[u8]]) -> Option<Rates> {
        let start = Instant::now();
        match self.stage {
            Stage::Warm => self.warm(kernels, weights, start),
            Stage::Read => self.read(kernels, weights, start),
            Stage::Multiply => self.multiply(kernels),
            Stage::Done => {}
        }
        self.spent += start.elapsed();
        (self.stage == Stage::Done).then(|| Rates {
            read: median(&mut self.reads).unwrap_or(0.0),
            operations: median(&mut self.multiplies),
        })
    }

    fn warm(&mut self, kernels: Kernels, weights: &[&[u8]], start: Instant) {
        let held: usize = weights.iter().map(|part| part.len()).sum();
        let wanted = if held < LEAST_BYTES {
            self.own = anonymous();
            // Where there is no memory, the few weights are better than nothing.
            self.own.len().max(held)
        } else {
            held.min(READ_BYTES)
        };
        if wanted == 0 {
            // There is no memory to read.
            self.stage = Stage::Multiply;
            return;
        }
        if self.own.is_empty() {
            let most = self.budget / 3;
            while self.warm < wanted && start.elapsed() < TURN {
                let part = piece(weights, self.warm, WARM_STEP.min(wanted - self.warm));
                let _ = kernels.read_on_all_threads(part);
                self.warm += part.len();
            }
            if self.warm < wanted && self.spent + start.elapsed() < most {
                return;
            }
        } else {
            self.warm = self.own.len();
        }
        self.stage = Stage::Read;
    }

    fn read(&mut self, kernels: Kernels, weights: &[&[u8]], start: Instant) {
        let own = [&self.own[..]];
        let parts = if self.own.is_empty() {
            weights
        } else {
            &own[..]
        };
        let mut bytes = 0;
        while start.elapsed() < TURN {
            let at = if self.cursor < self.warm {
                self.cursor
            } else {
                0
            };
            let part = piece(parts, at, READ_STEP.min(self.warm - at));
            let _ = kernels.read_on_all_threads(part);
            bytes += part.len();
            self.cursor = at + part.len();
            if part.is_empty() {
                break;
            }
        }
        self.reads.push(per_second(bytes as f64, start));
        // What multiplies needs about as long as it takes to double its length a few times.
        let rest = (MULTIPLY * 3) * MULTIPLY_TURNS as u32;
        if self.spent + start.elapsed() + rest >= self.budget {
            self.stage = Stage::Multiply;
        }
    }

    fn multiply(&mut self, kernels: Kernels) {
        let mut rounds = FIRST_ROUNDS;
        loop {
            let start = Instant::now();
            let Some(operations) = kernels.multiply_on_all_threads(rounds) else {
                self.stage = Stage::Done;
                return;
            };
            if start.elapsed() >= MULTIPLY || rounds > u32::MAX / 2 {
                self.multiplies.push(per_second(operations as f64, start));
                break;
            }
            rounds *= 2;
        }
        if self.multiplies.len() == MULTIPLY_TURNS {
            self.stage = Stage::Done;
        }
    }
}

/// Measures this machine with a thread pool of its own, whatever else runs on it. Blocks for about
/// `budget`.
///
/// # Errors
/// The threads cannot be started.
pub fn this_machine(
    threads: Threads,
    kernels: Kernels,
    budget: Duration,
) -> std::io::Result<MachineRates> {
    let pool = threads.pool().build().map_err(std::io::Error::other)?;
    let memory = memory_limit::available();
    let mut measurement = Measurement::new(budget);
    let rates = pool.install(|| {
        loop {
            if let Some(rates) = measurement.turn(kernels, &[]) {
                return rates;
            }
        }
    });
    Ok(MachineRates::of(rates, kernels, memory))
}

/// Memory of its own pages, at most an eighth of what there is.
fn anonymous() -> Vec<u8> {
    let room = memory_limit::available().map_or(u64::MAX, |bytes| bytes / 8);
    let bytes = READ_BYTES.min(usize::try_from(room).unwrap_or(usize::MAX));
    let mut own = Vec::new();
    for bytes in [bytes, LEAST_BYTES.min(bytes), 1 << 20] {
        if own.try_reserve_exact(bytes).is_ok() {
            // Not zeros: untouched pages of zeros are all the same page.
            own.resize(bytes, 1);
            break;
        }
    }
    own
}

/// Up to `most` bytes from the byte `at` of all `parts` on, as far as one part goes.
fn piece<'a>(parts: &[&'a [u8]], mut at: usize, most: usize) -> &'a [u8] {
    for part in parts {
        if at < part.len() {
            return &part[at..part.len().min(at + most)];
        }
        at -= part.len();
    }
    &[]
}

fn per_second(amount: f64, start: Instant) -> f64 {
    amount / start.elapsed().as_secs_f64().max(1e-9)
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_weights_is_measured_within_its_turns() {
        let threads = Threads::new(2, false);
        let budget = Duration::from_millis(120);
        let rates = this_machine(threads, Kernels::detect(), budget).expect("rates");
        assert!(rates.read > 1_000_000, "{rates:?}");
        assert!(rates.cores >= 1 && rates.kernels == Kernels::detect().name());
    }

    #[test]
    fn weights_are_read_where_there_are_enough() {
        let weights = vec![1u8; LEAST_BYTES / 2 + 1];
        let parts = [&weights[..], &[], &weights[..]];
        let mut measurement = Measurement::new(Duration::from_millis(150));
        let mut turns = 0;
        let rates = loop {
            turns += 1;
            if let Some(rates) = measurement.turn(Kernels::detect(), &parts) {
                break rates;
            }
        };
        assert!(measurement.own.is_empty() && measurement.warm > 0);
        assert!((3..1000).contains(&turns), "{turns}");
        assert!(rates.read.is_finite() && rates.read > 0.0);
        assert_eq!(measurement.turn(Kernels::detect(), &parts), Some(rates));
    }

    #[test]
    fn pieces_stay_in_their_part() {
        let parts: [&[u8]; 3] = [b"abc", b"", b"defg"];
        assert_eq!(piece(&parts, 0, 2), b"ab");
        assert_eq!(piece(&parts, 2, 9), b"c");
        assert_eq!(piece(&parts, 3, 3), b"def");
        assert_eq!(piece(&parts, 7, 3), b"");
    }
}
