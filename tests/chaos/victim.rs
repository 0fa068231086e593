//! A node that is disturbed.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ds4_tests::golden::Reference;
use ds4_tests::namespace::Namespace;
use ds4_tests::process::Server;
use ds4_tests::relay::{Conditions, Relay};

use crate::plan::{Event, Kind};

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

/// A bad line: its delay is far longer than a call.
const SLOW: Conditions = Conditions {
    delay: Duration::from_millis(25),
    bytes_per_second: Some(2e6),
    loss: 0.02,
    flips: 0.0,
};

/// A bad cable, or a machine whose memory flips bits of what it sends.
const DAMAGED: Conditions = Conditions {
    delay: Duration::ZERO,
    bytes_per_second: None,
    loss: 0.0,
    flips: 0.2,
};

/// A node process behind a relay. The process may be replaced, the address stays.
pub(crate) struct Victim {
    reference: Reference,
    tiles: String,
    /// On a loopback address of its own, so that no other process takes its port while it is down.
    address: SocketAddr,
    log: PathBuf,
    server: Server,
    relay: Relay,
}

impl Victim {
    pub(crate) fn start(
        reference: Reference,
        number: usize,
        tiles: &str,
        logs: &Path,
    ) -> Result<Self> {
        let [low, middle, ..] = std::process::id().to_le_bytes();
        let own = Ipv4Addr::new(127, middle.saturating_add(1), low, 10 + number as u8);
        let log = logs.join(format!("node{number}"));
        let mut address = SocketAddr::from((own, 0));
        let server = launch(reference, tiles, address, &log)?;
        let port = server.ready.split(&[' ', ':'][..]);
        let port = port.skip_while(|word| *word != own.to_string()).nth(1);
        address.set_port(port.context("no port")?.parse()?);
        let entry = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (seed, usual) = (number as u64, Conditions::default());
        let relay = Relay::start(&Namespace::Current, entry, address, usual, seed)?;
        Ok(Victim {
            reference,
            tiles: tiles.to_owned(),
            address,
            log,
            server,
            relay,
        })
    }

    /// The address for coordinators.
    pub(crate) fn entry(&self) -> SocketAddr {
        self.relay.address()
    }

    /// Performs the node's events, each when it is due after `start`. In the end the node works.
    pub(crate) fn suffer<'a>(
        &mut self,
        events: impl Iterator<Item = &'a Event>,
        start: Instant,
    ) -> Result<()> {
        for event in events {
            sleep_until(start + event.at);
            self.happen(event).with_context(|| event.to_string())?;
        }
        Ok(())
    }

    fn happen(&mut self, event: &Event) -> Result<()> {
        let over = Instant::now() + event.lasts;
        match event.kind {
            Kind::Kill => {
                self.server.signal("KILL")?;
                self.server.wait()?;
                sleep_until(over);
                self.replace()?;
            }
            Kind::Restart => {
                let status = self.server.stop()?;
                ensure!(status.success(), "a node ended with {status}");
                sleep_until(over);
                self.replace()?;
            }
            Kind::Stop => {
                self.server.signal("STOP")?;
                sleep_until(over);
                self.server.signal("CONT")?;
            }
            Kind::Cut => {
                self.relay.silence(true);
                sleep_until(over);
                self.relay.silence(false);
            }
            Kind::Slow => {
                self.relay.set(SLOW);
                sleep_until(over);
                self.relay.set(Conditions::default());
            }
            Kind::Flip => {
                self.relay.set(DAMAGED);
                sleep_until(over);
                self.relay.set(Conditions::default());
            }
            Kind::Break => self.relay.break_connections(),
        }
        Ok(())
    }

    fn replace(&mut self) -> Result<()> {
        self.server = launch(self.reference, &self.tiles, self.address, &self.log)?;
        Ok(())
    }
}

fn launch(reference: Reference, tiles: &str, listen: SocketAddr, log: &Path) -> Result<Server> {
    let mut command = Command::new(NODE);
    command.args([
        "serve",
        "--threads=1",
        "--drain-timeout=2",
        "--tiles",
        tiles,
    ]);
    command
        .args(["--listen", &listen.to_string(), "-m"])
        .arg(reference.model());
    command.stderr(append(log)?);
    Server::launch(command)
}

/// Opens a log to append to it.
pub(crate) fn append(log: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.with_context(|| log.display().to_string())
}

fn sleep_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}
