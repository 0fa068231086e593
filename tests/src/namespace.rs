//! Machines with a network of their own: a network namespace for each, joined by one switch.
//!
//! Making them needs root, the program `ip` and a kernel with namespaces, veth pairs and bridges.
//! Tests that cannot make them print why and are skipped.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PREFIX: &str = "ds4-";

/// The switch's own address, at which relays and name servers on it are reached.
pub const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Stated, or the bridge would take over the one of the machine that came first, and lose it with
/// that machine, while the others remember it.
const SWITCH_MAC: &str = "02:00:00:00:00:01";

/// The network namespace that a thread or a process is in.
#[derive(Clone, Debug)]
pub enum Namespace {
    /// The one of the test.
    Current,
    /// The one that `ip netns` knows by this name.
    Named(String),
}

impl Namespace {
    /// Runs `work` on a thread of its own in this namespace and waits for it. Threads that `work`
    /// starts are in the namespace too.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let enter_and_work = || {
            if let Namespace::Named(name) = self {
                let path = Path::new("/run/netns").join(name);
                let file = File::open(&path).context(path.display().to_string())?;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            anyhow::Ok(work())
        };
        let ended = thread::scope(|scope| scope.spawn(enter_and_work).join());
        ended.map_err(|_| anyhow!("a thread in {self:?} panicked"))?
    }

    /// A command that runs `program` in this namespace. Its process is the program itself, not a
    /// parent of it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        match self {
            Namespace::Current => Command::new(program),
            Namespace::Named(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, program]);
                command
            }
        }
    }
}

/// A machine on the network. Its namespace is deleted when this is dropped.
#[derive(Debug)]
pub struct Machine {
    namespace: OwnedNamespace,
    address: Ipv4Addr,
    /// The switch's end of the cable.
    port: String,
}

impl Machine {
    /// Name of the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.namespace.0
    }

    /// The machine's namespace.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        Namespace::Named(self.namespace.0.clone())
    }

    /// The machine's address, which no other machine of the network ever has.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// An address of the machine with a port.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }
}

/// A switch, and the machines that are connected to it. The switch is deleted when this is
/// dropped.
#[derive(Debug)]
pub struct Network {
    switch: OwnedNamespace,
    /// Content of `/etc/resolv.conf` on all machines, in place of the system's.
    resolver: Option<String>,
    /// Number of the machine that came last, which is the end of its address.
    last: AtomicU32,
}

impl Network {
    /// A network without machines. With `resolver`, programs in its namespaces find that text in
    /// `/etc/resolv.conf`.
    ///
    /// # Errors
    /// Namespaces or bridges cannot be made here.
    pub fn new(resolver: Option<String>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        delete_leftovers();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let stem = format!("{PREFIX}{}-{number}", std::process::id());
        let switch = OwnedNamespace::new(stem, resolver.as_deref())?;
        switch.ip(&[
            "link", "add", "switch", "address", SWITCH_MAC, "type", "bridge",
        ])?;
        let address = format!("{SWITCH}/24");
        switch.ip(&["address", "add", &address, "dev", "switch"])?;
        switch.ip(&["link", "set", "switch", "up"])?;
        Ok(Network {
            switch,
            resolver,
            last: AtomicU32::new(1),
        })
    }

    /// The switch's namespace.
    #[must_use]
    pub fn switch(&self) -> Namespace {
        Namespace::Named(self.switch.0.clone())
    }

    /// Connects a new machine to the switch.
    ///
    /// # Errors
    /// Namespaces or cables cannot be made here, or the addresses are used up after 253 machines.
    pub fn machine(&self) -> Result<Machine> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(number < 255, "too many machines");
        let [a, b, c, _] = SWITCH.octets();
        let address = Ipv4Addr::new(a, b, c, number as u8);
        let switch = &self.switch;
        let name = format!("{}-{number}", switch.0);
        let namespace = OwnedNamespace::new(name, self.resolver.as_deref())?;
        let port = format!("port{number}");
        namespace.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch.0,
        ])?;
        let with_mask = format!("{address}/24");
        namespace.ip(&["address", "add", &with_mask, "dev", "eth0"])?;
        namespace.ip(&["link", "set", "eth0", "up"])?;
        switch.ip(&["link", "set", &port, "master", "switch", "up"])?;
        Ok(Machine {
            namespace,
            address,
            port,
        })
    }

    /// Pulls a machine's cable, or puts it back.
    ///
    /// # Errors
    /// The system refuses.
    pub fn connect(&self, machine: &Machine, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        self.switch.ip(&["link", "set", &machine.port, state])
    }
}

/// A namespace that is deleted with this, by its name.
#[derive(Debug)]
struct OwnedNamespace(String);

impl OwnedNamespace {
    fn new(name: String, resolver: Option<&str>) -> Result<Self> {
        ip(&["netns", "add", &name])?;
        let namespace = OwnedNamespace(name);
        if let Some(text) = resolver {
            let settings = settings(&namespace.0);
            std::fs::create_dir_all(&settings)?;
            std::fs::write(settings.join("resolv.conf"), text)?;
        }
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.0], args].concat())
    }
}

impl Drop for OwnedNamespace {
    fn drop(&mut self) {
        delete(&self.0);
    }
}

/// The folder whose files programs in a namespace find in `/etc`.
fn settings(name: &str) -> PathBuf {
    Path::new("/etc/netns").join(name)
}

fn delete(name: &str) {
    // What was never made cannot be deleted.
    let _ = std::fs::remove_dir_all(settings(name));
    let _ = ip(&["netns", "delete", name]);
}

/// Namespaces of a test that was killed hold memory until they are deleted.
fn delete_leftovers() {
    let Ok(names) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in names.flatten().map(|entry| entry.file_name()) {
        let name = name.to_string_lossy();
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let process = process.and_then(|text| text.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            delete(&name);
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("ip")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {error}", args.join(" "));
    Ok(())
}
