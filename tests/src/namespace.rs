//! Network namespaces: machines with a network of their own, joined by one hub.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PREFIX: &str = "ds4-";

/// Where a thread's sockets live.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the namespace of the test.
    Here,
    /// In the one that this file stands for.
    Namespace(PathBuf),
}

impl Place {
    /// Runs `work` on a thread of its own in this place.
    ///
    /// # Errors
    /// The place can't be entered.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let place = self.clone();
        let in_place = move || {
            if let Place::Namespace(path) = &place {
                let file = File::open(path).context(path.display().to_string())?;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            anyhow::Ok(work())
        };
        let ended = thread::spawn(in_place).join();
        ended.map_err(|_| anyhow!("a thread in {self:?} panicked"))?
    }
}

/// A hub and machines, each with a cable to the hub and no other way out.
#[derive(Debug)]
pub struct Network {
    stem: String,
    machines: usize,
}

impl Network {
    /// A network with `machines` machines.
    ///
    /// # Errors
    /// Namespaces or cables can't be made here: no rights, no `ip`, or no such kernel.
    pub fn new(machines: usize) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        remove_leftovers();
        let process = std::process::id();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // From here on dropped, and so removed, whatever fails.
        let network = Network {
            stem: format!("{PREFIX}{process}-{number}"),
            machines,
        };
        let hub = network.hub_name();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        for machine in 0..machines {
            network.add(&hub, machine)?;
        }
        Ok(network)
    }

    fn add(&self, hub: &str, machine: usize) -> Result<()> {
        let name = self.name(machine);
        let cable = format!("cable{machine}");
        ip(&["netns", "add", &name])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&[
            "-n", hub, "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns",
            &name,
        ])?;
        for (place, device, address) in [
            (hub, cable.as_str(), self.hub(machine)),
            (name.as_str(), "eth0", self.machine(machine)),
        ] {
            let address = format!("{address}/30");
            ip(&["-n", place, "address", "add", &address, "dev", device])?;
            ip(&["-n", place, "link", "set", device, "up"])?;
        }
        Ok(())
    }

    /// The hub's address on a machine's cable.
    #[must_use]
    pub fn hub(&self, machine: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 44, machine as u8, 1)
    }

    /// A machine's address.
    #[must_use]
    pub fn machine(&self, machine: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 44, machine as u8, 2)
    }

    /// Where relays run.
    #[must_use]
    pub fn hub_place(&self) -> Place {
        Place::Namespace(Path::new("/run/netns").join(self.hub_name()))
    }

    /// `program` on a machine. The process is the program itself, not a parent of it.
    #[must_use]
    pub fn command(&self, machine: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(machine), program]);
        command
    }

    /// Pulls a machine's cable, or puts it back.
    ///
    /// # Errors
    /// The system refuses.
    pub fn connect(&self, machine: usize, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        let cable = format!("cable{machine}");
        ip(&["-n", &self.hub_name(), "link", "set", &cable, state])
    }

    fn hub_name(&self) -> String {
        format!("{}-hub", self.stem)
    }

    fn name(&self, machine: usize) -> String {
        format!("{}-{machine}", self.stem)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let machines = (0..self.machines).map(|machine| self.name(machine));
        for name in machines.chain([self.hub_name()]) {
            // What was never made can't be deleted.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

/// Namespaces of a test that was killed hold memory until somebody deletes them.
fn remove_leftovers() {
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
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("ip")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {error}", args.join(" "));
    Ok(())
}

/// `address` as text, for flags.
#[must_use]
pub fn on_port(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}
