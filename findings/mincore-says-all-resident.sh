#!/usr/bin/env bash
# mincore, and vmtouch with it, call every page of a file resident if the caller may read it but not write it.
#
# Packages: Debian vmtouch 1.3.1-2, Python's standard library (mincore through ctypes). Linux 5.2 or
# newer. Needs root, to have two users, and a temporary folder on a disk file system.
#
# Behaviour: mincore(2) tells the truth about a file mapping only to the file's owner and to those who
# may write the file. To all others it reports every page as present, without an error. A file of
# 64 MiB, none of it in the page cache, is at 0 % for its owner and at 100 % for user 65534, who can
# read it; looking did not load it, since the owner still sees 0 %. With permission to write, which
# that user never makes use of, the same call says 0 % to him too.
#
# Why a good guess is wrong: the call succeeds, what it needs elsewhere is permission to read, and the
# number is plausible. Weights are owned by root, mounted read-only and served under another user id:
# precisely there a readiness probe, a benchmark or a dashboard that asks how much of a model is
# in memory hears "all of it" before the first byte was read. What the process itself has touched (Rss
# in /proc/self/smaps) is not blurred so.
#
# Seen:
#   owner              0 of 16384 pages
#   reader         16384 of 16384 pages
#   owner again        0 of 16384 pages
#   may write          0 of 16384 pages
#   reader's mincore: 16384 pages, Rss in smaps: 0 kB
set -euo pipefail

work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
[ "$(id -u)" = 0 ] || { echo "this needs root, to act as two users" >&2; exit 1; }
apt-get --option APT::Sandbox::User=root --quiet=2 download vmtouch=1.3.1-2
dpkg-deb --extract vmtouch_*.deb .

head --bytes=64M /dev/urandom >weights
sync weights
chmod 644 weights
python3 -c '
import os
os.posix_fadvise(os.open("weights", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)'

stranger() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
resident() { sed -n 's,.*Resident Pages: \([0-9]*\)/\([0-9]*\) .*,\1 \2,p'; }
ask() {
    local who=$1 expected=$2 pages total
    shift 2
    read -r pages total < <("$@" usr/bin/vmtouch weights | resident)
    printf '%-14s %5d of %d pages\n' "$who" "$pages" "$total"
    [ "$pages" = "$expected" ] || { echo "expected $expected" >&2; exit 1; }
}
ask owner 0 env
ask reader 16384 stranger
ask 'owner again' 0 env
chmod 666 weights
ask 'may write' 0 stranger
chmod 644 weights

python3 - <<'PY'
import ctypes
import mmap
import os
import sys

os.setgroups([])
os.setgid(65534)
os.setuid(65534)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
size = 64 << 20
with open("weights", "rb") as file:
    start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    assert libc.mincore(start, size, pages) == 0
    assert all(page & 1 for page in pages)
    rss = []
    for line in open("/proc/self/smaps"):
        words = line.split()
        if len(words) > 5 and words[5].endswith("/weights"):
            rss.append(None)
        elif words[0] == "Rss:" and rss and rss[-1] is None:
            rss[-1] = int(words[1])
print(f"reader's mincore: {sum(page & 1 for page in pages)} pages, Rss in smaps: {sum(rss)} kB")
sys.exit(rss != [0])
PY
