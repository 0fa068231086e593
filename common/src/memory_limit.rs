//! Memory that the process may still allocate: what the machine has left, or less where a control
//! group allows less.

use std::path::Path;

/// Bytes that the process can still allocate without displacing others; page cache counts as free.
/// `None` where the operating system does not tell.
#[must_use]
pub fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

fn available_under(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = root.join("sys/fs/cgroup");
    let in_groups = groups.lines().filter_map(|line| {
        // hierarchy:controllers:path
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        if controllers.is_empty() {
            in_group(&mounts, path, &VERSION_2)
        } else if controllers.split(',').any(|name| name == "memory") {
            in_group(&mounts.join("memory"), path, &VERSION_1)
        } else {
            None
        }
    });
    in_groups.chain(of_machine(root)).min()
}

fn of_machine(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kilobytes = field(&text, "MemAvailable:")?;
    Some(kilobytes.saturating_mul(1024))
}

/// The names of a group's files.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// Keys in memory.stat of page cache, and of what is counted there and cannot be given back.
    cache: &'static str,
    shared: &'static str,
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_cache",
    shared: "total_shmem",
};

const VERSION_2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    cache: "file",
    shared: "shmem",
};

/// What the group at `path` and those around it leave; a group that says nothing limits nothing.
/// Inside of a container the path may be the host's, of which only the root is seen.
fn in_group(mount: &Path, path: &str, files: &Files) -> Option<u64> {
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors()
        .filter_map(|group| left(&mount.join(group), files))
        .min()
}

fn left(group: &Path, files: &Files) -> Option<u64> {
    let read = |name| std::fs::read_to_string(group.join(name)).ok();
    let number = |name| read(name)?.trim().parse::<u64>().ok();
    // A group without a limit holds "max", which is not a number.
    let limit = number(files.limit)?;
    let stat = read("memory.stat").unwrap_or_default();
    let cache = field(&stat, files.cache).unwrap_or(0);
    let kept = field(&stat, files.shared).unwrap_or(0);
    let taken = number(files.usage).unwrap_or(0);
    Some(limit.saturating_sub(taken.saturating_sub(cache.saturating_sub(kept))))
}

/// The number behind `key` in lines of a key and a number.
fn field(text: &str, key: &str) -> Option<u64> {
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut words| {
        let found = words.next() == Some(key);
        found.then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            std::fs::write(path, text).expect("written");
        }
        available_under(root.path())
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 1000 kB\n",
    );

    #[test]
    fn a_machine_without_groups_has_what_is_available() {
        assert_eq!(machine(&[MEMINFO]), Some(1_024_000));
        assert_eq!(machine(&[]), None);
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice/x.scope\n"),
            ("sys/fs/cgroup/user.slice/x.scope/memory.max", "max\n"),
        ];
        assert_eq!(machine(&unlimited), Some(1_024_000));
    }

    #[test]
    fn the_tightest_group_around_the_process_counts() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "500000\n"),
            ("sys/fs/cgroup/a/memory.current", "300000\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 1\nfile 250000\nshmem 20000\nfile_mapped 7\n",
            ),
            ("sys/fs/cgroup/a/b/memory.max", "600000\n"),
        ];
        // 300000 are taken, of which 230000 would be given back.
        assert_eq!(machine(&files), Some(430_000));
    }

    #[test]
    fn groups_of_the_first_version_and_paths_of_the_host() {
        let files = [
            MEMINFO,
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "700000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "800000\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "cache 1\ntotal_cache 300000\ntotal_shmem 0\n",
            ),
        ];
        assert_eq!(machine(&files), Some(200_000));
    }
}
