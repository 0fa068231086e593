#!/usr/bin/env bash
# Runs the tests of ds4-common for 64-bit ARM, on any x86-64 Debian, under emulation.
#
#     tests/arm.sh                 the unit tests of ds4-common on every CPU model below
#     tests/arm.sh golden          instead, checks that all kernels give a model the same logits
#
# What is needed comes from Debian alone: a cross linker and QEMU are installed (as root, unless
# they are there). Where the project's toolchain lacks the standard library for ARM, Debian's
# compiler with that library is unpacked under target/arm, where the packages' conflicts with
# another Rust do not matter. Its version is not that of rust-toolchain.toml, so its warnings do not
# count as errors. DS4_ARM_COMPILER=debian takes it in any case.
#
# The CPU models differ in what the kernels look for; each runs the fastest kernels that it has and
# all slower ones:
#
#     max           dot products and matrix products of bytes: i8mm
#     neoverse-n1   dot products: dotprod
#     cortex-a72    neither: neon
#
# Exit status: that of the tests; 77 if a package cannot be had, so that nothing was tested.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly what=${1:-common}
readonly target=aarch64-unknown-linux-gnu
readonly models=(max=i8mm neoverse-n1=dotprod cortex-a72=neon)
readonly cache=$PWD/target/arm
readonly root=$cache/root

skip() {
    echo "arm.sh: skipped: $1" >&2
    exit 77
}

install_tools() {
    if command -v qemu-aarch64-static >/dev/null && command -v aarch64-linux-gnu-gcc >/dev/null &&
        [ -e /usr/aarch64-linux-gnu/lib/libc.so ]; then
        return
    fi
    command -v apt-get >/dev/null || skip "no apt-get to install a cross compiler and QEMU with"
    [ "$(id -u)" = 0 ] ||
        skip "install gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static, or run as root"
    (apt-get update -qq && apt-get install -y -qq --no-install-recommends \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static) \
        >"$cache/install.log" 2>&1 || skip "cannot install the cross compiler and QEMU: $cache/install.log"
}

# The version is part of the library's name and moves with Debian.
download_compiler() {
    local library llvm
    apt-get update -qq || return
    library=$(apt-cache depends libstd-rust-web-dev |
        sed -n 's/.*Depends: \(libstd-rust-web-[0-9].*\)/\1/p')
    llvm=$(apt-cache depends "$library" | sed -n 's/.*Depends: \(libllvm[0-9]*\)$/\1/p')
    [ -n "$library" ] && [ -n "$llvm" ] && cd "$cache/debs" &&
        apt-get download rustc-web libstd-rust-web-dev "$library" "$llvm" libstd-rust-web-dev:arm64
}

# Debian's compiler for this machine and its library for both, without installing them.
unpack_compiler() {
    if [ -e "$root/complete" ]; then
        return
    fi
    rm -rf "$root" "$cache/apt" "$cache/debs"
    mkdir -p "$root" "$cache/apt/lists" "$cache/apt/archives/partial" "$cache/debs"
    cat >"$cache/apt.conf" <<CONF
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "root";
Dir::State::lists "$cache/apt/lists";
Dir::Cache "$cache/apt";
CONF
    (APT_CONFIG=$cache/apt.conf && export APT_CONFIG && download_compiler) \
        >"$cache/unpack.log" 2>&1 || skip "cannot get Debian's Rust compiler: $cache/unpack.log"
    local deb
    for deb in "$cache/debs"/*.deb; do
        dpkg -x "$deb" "$root"
    done
    rm -rf "$cache/debs" "$cache/apt"
    touch "$root/complete"
}

write_wrapper() {
    cat >"$cache/rustc" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH='$root/usr/lib/x86_64-linux-gnu' \\
    exec '$root/usr/bin/rustc' --sysroot '$root/usr' "\$@"
WRAPPER
    chmod +x "$cache/rustc"
    "$cache/rustc" --version >/dev/null || skip "Debian's Rust compiler does not run here"
}

own_compiler() {
    [ "${DS4_ARM_COMPILER:-}" != debian ] &&
        ls "$(rustc --print target-libdir --target "$target")"/libstd-*.rlib >/dev/null 2>&1
}

# Builds the tests named by cargo's arguments and prints the programs.
build() {
    env -u RUSTFLAGS \
        CARGO_TARGET_DIR="$cache/build" \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--cap-lints=warn" \
        cargo test --locked --target "$target" --no-run --message-format=json "$@" |
        sed -n 's/.*"test":true.*"executable":"\([^"]*\)".*/\1/p'
}

run_on() {
    local model=${1%=*} fastest=${1#*=}
    shift
    echo "== $model: kernels $fastest"
    DS4_EXPECTED_KERNELS=$fastest qemu-aarch64-static -cpu "$model" -L /usr/aarch64-linux-gnu "$@"
}

[ "$(uname -m)" = x86_64 ] || skip "this is for x86-64 machines; elsewhere run cargo test"
mkdir -p "$cache"
install_tools
if ! own_compiler; then
    unpack_compiler
    write_wrapper
    export RUSTC=$cache/rustc
fi

case $what in
golden)
    program=$(build -p ds4-tests --test it)
    cd tests
    run_on max=i8mm "$program" golden::instruction_sets
    ;;
common)
    program=$(build -p ds4-common --lib)
    cd common
    for model in "${models[@]}"; do
        # A program that an emulated one starts is not emulated.
        run_on "$model" "$program" --skip gguf::mmap::bus_error
    done
    ;;
*)
    echo "arm.sh: unknown tests: $what" >&2
    exit 2
    ;;
esac
