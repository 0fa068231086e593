//! The names that Services give to pods, on a real name server.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ds4_tests::namespace::{Network, SWITCH};
use ds4_tests::process::TIMEOUT;
use tempfile::TempDir;

use super::manifests::{Base, Workload, text};

/// The domain of the Services of a Kubernetes namespace `ds4`.
const DOMAIN: &str = "ds4.svc.cluster.local";

/// `/etc/resolv.conf` of a pod; the search list makes short names work.
fn resolver() -> String {
    format!(
        "nameserver {SWITCH}\nsearch {DOMAIN} svc.cluster.local cluster.local\noptions ndots:5\n"
    )
}

/// A network whose machines ask a [`NameServer`] on its switch.
pub(super) fn network() -> Result<Network> {
    Network::new(Some(resolver()))
}

/// Why no cluster can run on such a network here, if none can.
pub(super) fn obstacle() -> Option<String> {
    let silent = Command::new("dnsmasq")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !silent.is_ok_and(|status| status.success()) {
        return Some("dnsmasq is not installed (Debian: dnsmasq-base)".to_owned());
    }
    let tried = network().and_then(|network| network.machine().map(drop));
    tried
        .err()
        .map(|error| format!("network namespaces cannot be made here, which needs root: {error:#}"))
}

/// All names of a pod: those of its Services, and its own one under the Service of its
/// StatefulSet.
pub(super) fn of_pod(base: &Base, workload: &Workload, pod: &str) -> Vec<String> {
    let services = base.services_of(workload);
    let mut names: Vec<String> = services
        .iter()
        .map(|service| format!("{}.{DOMAIN}", service.name()))
        .collect();
    if let Some(service) = workload.0.at("/spec/serviceName").as_str() {
        names.push(format!("{pod}.{service}.{DOMAIN}"));
    }
    names
}

/// A dnsmasq process, which knows only the names that it was told last.
#[derive(Debug)]
pub(super) struct NameServer {
    child: Child,
    hosts: PathBuf,
    _folder: TempDir,
}

impl NameServer {
    pub(super) fn start(network: &Network) -> Result<Self> {
        let folder = TempDir::new()?;
        let hosts = folder.path().join("hosts");
        std::fs::write(&hosts, format!("{SWITCH} here.{DOMAIN}\n"))?;
        let known = format!("--addn-hosts={}", hosts.display());
        let flags = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
            "--no-resolv",
            "--no-hosts",
            "--local=/cluster.local/",
            "--log-facility=/dev/null",
            &known,
        ];
        let child = network
            .switch()
            .command("dnsmasq")
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("dnsmasq")?;
        let server = NameServer {
            child,
            hosts,
            _folder: folder,
        };
        let machine = network.machine()?;
        let inside = machine.namespace();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            // A short name, as in the flags of the programs.
            let asked = inside
                .command("getent")
                .args(["ahostsv4", "here"])
                .stdin(Stdio::null())
                .output()?;
            let answer = String::from_utf8_lossy(&asked.stdout).into_owned();
            if answer.starts_with(&SWITCH.to_string()) {
                return Ok(server);
            }
            ensure!(Instant::now() < deadline, "dnsmasq does not answer");
            sleep(Duration::from_millis(50));
        }
    }

    /// Replaces all names: `records` are an address and its names.
    pub(super) fn tell<'a>(
        &self,
        records: impl Iterator<Item = (&'a str, &'a [String])>,
    ) -> Result<()> {
        let line = |(address, names): (&str, &[String])| format!("{address} {}\n", names.join(" "));
        let lines: String = records.map(line).collect();
        std::fs::write(&self.hosts, lines)?;
        let hangup = ["-s", "HUP", &self.child.id().to_string()];
        let status = Command::new("kill").args(hangup).status()?;
        if !status.success() {
            bail!("dnsmasq has ended");
        }
        Ok(())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn nodes_share_a_name_and_have_one_each() {
    let base = Base::load();
    let experts = base.experts();
    let service = text(experts.0.at("/spec/serviceName"));
    let expected = [
        format!("{service}.{DOMAIN}"),
        format!("ds4-expert-2.{service}.{DOMAIN}"),
    ];
    assert_eq!(of_pod(&base, &experts, "ds4-expert-2"), expected);
    let names = of_pod(&base, &base.coordinator(), "ds4-coord-x");
    assert_eq!(
        names,
        [
            format!("ds4-coord.{DOMAIN}"),
            format!("ds4-coord-slices.{DOMAIN}")
        ]
    );
}
