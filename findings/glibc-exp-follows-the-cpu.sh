#!/usr/bin/env bash
# One binary, one glibc, the same arguments: f64::exp, ln, sin, tanh and others return other bits on
# a processor without fused multiply-add. f32::exp and f32::ln do not.
#
# Packages: Debian libc6 2.36-9+deb12u14 (libm.so.6 and its loader), called from Rust's standard
# library (any rustc). x86-64 with FMA.
#
# Behaviour: Rust's float functions are calls into libm, and glibc's libm holds each of them several
# times, compiled with and without FMA. The loader picks by the processor at start. Here it is told by
# GLIBC_TUNABLES that FMA is missing, which an older machine or a cautious hypervisor says by itself.
# Of 200,000 arguments a function, between 1 and 146 results differ in their last bits. f32::exp and f32::ln, which compute in double inside, round the difference away: none of
# 200,000 differs.
#
# Why a good guess is wrong: that libraries differ from each other is known, so one pins the image and
# the libc, and compiles without -ffast-math or a target CPU. None of this helps: the choice is made
# when the process starts. Nor does the usual rule "double is the safer type" hold: the f64 functions
# move, the f32 exponential does not. Machines of unequal age that must agree to the bit need an exp
# of their own (the libm crate, say).
#
# Seen:
#   loader: 2.36-9+deb12u14
#   f64::exp     128 of 200000 differ   10.66970841377183: 40e5030c8b641a43, without FMA 40e5030c8b641a44
#   f64::ln        8 of 200000 differ   1.614493376997534: 3fdea84892b1bf0a, without FMA 3fdea84892b1bf09
#   f64::sin     146 of 200000 differ   -6.077257357359166: 3fca2c41955d20e9, without FMA 3fca2c41955d20ea
#   f64::cos     136 of 200000 differ   13.915071039323465: 3fcc31f4a9e84803, without FMA 3fcc31f4a9e84804
#   f64::tan       1 of 200000 differ   -7.805911401911768: c034c970449b760a, without FMA c034c970449b760b
#   f64::atan     42 of 200000 differ   -0.08138265958112711: bfb4c9c406cf2239, without FMA bfb4c9c406cf2238
#   f64::tanh      9 of 200000 differ   -0.612739210077681: bfe17942ef46fbdb, without FMA bfe17942ef46fbd9
#   f64::ln_1p    24 of 200000 differ   10.489695121507774: 400388173ad1ef41, without FMA 400388173ad1ef42
#   f32::exp       0 of 200000 differ
#   f32::ln        0 of 200000 differ
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
grep -qw fma /proc/cpuinfo || { echo "this needs a processor with FMA" >&2; exit 1; }
apt-get --option APT::Sandbox::User=root --quiet=2 download libc6=2.36-9+deb12u14
dpkg-deb --extract libc6_*.deb libc

cat >bits.rs <<'RS'
//! Prints function, argument and result, in hexadecimal, for pseudo-random arguments.
use std::io::Write;

fn main() {
    let doubles: [(&str, fn(f64) -> f64, f64, f64); 8] = [
        ("f64::exp", f64::exp, -20.0, 20.0),
        ("f64::ln", f64::ln, 0.1, 20.0),
        ("f64::sin", f64::sin, -20.0, 20.0),
        ("f64::cos", f64::cos, -20.0, 20.0),
        ("f64::tan", f64::tan, -20.0, 20.0),
        ("f64::atan", f64::atan, -20.0, 20.0),
        ("f64::tanh", f64::tanh, -20.0, 20.0),
        ("f64::ln_1p", f64::ln_1p, 0.0, 20.0),
    ];
    let floats: [(&str, fn(f32) -> f32, f64, f64); 2] =
        [("f32::exp", f32::exp, -20.0, 20.0), ("f32::ln", f32::ln, 0.1, 20.0)];
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (name, f, low, high) in doubles {
        for x in arguments(low, high) {
            writeln!(out, "{name} {x:?} {:016x}", f(x).to_bits()).unwrap();
        }
    }
    for (name, f, low, high) in floats {
        for x in arguments(low, high) {
            writeln!(out, "{name} {:?} {:08x}", x as f32, f(x as f32).to_bits()).unwrap();
        }
    }
}

fn arguments(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let mut state = 0x1234_5678_9abc_def1u64;
    (0..200_000).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        low + (high - low) * ((state >> 11) as f64 / (1u64 << 53) as f64)
    })
}
RS
rustc --edition 2021 -O bits.rs

run() { libc/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path libc/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu ./bits; }
run >with
run >again
GLIBC_TUNABLES=glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2 run >without

cmp with again
echo "loader: $(dpkg-deb --field libc6_*.deb Version)"
paste -d ' ' with without | awk '
    { total[$1]++ }
    $3 != $6 { differ[$1]++; if (!($1 in first)) first[$1] = $2 ": " $3 ", without FMA " $6 }
    END {
        bad = 0
        n = split("f64::exp f64::ln f64::sin f64::cos f64::tan f64::atan f64::tanh f64::ln_1p f32::exp f32::ln", order, " ")
        for (i = 1; i <= n; i++) {
            f = order[i]
            printf "%-11s %4d of %d differ   %s\n", f, differ[f], total[f], first[f]
            if ((f ~ /^f64/) != (differ[f] > 0)) bad = 1
        }
        exit bad
    }'
