//! The names that Services give to pods, on a real name server.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ds4_tests::process::PATIENCE;
use tempfile::TempDir;

use super::machines::{NAME_SERVER, Network};
use super::manifests::{Base, Workload, text};

/// What a cluster calls the names in a namespace `ds4`.
const DOMAIN: &str = "ds4.svc.cluster.local";

/// All names of a pod: those of its Services, and behind the one of its StatefulSet its own.
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

/// dnsmasq, which knows just what it was told last.
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
        std::fs::write(&hosts, format!("{NAME_SERVER} here.{DOMAIN}\n"))?;
        let known = format!("--addn-hosts={}", hosts.display());
        let program = [
            "dnsmasq",
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
        let child = Command::new("ip")
            .args(network.switch.command(&program))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("ip")?;
        let server = NameServer {
            child,
            hosts,
            _folder: folder,
        };
        let (machine, _) = network.machine()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A short name: that is how the programs are given them.
            let asked = Command::new("ip")
                .args(machine.command(&["getent", "ahostsv4", "here"]))
                .stdin(Stdio::null())
                .output()?;
            let answer = String::from_utf8_lossy(&asked.stdout).into_owned();
            if answer.starts_with(NAME_SERVER) {
                return Ok(server);
            }
            ensure!(Instant::now() < deadline, "no answer from dnsmasq");
            sleep(Duration::from_millis(50));
        }
    }

    /// From now on these names are all there are, each with all of its addresses.
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
            bail!("dnsmasq is gone");
        }
        Ok(())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn nodes_have_a_name_together_and_one_each() {
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
