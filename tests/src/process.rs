//! Real processes: started, waited for, asked to end, and never left behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest wait for a process to be ready or to end.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A process that serves until it is told to stop.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// The line with which it said that it is ready.
    pub ready: String,
}

impl Server {
    /// Starts `program` and waits for its first line on standard output.
    ///
    /// # Errors
    /// It does not start, ends, or stays silent.
    pub fn start(program: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        Self::launch(command)
    }

    /// As [`Self::start`], of a command that says more: where it runs, where its log goes.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn launch(mut command: Command) -> Result<Self> {
        let mut child = command
            .env("DS4_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let output = child.stdout.take().context("no output")?;
        let (send, first_line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(output).lines();
            if let Some(Ok(line)) = lines.next() {
                let _ = send.send(line);
            }
            // Read on, so that the process never blocks on a full pipe.
            lines.for_each(drop);
        });
        let mut server = Server {
            child,
            ready: String::new(),
        };
        server.ready = first_line
            .recv_timeout(PATIENCE)
            .with_context(|| format!("{command:?} did not become ready"))?;
        Ok(server)
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, as `kill` knows it.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .args(["-s", name, &self.id().to_string()])
            .status()?;
        if !status.success() {
            bail!("kill -s {name}: {status}");
        }
        Ok(())
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// It runs on.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait(&mut self.child)
    }

    /// SIGTERM, then wait.
    ///
    /// # Errors
    /// It runs on.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `program` to its end.
///
/// # Errors
/// It does not start, or runs on.
pub fn run(program: &str, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command)
}

/// As [`run`], of a command that says more.
///
/// # Errors
/// As [`run`].
pub fn run_command(mut command: Command) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let status = wait(&mut child);
    if status.is_err() {
        let _ = child.kill();
    }
    let output = child.wait_with_output()?;
    status.with_context(|| format!("{command:?}"))?;
    Ok(output)
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("it still runs after {} s", PATIENCE.as_secs())
}

/// Resident kilobytes of a process's mappings of `file`.
///
/// # Errors
/// The system does not tell.
pub fn resident_kilobytes(process: u32, file: &Path) -> Result<u64> {
    let name = file.canonicalize()?.display().to_string();
    let maps = std::fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let mut of_file = false;
    let mut total = 0;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        // A mapping's head line starts with its address range, its figures with a key.
        if !first.ends_with(':') {
            of_file = line.ends_with(&name);
        } else if of_file && first == "Rss:" {
            let kilobytes = line.split_whitespace().nth(1).context("smaps")?;
            total += kilobytes.parse::<u64>()?;
        }
    }
    Ok(total)
}
