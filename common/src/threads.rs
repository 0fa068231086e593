//! Compute threads, optionally pinned to cores of their own.

use rayon::ThreadPoolBuilder;

/// A number of compute threads, and the cores that they are pinned to.
#[derive(Clone, Debug)]
pub struct Threads {
    count: usize,
    /// The cores that the threads take in turn; empty where the system places them.
    cores: Vec<usize>,
}

impl Threads {
    /// `count` threads, or one per core for 0. Pinned threads take in turn the cores that the
    /// calling thread may use at this moment, so that limits of a container or `taskset` hold.
    ///
    /// Where the operating system does not tell these cores, a warning is logged and nothing is
    /// pinned.
    #[must_use]
    pub fn new(count: usize, pin: bool) -> Self {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let mut cores = Vec::new();
        if pin {
            match affinity::allowed() {
                Ok(found) if found.len() < count => {
                    tracing::warn!(
                        threads = count,
                        cores = found.len(),
                        "more threads than cores: pinned threads share cores"
                    );
                    cores = found;
                }
                Ok(found) => cores = found,
                Err(error) => tracing::warn!(%error, "cannot pin threads to cores"),
            }
        }
        Threads { count, cores }
    }

    /// Number of threads.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// A pool of these threads. With `use_current_thread`, the caller is thread 0, which the pool
    /// does not start: [`Threads::place`] pins it.
    #[must_use]
    pub fn pool(&self) -> ThreadPoolBuilder {
        let threads = self.clone();
        ThreadPoolBuilder::new()
            .num_threads(self.count)
            .start_handler(move |index| threads.place(index))
    }

    /// Pins the calling thread as number `index` of the pool, if these threads are pinned.
    pub fn place(&self, index: usize) {
        if self.cores.is_empty() {
            return;
        }
        let core = self.cores[index % self.cores.len()];
        if let Err(error) = affinity::stay_on(core) {
            tracing::warn!(index, core, %error, "cannot pin a thread to a core");
        }
    }
}

#[cfg(target_os = "linux")]
mod affinity {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The cores that the calling thread may use, ascending.
    pub(super) fn allowed() -> io::Result<Vec<usize>> {
        let set = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|&c| set.is_set(c)).collect())
    }

    pub(super) fn stay_on(core: usize) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    use std::io;

    pub(super) fn allowed() -> io::Result<Vec<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn stay_on(_core: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpinned_threads_stay_where_the_system_puts_them() {
        let threads = Threads::new(3, false);
        assert_eq!((threads.count(), threads.cores.len()), (3, 0));
        assert!(Threads::new(0, false).count() > 0);
        let pool = threads.pool().build().unwrap();
        assert_eq!(pool.current_num_threads(), 3);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pinned_threads_take_the_allowed_cores_in_turn() {
        let allowed = affinity::allowed().unwrap();
        let threads = Threads::new(allowed.len() + 1, true);
        let pool = threads.pool().build().unwrap();
        let found = pool.broadcast(|_| affinity::allowed().unwrap());
        for (i, cores) in found.iter().enumerate() {
            assert_eq!(cores, &[allowed[i % allowed.len()]]);
        }
        assert_eq!(affinity::allowed().unwrap(), allowed, "the caller is free");
    }
}
