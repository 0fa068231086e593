//! The last line of a process that touches a page of a mapped file that is gone.
//!
//! The kernel answers with SIGBUS, where nothing may be allocated, locked or formatted. So each
//! mapping enters its addresses and its finished line into a fixed table, and the handler of the
//! signal looks the address up, writes the line and ends the process. The signal goes on to the
//! handler that was there before if no mapping has the address.
#![allow(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Files that can be named; those beyond end the process as they would without the table.
const FILES: usize = 256;

/// Longest line; longer paths are cut.
const LINE_BYTES: usize = 1024;

/// What the process ends with: an error, like any other that ends it.
const EXIT_CODE: libc::c_int = 1;

struct Entry {
    /// 0 while the entry is free. Written last and read first, so that the rest is complete.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Bytes of `line`.
    length: AtomicUsize,
    line: [AtomicU8; LINE_BYTES],
}

static TABLE: [Entry; FILES] = [const {
    Entry {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        line: [const { AtomicU8::new(0) }; LINE_BYTES],
    }
}; FILES];

/// Held by whoever enters a range.
static ENTERING: Mutex<()> = Mutex::new(());

/// What handled the signal before; `None` inside if the system refused to say.
static PREVIOUS: OnceLock<Option<libc::sigaction>> = OnceLock::new();

/// A mapping's entry in the table, until it is dropped.
#[derive(Debug)]
pub(super) struct NamedRange(Option<usize>);

impl NamedRange {
    /// Enters the addresses of `map`, the mapping of `path`.
    pub(super) fn new(map: &[u8], path: &Path) -> Self {
        PREVIOUS.get_or_init(catch_bus_errors);
        // The lock guards no data that a panic could leave half-written.
        let _entering = ENTERING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |entry: &Entry| entry.start.load(Ordering::Relaxed) == 0;
        let Some(at) = TABLE.iter().position(free) else {
            return NamedRange(None);
        };
        let entry = &TABLE[at];
        let line = line(path);
        let length = line.len().min(LINE_BYTES);
        for (to, &from) in entry.line.iter().zip(&line) {
            to.store(from, Ordering::Relaxed);
        }
        entry.length.store(length, Ordering::Relaxed);
        let start = map.as_ptr() as usize;
        entry.end.store(start + map.len(), Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        NamedRange(Some(at))
    }
}

impl Drop for NamedRange {
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            TABLE[at].start.store(0, Ordering::Release);
        }
    }
}

/// The whole line, its end included.
fn line(path: &Path) -> Vec<u8> {
    let program = std::env::args_os().next();
    let program = program.as_deref().map(Path::new).and_then(Path::file_name);
    let program = program.map_or_else(|| "ds4".into(), |name| name.to_string_lossy());
    let reason = "bus error: it was truncated while it was in use, or its disk failed";
    let file = path.display().to_string();
    let most = LINE_BYTES.saturating_sub(program.len() + reason.len() + 8);
    let cut = file.floor_char_boundary(most);
    format!("{program}: {}: {reason}\n", &file[..cut]).into_bytes()
}

/// Installs the handler. Returns what was there before.
fn catch_bus_errors() -> Option<libc::sigaction> {
    // SAFETY: all fields of a `sigaction` are integers, pointers that may be null, and sets of
    // bits, so zeros are a valid value.
    let (mut action, mut previous): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    action.sa_sigaction = on_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both pointers are to live values of the right type, and the handler is a function of
    // the type that SA_SIGINFO requires, which calls nothing that a signal handler may not.
    let refused = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) };
    (refused == 0).then_some(previous)
}

/// Runs inside of the signal: reads atomics, writes to standard error, ends the process.
extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Only a fault has an address, and the codes of faults are positive.
    let faulted = code > 0;
    let has = |entry: &&Entry| {
        let start = entry.start.load(Ordering::Acquire);
        start != 0 && (start..entry.end.load(Ordering::Relaxed)).contains(&address)
    };
    if let Some(entry) = TABLE.iter().find(has).filter(|_| faulted) {
        let mut line = [0; LINE_BYTES];
        for (to, from) in line.iter_mut().zip(&entry.line) {
            *to = from.load(Ordering::Relaxed);
        }
        let length = entry.length.load(Ordering::Relaxed).min(LINE_BYTES);
        // SAFETY: `line` has at least `length` bytes. Both calls may be made in a signal handler.
        unsafe {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
            libc::_exit(EXIT_CODE);
        }
    }
    // The instruction that faulted runs again when this returns, and meets the earlier handler.
    // A signal that was sent is sent again.
    let earlier = PREVIOUS.get().and_then(Option::as_ref);
    // SAFETY: `earlier` is an action that the kernel gave, or null, which changes nothing; the
    // default action is a valid handler for every signal. All calls may be made in a handler.
    unsafe {
        match earlier {
            Some(earlier) => {
                libc::sigaction(signal, earlier, std::ptr::null_mut());
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        if !faulted {
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::process::Command;

    use crate::gguf::Mapping;

    /// Set in the process that dies: the file to map.
    const VICTIM: &str = "DS4_TEST_BUS_ERROR";

    #[test]
    fn the_last_line_names_the_file_that_was_cut() {
        if let Some(path) = std::env::var_os(VICTIM) {
            let mapping = Mapping::open(path.as_ref()).expect("mapped");
            let file = OpenOptions::new().write(true).open(&path).expect("open");
            file.set_len(1).expect("cut");
            std::hint::black_box(mapping.bytes()[100_000]);
            unreachable!("the page is gone");
        }
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("cut.bin");
        std::fs::write(&path, vec![7; 200_000]).expect("written");
        let test = "gguf::mmap::bus_error::tests::the_last_line_names_the_file_that_was_cut";
        let victim = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", test, "--nocapture"])
            .env(VICTIM, &path)
            .output();
        let victim = victim.expect("it starts");
        assert_eq!(victim.status.code(), Some(1), "{victim:?}");
        let said = String::from_utf8_lossy(&victim.stderr);
        let last = said.lines().last().unwrap_or_default();
        let cut = "cut.bin: bus error: it was truncated";
        assert!(last.contains(cut), "{said}");
    }
}
