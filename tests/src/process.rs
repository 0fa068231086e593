//! Processes that are started, awaited, stopped, and never left running.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest wait for a process to become ready or to end.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A process that serves until it is stopped. Dropping this kills it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// The first line of its standard output, which it prints when it is ready.
    pub ready: String,
}

impl Server {
    /// Starts `program` and waits for its first line on standard output.
    ///
    /// # Errors
    /// The process does not start, or prints nothing within [`TIMEOUT`].
    pub fn start(program: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        Self::launch(command)
    }

    /// As [`Self::start`], with a command that also says where the process runs or where its log
    /// goes.
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
            // Reads on, so that the process never blocks on a full pipe.
            lines.for_each(drop);
        });
        let mut server = Server {
            child,
            ready: String::new(),
        };
        server.ready = first_line
            .recv_timeout(TIMEOUT)
            .with_context(|| format!("{command:?} did not become ready"))?;
        Ok(server)
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends the signal that `kill` knows by `name`.
    ///
    /// # Errors
    /// The process has ended.
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
    /// It still runs after [`TIMEOUT`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait(&mut self.child)
    }

    /// Sends SIGTERM and waits for the process to end.
    ///
    /// # Errors
    /// It still runs after [`TIMEOUT`].
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `program` to its end.
///
/// # Errors
/// It does not start, or still runs after [`TIMEOUT`].
pub fn run(program: &str, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command)
}

/// As [`run`], with a command that also says where the process runs.
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
    // Read while it runs: a full pipe would stop it.
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let status = wait(&mut child);
    if status.is_err() {
        let _ = child.kill();
    }
    let output = Output {
        status: child.wait()?,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    };
    status.with_context(|| format!("{command:?}"))?;
    Ok(output)
}

/// What a pipe still holds until its end, read on a thread.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is what there is.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("still running after {} s", TIMEOUT.as_secs())
}

/// Resident kilobytes of a process's mappings of `file`.
///
/// # Errors
/// `/proc` does not show the process's mappings.
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

/// Bytes of a process that are resident, of which its peak was the most.
///
/// # Errors
/// `/proc` does not show the process.
pub fn resident_bytes(process: u32) -> Result<u64> {
    status_bytes(process, "VmRSS:")
}

/// The most bytes of a process that were resident at once, since its start or [`reset_peak`].
///
/// # Errors
/// `/proc` does not show the process.
pub fn peak_bytes(process: u32) -> Result<u64> {
    status_bytes(process, "VmHWM:")
}

/// Has the peak of a process counted from this moment on.
///
/// # Errors
/// The system does not allow it.
pub fn reset_peak(process: u32) -> Result<()> {
    Ok(std::fs::write(format!("/proc/{process}/clear_refs"), "5")?)
}

fn status_bytes(process: u32, key: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("status")?.parse::<u64>()? << 10)
}
