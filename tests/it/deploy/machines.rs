//! Machines of a network of their own: a namespace each, one switch between them, and a name
//! server on it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

/// The name server's address, on the switch.
pub(super) const NAME_SERVER: &str = "10.77.0.1";

const SWITCH: &str = "02:00:00:00:00:01";

/// What programs in pods find in their `/etc/resolv.conf`, which is what makes short names work.
const SEARCH: &str = "ds4.svc.cluster.local svc.cluster.local cluster.local";

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

/// A namespace, which ends with this.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    fn new(role: &str) -> Result<Self> {
        let name = format!("ds4-{}-deploy-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Namespace { name };
        std::fs::create_dir_all(namespace.settings())?;
        let resolver = format!("nameserver {NAME_SERVER}\nsearch {SEARCH}\noptions ndots:5\n");
        std::fs::write(namespace.settings().join("resolv.conf"), resolver)?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Files that programs in the namespace see in place of those in `/etc`.
    fn settings(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], args].concat())
    }

    /// The command that runs `program` in the namespace.
    pub(super) fn command<'c>(&'c self, program: &[&'c str]) -> Vec<&'c str> {
        [&["netns", "exec", &self.name], program].concat()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.settings());
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

/// The switch, and who is connected to it.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) switch: Namespace,
    /// No two machines ever have the same address or name.
    last: AtomicU32,
}

impl Network {
    pub(super) fn new() -> Result<Self> {
        let switch = Namespace::new("switch")?;
        // An address of its own, not that of whichever machine came first: it must stay when that
        // one goes, as the others remember it.
        switch.ip(&["link", "add", "switch", "address", SWITCH, "type", "bridge"])?;
        let address = format!("{NAME_SERVER}/24");
        switch.ip(&["address", "add", &address, "dev", "switch"])?;
        switch.ip(&["link", "set", "switch", "up"])?;
        Ok(Network {
            switch,
            last: AtomicU32::new(1),
        })
    }

    /// Another machine and its address.
    pub(super) fn machine(&self) -> Result<(Namespace, String)> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(number < 255, "too many machines");
        let machine = Namespace::new(&number.to_string())?;
        let port = format!("port{number}");
        let switch = &self.switch.name;
        machine.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", switch,
        ])?;
        let address = format!("10.77.0.{number}");
        let with_mask = format!("{address}/24");
        machine.ip(&["address", "add", &with_mask, "dev", "eth0"])?;
        machine.ip(&["link", "set", "eth0", "up"])?;
        self.switch
            .ip(&["link", "set", &port, "master", "switch", "up"])?;
        Ok((machine, address))
    }
}

/// Why no such network can be made here, if none can.
pub(super) fn obstacle() -> Option<String> {
    let works = |program: &str| {
        let silent = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        silent.is_ok_and(|status| status.success())
    };
    if !works("dnsmasq") {
        return Some("there is no dnsmasq (Debian: dnsmasq-base)".to_owned());
    }
    let tried = Network::new().and_then(|network| network.machine().map(drop));
    tried
        .err()
        .map(|error| format!("no network namespaces: {error:#}"))
}
