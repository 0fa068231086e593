#!/usr/bin/env bash
# proptest's any::<String>() never generates a line feed, a tab, a NUL, a byte order mark or a
# zero-width joiner; any::<f32>() never a NaN or an infinity.
#
# Package: crate proptest 1.12.0.
#
# Behaviour: of 100,000 strings (1.6 million characters) none holds a control character, a format
# character (U+FEFF, U+200D, U+202E), or one of a private area, and none is longer than 32 characters.
# any::<char>() does generate control characters, one in eight, so a vector of these collected into a
# string has them all. Of a million any::<f32>() none is NaN or infinite, though -0.0 and subnormals
# are there; proptest::num::f32::ANY has all of them.
#
# Why a good guess is wrong: "any" reads as every value of the type, the strings look wild enough, and
# any::<char>() does give what any::<String>() lacks. So the property "what we write, the reader gets
# back" passes for years for escaping, event streams, header values, CSV and tokenizers, without ever
# having seen a line end, and one about sums or comparisons of floats without ever having seen what
# breaks them.
#
# Seen:
#   any::<String>()      1598645 characters: 0 control, 0 line feeds, 0 format, 0 private; longest 32
#   vec(any::<char>())   1601374 characters: 204891 control, 27400 line feeds, 55413 format, 49821 private; longest 32
#   any::<f32>()         of 1000000: 0 NaN, 0 infinite, 110918 subnormal, 74012 -0.0
#   num::f32::ANY        of 1000000: 32957 NaN, 66579 infinite, 100008 subnormal, 66511 -0.0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "any"
version = "0.0.0"
edition = "2021"

[profile.dev]
opt-level = 1

[dependencies]
proptest = { version = "=1.12.0", default-features = false, features = ["std"] }
TOML
cat >src/main.rs <<'RS'
use proptest::{collection::vec, num, prelude::*, strategy::ValueTree, test_runner::TestRunner};

#[derive(Debug, Default, PartialEq)]
struct Seen {
    characters: u32,
    control: u32,
    line_feeds: u32,
    format: u32,
    private: u32,
    longest: usize,
}

fn strings(name: &str, strategy: impl Strategy<Value = String>) -> Seen {
    let mut runner = TestRunner::deterministic();
    let mut seen = Seen::default();
    for _ in 0..100_000 {
        let text = strategy.new_tree(&mut runner).unwrap().current();
        seen.longest = seen.longest.max(text.chars().count());
        for c in text.chars() {
            seen.characters += 1;
            seen.control += u32::from(c.is_control());
            seen.line_feeds += u32::from(c == '\n');
            seen.format += u32::from(matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{feff}'));
            seen.private += u32::from(matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..));
        }
    }
    println!(
        "{name:20} {} characters: {} control, {} line feeds, {} format, {} private; longest {}",
        seen.characters, seen.control, seen.line_feeds, seen.format, seen.private, seen.longest
    );
    seen
}

fn floats(name: &str, strategy: impl Strategy<Value = f32>) -> [u32; 4] {
    let mut runner = TestRunner::deterministic();
    let mut seen = [0; 4];
    for _ in 0..1_000_000 {
        let x = strategy.new_tree(&mut runner).unwrap().current();
        seen[0] += u32::from(x.is_nan());
        seen[1] += u32::from(x.is_infinite());
        seen[2] += u32::from(x.is_subnormal());
        seen[3] += u32::from(x == 0.0 && x.is_sign_negative());
    }
    println!("{name:20} of 1000000: {} NaN, {} infinite, {} subnormal, {} -0.0", seen[0], seen[1], seen[2], seen[3]);
    seen
}

fn main() {
    let plain = strings("any::<String>()", any::<String>());
    let chars = strings("vec(any::<char>())", vec(any::<char>(), 0..=32).prop_map(String::from_iter));
    let [nan, infinite, subnormal, minus_zero] = floats("any::<f32>()", any::<f32>());
    let all = floats("num::f32::ANY", num::f32::ANY);

    assert_eq!((plain.control, plain.line_feeds, plain.format, plain.private, plain.longest), (0, 0, 0, 0, 32));
    assert!(chars.control > 0 && chars.line_feeds > 0 && chars.format > 0 && chars.private > 0);
    assert!(nan == 0 && infinite == 0 && subnormal > 0 && minus_zero > 0);
    assert!(all.iter().all(|&n| n > 0));
}
RS
cargo run --quiet
