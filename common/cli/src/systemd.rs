//! What systemd is told of a service: see sd_notify(3).
//!
//! Without `NOTIFY_SOCKET`, as outside of a unit of `Type=notify`, nothing is sent.

use std::env;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The manager that started this process, if it wants to be told.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Time within which the manager wants a sign of life.
    watchdog: Option<Duration>,
    /// Whether it was told that the service is ready, and not yet that it stops.
    ready: AtomicBool,
}

impl ServiceManager {
    /// The manager that the environment names. One that cannot be reached is logged.
    #[must_use]
    pub fn from_env() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else {
            return ServiceManager::default();
        };
        let name = name.to_string_lossy();
        let socket = match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET={name} cannot be used: systemd is told nothing");
                None
            }
        };
        let variable = |name| env::var(name).ok();
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
        ServiceManager {
            socket,
            watchdog,
            ready: AtomicBool::new(false),
        }
    }

    /// The service answers requests.
    pub fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
        self.send("READY=1");
    }

    /// The service ends: what runs is finished.
    pub fn stopping(&self) {
        self.ready.store(false, Ordering::Relaxed);
        self.send("STOPPING=1");
    }

    /// Configuration is being read again. Before the service is ready nothing is sent, since the
    /// end of a reload counts as readiness.
    pub(crate) fn reloading(&self) {
        if self.ready.load(Ordering::Relaxed) {
            // Tells this reload from one that was asked for later.
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
        }
    }

    /// Configuration has been read again.
    pub(crate) fn reloaded(&self) {
        if self.ready.load(Ordering::Relaxed) {
            self.send("READY=1");
        }
    }

    /// Sends signs of life for as long as `alive` says so, twice as often as the manager wants
    /// them. Ends at once if it wants none.
    pub async fn keep_alive(&self, alive: impl Fn() -> bool) {
        let (Some(limit), Some(_)) = (self.watchdog, &self.socket) else {
            return;
        };
        let mut every = tokio::time::interval(limit / 2);
        loop {
            every.tick().await;
            if !alive() {
                tracing::error!("no sign of life for the watchdog: the service does not work");
                return;
            }
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, state: &str) {
        let Some((socket, address)) = &self.socket else {
            return;
        };
        // Never waits: a manager that does not read must not stop the service.
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            let state = state.lines().next().unwrap_or_default();
            tracing::warn!(%error, state, "cannot tell systemd");
        }
    }
}

fn connect(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = address(name)?;
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// A path, or a name in the abstract namespace behind an `@`.
fn address(name: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(name)
}

/// The watchdog's limit in microseconds, if it is meant for this process.
fn watchdog(microseconds: Option<String>, process: Option<String>) -> Option<Duration> {
    let other = process.is_some_and(|id| id != std::process::id().to_string());
    let limit = Duration::from_micros(microseconds?.parse().ok()?);
    (!other && !limit.is_zero()).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_for_another_process_or_without_a_limit_is_none() {
        let own = std::process::id().to_string();
        let text = |text: &str| Some(text.to_owned());
        let limit = Some(Duration::from_millis(3));
        assert_eq!(watchdog(text("3000"), None), limit);
        assert_eq!(watchdog(text("3000"), Some(own)), limit);
        assert_eq!(watchdog(text("3000"), text("1")), None);
        assert_eq!(watchdog(text("0"), None), None);
        assert_eq!(watchdog(text("soon"), None), None);
        assert_eq!(watchdog(None, None), None);
    }

    #[test]
    fn a_manager_hears_of_every_state_and_of_reloads_only_while_ready() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let heard = UnixDatagram::bind(&path).expect("a socket");
        heard
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a time limit");
        let socket = connect(path.to_str().expect("text")).expect("connected");
        let manager = ServiceManager {
            socket: Some(socket),
            ..ServiceManager::default()
        };
        manager.reloading();
        manager.reloaded();
        manager.ready();
        manager.reloading();
        manager.reloaded();
        manager.stopping();
        manager.reloading();
        let next = || {
            let mut buffer = [0; 200];
            let length = heard.recv(&mut buffer).expect("a message");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(next(), "READY=1");
        let reload = next();
        let since_boot = reload.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(
            since_boot.is_some_and(|n| n.parse::<u64>().is_ok()),
            "{reload}"
        );
        assert_eq!(next(), "READY=1");
        assert_eq!(next(), "STOPPING=1");
        heard.set_nonblocking(true).expect("a flag");
        assert!(heard.recv(&mut [0; 8]).is_err(), "another message");
    }
}
