//! Programs in a control group that allows too few threads.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ds4_tests::golden::ALL;
use ds4_tests::process::run_command;

const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");
const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

/// A control group with a limit of processes and threads, of either version.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let parent = if root.join("pids").is_dir() {
            root.join("pids")
        } else {
            let controllers = std::fs::read_to_string(root.join("cgroup.subtree_control"));
            let controllers = controllers.context("cgroup.subtree_control")?;
            ensure!(
                controllers.contains("pids"),
                "no pids controller for sub-groups"
            );
            root.to_owned()
        };
        let folder = parent.join(format!("ds4-threads-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let group = Group(folder);
        group.limit(1)?;
        Ok(group)
    }

    fn limit(&self, threads: usize) -> Result<()> {
        std::fs::write(self.0.join("pids.max"), threads.to_string()).context("pids.max")
    }

    /// A command that runs `program` in the group.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]);
        command.arg(self.0.join("cgroup.procs")).arg(program);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group stays busy for a moment after its last process has ended.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

#[test]
fn threads_that_cannot_be_had_are_an_error_and_an_end() {
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => {
            println!("skipped: a control group cannot be made here, which needs root: {error:#}");
            return;
        }
    };
    let model = ALL[0].model();
    for program in [COORD, NODE] {
        for threads in 1..=5 {
            group.limit(threads).expect("a limit");
            let mut command = group.command(program);
            command.args(["serve", "--listen=127.0.0.1:0", "--threads=2", "-m"]);
            command.arg(&model);
            // An error if it still runs after a minute.
            let output = run_command(command).expect("an end");
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(1),
                "{program}, {threads}: {error}"
            );
            assert!(!error.contains("panicked"), "{program}, {threads}: {error}");
            let last = error.lines().last().unwrap_or_default();
            assert!(last.contains("thread"), "{program}, {threads}: {error}");
        }
    }
}
