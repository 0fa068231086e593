//! A node whose memory is smaller than its tiles.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ds4_common::model::HyperParams;
use ds4_common::model::synthetic::{Recipe, presets, write};
use ds4_tests::process::{Server, resident_kilobytes, run_command};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");
const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

/// Bytes of memory: less than half of the experts' weights.
const LIMIT: u64 = 96 << 20;

/// Bytes by which the kernel's count lags behind.
const SLACK: u64 = 4 << 20;

/// A model with 227 MB of experts and little else.
fn shape() -> HyperParams {
    HyperParams {
        hidden: 1024,
        experts: 16,
        experts_used: 6,
        expert_width: 2048,
        ..presets::tiny()
    }
}

/// A control group with a memory limit, of either version.
struct Group {
    folder: PathBuf,
    /// The file with the most bytes that it has used.
    peak: &'static str,
}

impl Group {
    fn new(limit: u64) -> Result<Self> {
        let name = format!("ds4-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let (parent, keys, peak) = if root.join("memory/memory.limit_in_bytes").exists() {
            let keys: &[&str] = &["memory.limit_in_bytes"];
            (root.join("memory"), keys, "memory.max_usage_in_bytes")
        } else {
            let controllers = std::fs::read_to_string(root.join("cgroup.subtree_control"));
            let controllers = controllers.context("cgroup.subtree_control")?;
            ensure!(
                controllers.contains("memory"),
                "no memory controller for sub-groups"
            );
            let keys: &[&str] = &["memory.max"];
            (root.to_owned(), keys, "memory.peak")
        };
        let group = Group {
            folder: parent.join(name),
            peak,
        };
        std::fs::create_dir(&group.folder).with_context(|| group.folder.display().to_string())?;
        for key in keys {
            std::fs::write(group.folder.join(key), limit.to_string()).context(*key)?;
        }
        group.peak().context(peak)?;
        Ok(group)
    }

    fn peak(&self) -> Result<u64> {
        let text = std::fs::read_to_string(self.folder.join(self.peak))?;
        Ok(text.trim().parse()?)
    }

    /// A command that runs `program` in the group from its first page on.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        let members = self.folder.join("cgroup.procs");
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]);
        command.arg(members).arg(program);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group stays busy for a moment after its last process has ended.
        let gone = || std::fs::remove_dir(&self.folder).is_ok();
        for _ in 0..100 {
            if gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.folder.display());
    }
}

/// Drops the file from the page cache, so that its pages are charged to the next reader.
fn forget(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

struct Run {
    logits: Vec<u8>,
    took: Duration,
    resident: u64,
}

/// Writes all experts of the model to a slice. The pages that the coordinator reads of the model,
/// with those that the kernel reads ahead, are then not the node's.
fn slice(model: &Path, folder: &Path) -> Result<PathBuf> {
    let mut command = Command::new(COORD);
    command.args(["slice", "--log=warn", "--nodes=1", "-m"]);
    command.arg(model).arg("--out").arg(folder);
    let output = run_command(command)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{error}");
    Ok(folder.join("node-0.gguf"))
}

/// Runs a coordinator that leaves all experts to the node of `command`.
fn run(mut command: Command, model: &Path, slice: &Path, folder: &Path) -> Result<Run> {
    command.args(["serve", "--listen=127.0.0.1:0", "--threads=1"]);
    command.args(["--no-populate", "--slice"]).arg(slice);
    command.stderr(File::create(folder.join("node.log"))?);
    let mut node = Server::launch(command)?;
    let mut words = node
        .ready
        .split(&[' ', ':'][..])
        .skip_while(|word| *word != "127.0.0.1");
    let Some(port) = words.nth(1) else {
        bail!("no address in {:?}", node.ready)
    };
    let tokens: Vec<u32> = (0..24).map(|i| i * 37 % 512).collect();
    let (list, out) = (folder.join("tokens.json"), folder.join("logits.npy"));
    std::fs::write(&list, format!("{tokens:?}"))?;
    let mut coordinator = Command::new(COORD);
    coordinator.args([
        "logits",
        "--log=warn",
        "--local-fallback=never",
        "--chunk=8",
    ]);
    coordinator
        .args(["--nodes", &format!("127.0.0.1:{port}"), "-m"])
        .arg(model);
    coordinator
        .arg("--tokens")
        .arg(&list)
        .arg("--out")
        .arg(&out);
    let start = Instant::now();
    let output = run_command(coordinator)?;
    let took = start.elapsed();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{error}");
    let resident = resident_kilobytes(node.id(), slice)? << 10;
    ensure!(node.stop()?.success(), "the node did not end well");
    Ok(Run {
        logits: std::fs::read(&out)?,
        took,
        resident,
    })
}

#[test]
fn a_node_with_less_memory_than_its_tiles_computes_the_same_bits() {
    // Not in a memory file system, whose pages cannot be dropped.
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
    let group = match Group::new(LIMIT) {
        Ok(group) => group,
        Err(error) => {
            println!(
                "skipped: a memory control group cannot be made here, which needs root: {error:#}"
            );
            return;
        }
    };
    let model = folder.path().join("model.gguf");
    write(&model, &shape(), &Recipe::default()).expect("model");
    let slice = slice(&model, folder.path()).expect("slice");
    forget(&slice).expect("flushed");
    let free = run(Command::new(NODE), &model, &slice, folder.path()).expect("without a limit");
    assert!(
        free.resident > 2 * LIMIT,
        "{} bytes are needed at once",
        free.resident
    );
    forget(&slice).expect("dropped");
    let limited = run(group.command(NODE), &model, &slice, folder.path()).expect("with a limit");
    assert!(limited.logits == free.logits, "logits differ");
    let peak = group.peak().expect("peak");
    println!(
        "{:.2} s and {} MB resident without a limit, {:.2} s and {} MB within {} MB",
        free.took.as_secs_f64(),
        free.resident / 1_000_000,
        limited.took.as_secs_f64(),
        limited.resident / 1_000_000,
        LIMIT / 1_000_000
    );
    assert!(peak <= LIMIT + SLACK, "{peak} bytes in use");
    assert!(
        limited.resident <= LIMIT + SLACK,
        "{} bytes resident",
        limited.resident
    );
}
