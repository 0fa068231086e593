#!/usr/bin/env bash
# madvise(MADV_WILLNEED) over a large mapping reads ahead a few megabytes at its front, and no more.
#
# Packages: crate memmap2 0.9.12 with libc 0.2.191, on Linux. Needs a temporary folder on a disk file
# system (TMPDIR, else /var/tmp).
#
# Behaviour: one call of memmap2's `advise(Advice::WillNeed)` over a mapping of 192 MiB returns
# without an error. Seconds later, when nothing more arrives, the page cache holds one read-ahead window
# of the device: 8 MiB here, where the window is unusually large. posix_fadvise(WILLNEED) and
# readahead(2) with the whole length stop at the same place. The same advice in pieces of 128 KiB
# loads the file.
#
# Why a good guess is wrong: all three calls take any length, report success, and promise in their
# manuals to read the range ahead. A loader that hands its weights to one call and counts on having
# them soon meets a disk that idles, and then pays for them page fault by page fault, at the first
# request. MADV_POPULATE_READ knows no such limit (and waits).
#
# Seen:
#   read-ahead window of the device: 8192 KiB
#   WillNeed, one call for 192 MiB        8.0 MiB resident
#   posix_fadvise, one call               8.0 MiB resident
#   readahead, one call                   8.0 MiB resident
#   WillNeed, a call every 128 KiB      192.0 MiB resident
#   PopulateRead, one call              192.0 MiB resident
set -euo pipefail

work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$work"' EXIT
cd "$work"
head --bytes=192M /dev/urandom >weights
sync weights

mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "willneed"
version = "0.0.0"
edition = "2021"

[dependencies]
libc = "=0.2.191"
memmap2 = "=0.9.12"
TOML
cat >src/main.rs <<'RS'
use memmap2::{Advice, Mmap};
use std::{fs::File, os::fd::AsRawFd, thread, time::Duration};

const SIZE: usize = 192 << 20;
const PIECE: usize = 128 << 10;

/// MiB of the file in the page cache after `ask`, from a cold start.
fn resident(name: &str, ask: impl Fn(&File, &Mmap)) -> f64 {
    let file = File::open("weights").unwrap();
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let map = unsafe { Mmap::map(&file).unwrap() };
    assert_eq!(pages(&map), 0, "the file left the page cache");
    ask(&file, &map);
    let mut before = usize::MAX;
    let mut now = 0;
    // Until a second brought nothing, two at least.
    while before != now || now == 0 {
        before = now;
        thread::sleep(Duration::from_secs(1));
        now = pages(&map);
    }
    let mib = now as f64 * 4096.0 / f64::from(1 << 20);
    println!("{name:34} {mib:6.1} MiB resident");
    mib
}

fn pages(map: &Mmap) -> usize {
    let mut state = vec![0u8; SIZE / 4096];
    let start = map.as_ptr().cast_mut().cast();
    assert_eq!(unsafe { libc::mincore(start, SIZE, state.as_mut_ptr()) }, 0);
    state.iter().filter(|&&s| s & 1 == 1).count()
}

fn main() {
    let length = SIZE as libc::off_t;
    let short = [
        resident("WillNeed, one call for 192 MiB", |_, map| map.advise(Advice::WillNeed).unwrap()),
        resident("posix_fadvise, one call", |file, _| unsafe {
            assert_eq!(libc::posix_fadvise(file.as_raw_fd(), 0, length, libc::POSIX_FADV_WILLNEED), 0);
        }),
        resident("readahead, one call", |file, _| unsafe {
            assert_eq!(libc::readahead(file.as_raw_fd(), 0, SIZE), 0);
        }),
    ];
    let whole = [
        resident("WillNeed, a call every 128 KiB", |_, map| {
            for start in (0..SIZE).step_by(PIECE) {
                map.advise_range(Advice::WillNeed, start, PIECE).unwrap();
            }
        }),
        resident("PopulateRead, one call", |_, map| map.advise(Advice::PopulateRead).unwrap()),
    ];
    assert!(short.iter().all(|&mib| mib < 48.0), "one call reads less than a quarter of the file");
    assert!(whole.iter().all(|&mib| mib > 180.0), "pieces read nearly all of it");
}
RS
echo "read-ahead window of the device: $(cat "/sys/class/bdi/$(stat --format=%Hd:%Ld weights)/read_ahead_kb") KiB"
cargo run --quiet
