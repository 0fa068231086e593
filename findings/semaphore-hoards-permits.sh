#!/usr/bin/env bash
# While an acquire_many of tokio's Semaphore waits, it already holds what is free: try_acquire of one
# fails, though nobody uses the permits.
#
# Package: crate tokio 1.54.1.
#
# Behaviour: of ten permits four are in use and six are free. A task asks for eight and waits. From
# then on `available_permits` says 0, `try_acquire` of one permit fails with NoPermits, `acquire` of
# one waits behind the eight, and so does everything that is released later: it goes to the waiting
# task. The six lie idle until enough of the four came back. If the waiting task gives up (its future
# is dropped, as by `timeout` or `select!`), all that it gathered reappears at once.
#
# Why a good guess is wrong: that waiting is first come, first served is documented; that the one
# waiting takes free permits in advance, and that this is visible to those who never wait, follows
# from it only for those who know the implementation. A gauge drawn from `available_permits` shows a full
# house at 40 % use; an admission that sheds load by `try_acquire` refuses small requests because a
# large one is patient; and a large one with a timeout blocks them for as long as that takes, each
# time it tries again, without ever running.
#
# Seen:
#   four of ten in use                  available 6, try_acquire of one: granted
#   one task waits for eight            available 0, try_acquire of one: refused
#                                       acquire of one: waits
#   one of the four came back           available 0, try_acquire of one: refused
#   the waiting task gave up            available 7, try_acquire of one: granted
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "permits"
version = "0.0.0"
edition = "2021"

[dependencies]
tokio = { version = "=1.54.1", features = ["macros", "rt", "sync", "time"] }
TOML
cat >src/main.rs <<'RS'
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::yield_now, time::timeout};

fn show(when: &str, permits: &Semaphore) -> (usize, bool) {
    let seen = (permits.available_permits(), permits.try_acquire().is_ok());
    println!("{when:35} available {}, try_acquire of one: {}", seen.0, if seen.1 { "granted" } else { "refused" });
    seen
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let permits = Arc::new(Semaphore::new(10));
    let one = permits.acquire().await.unwrap();
    let three = permits.acquire_many(3).await.unwrap();
    let before = show("four of ten in use", &permits);

    let waiting = tokio::spawn({
        let permits = permits.clone();
        async move { drop(permits.acquire_many(8).await.unwrap()) }
    });
    yield_now().await;
    let during = show("one task waits for eight", &permits);
    let small = timeout(Duration::from_millis(100), permits.acquire()).await.is_ok();
    println!("{:35} acquire of one: {}", "", if small { "granted" } else { "waits" });
    drop(one);
    let released = show("one of the four came back", &permits);

    waiting.abort();
    yield_now().await;
    let after = show("the waiting task gave up", &permits);
    drop(three);

    assert_eq!((before, during, released, after), ((6, true), (0, false), (0, false), (7, true)));
    assert!(!small);
}
RS
cargo run --quiet
