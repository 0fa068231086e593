//! Follows certificate files while a process runs: reads them again when they change, and warns
//! before a certificate ends.
//!
//! Looks at size, time, inode and device of each file at intervals, through symbolic links, rather
//! than asking the system for events: that also works on network file systems, and where Kubernetes
//! swaps a link above the files.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::explain::{ended, without_clock};
use super::facts::{CertificateFacts, in_words, now};
use super::files::TlsError;
use super::utc;

/// Time between two looks at the files.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Time after which a warning is repeated.
const REPEAT: Duration = Duration::from_secs(86_400);

const DAY: u64 = 86_400;

/// Certificates that can be read again while they are in use.
pub trait Watched: Send + Sync + 'static {
    /// The files that they come from.
    fn files(&self) -> Vec<&Path>;

    /// Reads the files, and uses what they hold from here on if all of it is valid and matches.
    /// Returns whether it differs from what was in use.
    ///
    /// # Errors
    /// Names the file that cannot be used; what was in use remains.
    fn reload(&self) -> Result<bool, TlsError>;

    /// The certificates in use, each with what it is for: one of a few words, for logs and metrics.
    fn certificates(&self) -> Vec<(&'static str, CertificateFacts)>;

    /// What an operator should know of them.
    fn remarks(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// What is in use, after a look at the files.
#[derive(Clone, Debug, Default)]
pub struct CertificateReport {
    /// Each certificate with what it is for.
    pub certificates: Vec<(&'static str, CertificateFacts)>,
    /// Times that new certificates came into use.
    pub reloads: u64,
    /// Times that changed files were refused.
    pub refused: u64,
}

/// A running watch. Ends when it is dropped.
#[derive(Debug)]
pub struct CertificateWatch {
    task: JoinHandle<()>,
    wake: Arc<Notify>,
}

impl CertificateWatch {
    /// Logs the certificates and follows their files on the current runtime, looking at them every
    /// `interval`; [`WATCH_INTERVAL`] is meant for programs. `observe` gets a report after each look.
    ///
    /// # Panics
    /// There is no Tokio runtime.
    pub fn start(
        watched: impl Watched,
        interval: Duration,
        observe: impl Fn(&CertificateReport) + Send + 'static,
    ) -> Self {
        let mut follower = Follower::new(watched);
        follower.announce();
        follower.warn();
        observe(&follower.report);
        let wake = Arc::new(Notify::new());
        let woken = Arc::clone(&wake);
        let task = tokio::spawn(async move {
            loop {
                let on_demand = tokio::select! {
                    () = tokio::time::sleep(interval) => false,
                    () = woken.notified() => true,
                };
                // Reading may block, on a network file system for long.
                let looked = tokio::task::spawn_blocking(move || {
                    follower.look(on_demand);
                    follower
                });
                // It ends otherwise only with the runtime.
                let Ok(back) = looked.await else { return };
                follower = back;
                observe(&follower.report);
            }
        });
        CertificateWatch { task, wake }
    }

    /// Reads the files now, changed or not, and logs the result.
    pub fn reload(&self) {
        self.wake.notify_one();
    }
}

impl Drop for CertificateWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What tells that a file has changed: size, seconds and nanoseconds of its last change, inode and
/// device. `None` for a file that is not there.
type Stamp = Option<(u64, i64, i64, u64, u64)>;

struct Follower<W> {
    watched: W,
    /// The files as they were before they were read last.
    seen: Vec<Stamp>,
    /// Why they could not be used when they were read last, without the time of day.
    fault: Option<String>,
    /// Whether that has been logged.
    told: bool,
    /// For each certificate the last warning: which certificate, how urgent, and when.
    warned: Vec<(String, Urgency, Instant)>,
    report: CertificateReport,
}

impl<W: Watched> Follower<W> {
    fn new(watched: W) -> Self {
        Follower {
            report: CertificateReport {
                certificates: watched.certificates(),
                ..CertificateReport::default()
            },
            watched,
            // Files that changed after they were loaded are read at the first look.
            seen: Vec::new(),
            fault: None,
            told: false,
            warned: Vec::new(),
        }
    }

    fn look(&mut self, on_demand: bool) {
        let stamps: Vec<Stamp> = self.watched.files().into_iter().map(stamp).collect();
        // Files that did not fit together may have been read while they were being written.
        if on_demand || stamps != self.seen || self.fault.is_some() {
            self.seen = stamps;
            self.read(on_demand);
        }
        self.warn();
    }

    fn read(&mut self, on_demand: bool) {
        match self.watched.reload() {
            Ok(true) => {
                self.report.reloads += 1;
                self.report.certificates = self.watched.certificates();
                tracing::info!("certificates were replaced: new connections use the new ones");
                self.announce();
                (self.fault, self.told) = (None, false);
            }
            Ok(false) => {
                if on_demand || self.told {
                    tracing::info!("the certificates in use are those in the files");
                }
                (self.fault, self.told) = (None, false);
            }
            Err(error) => {
                let text = error.to_string();
                let fault = Some(without_clock(&text).to_owned());
                let again = fault == self.fault;
                if !again {
                    (self.fault, self.told) = (fault, false);
                }
                if (again || on_demand) && !self.told {
                    self.report.refused += 1;
                    self.told = true;
                    tracing::error!(
                        reason = %text,
                        "new certificates are not used; those in use remain"
                    );
                }
            }
        }
    }

    /// Logs what is in use.
    fn announce(&self) {
        for (label, facts) in &self.report.certificates {
            tracing::info!(
                certificate = label,
                subject = facts.subject,
                serial = facts.serial,
                sha256 = facts.fingerprint,
                valid_until = utc(facts.not_after),
                "using a certificate that expires in {}",
                in_words(facts.left())
            );
        }
        for remark in self.watched.remarks() {
            tracing::warn!("{remark}");
        }
    }

    /// Warns of certificates that end soon: once for each urgency, and again every day.
    fn warn(&mut self) {
        let time = now();
        self.warned.retain(|(known, ..)| {
            let used = &self.report.certificates;
            used.iter().any(|(_, facts)| facts.fingerprint == *known)
        });
        for (label, facts) in &self.report.certificates {
            let urgency = Urgency::of(facts, time);
            let last = self
                .warned
                .iter_mut()
                .find(|(known, ..)| *known == facts.fingerprint);
            match last {
                _ if urgency == Urgency::None => continue,
                Some((_, known, at)) => {
                    if *known == urgency && at.elapsed() < REPEAT {
                        continue;
                    }
                    (*known, *at) = (urgency, Instant::now());
                }
                None => {
                    let entry = (facts.fingerprint.clone(), urgency, Instant::now());
                    self.warned.push(entry);
                }
            }
            tell(label, facts, urgency, time);
        }
    }
}

fn tell(label: &str, facts: &CertificateFacts, urgency: Urgency, time: u64) {
    let (subject, serial) = (&facts.subject, &facts.serial);
    if urgency == Urgency::Ended {
        tracing::error!(
            certificate = label,
            subject,
            serial,
            "a certificate {}: new connections fail until its file is replaced",
            ended(facts.not_after, time)
        );
        return;
    }
    tracing::warn!(
        certificate = label,
        subject,
        serial,
        valid_until = utc(facts.not_after),
        "a certificate expires in {}: replace its file, which is read again while this runs",
        in_words(facts.left())
    );
}

/// How soon a certificate ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    None,
    /// Within 30 days, or the last quarter of its validity if that is shorter.
    Weeks,
    /// Within 7 days, or the last tenth.
    Days,
    /// Within a day, or the last fiftieth.
    Hours,
    Ended,
}

impl Urgency {
    fn of(facts: &CertificateFacts, now: u64) -> Self {
        let validity = facts.not_after.saturating_sub(facts.not_before);
        let left = facts.not_after.saturating_sub(now);
        let within = |days: u64, share: u64| left < (days * DAY).min(validity / share);
        match () {
            () if now > facts.not_after => Urgency::Ended,
            () if within(1, 50) => Urgency::Hours,
            () if within(7, 10) => Urgency::Days,
            () if within(30, 4) => Urgency::Weeks,
            () => Urgency::None,
        }
    }
}

fn stamp(file: &Path) -> Stamp {
    let found = std::fs::metadata(file).ok()?;
    Some((
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        found.ino(),
        found.dev(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn facts(not_before: u64, not_after: u64) -> CertificateFacts {
        CertificateFacts {
            subject: "x".to_owned(),
            serial: "1".to_owned(),
            fingerprint: format!("{not_before}-{not_after}"),
            names: Vec::new(),
            purposes: None,
            not_before,
            not_after,
            public_key: Vec::new(),
            unsupported_key: None,
        }
    }

    #[test]
    fn warnings_come_weeks_before_and_earlier_in_shorter_lives() {
        let year = facts(0, 365 * DAY);
        let at = |facts: &CertificateFacts, left: u64| Urgency::of(facts, facts.not_after - left);
        assert_eq!(at(&year, 30 * DAY), Urgency::None);
        assert_eq!(at(&year, 30 * DAY - 1), Urgency::Weeks);
        assert_eq!(at(&year, 7 * DAY - 1), Urgency::Days);
        assert_eq!(at(&year, DAY - 1), Urgency::Hours);
        assert_eq!(at(&year, 0), Urgency::Hours);
        assert_eq!(Urgency::of(&year, year.not_after + 1), Urgency::Ended);
        let quarter = facts(0, 90 * DAY);
        assert_eq!(at(&quarter, 29 * DAY), Urgency::None, "renewed at a third");
        let day = facts(0, DAY);
        assert_eq!(at(&day, DAY / 4), Urgency::None);
        assert_eq!(at(&day, DAY / 4 - 1), Urgency::Weeks);
        assert_eq!(at(&day, DAY / 50 - 1), Urgency::Hours);
    }

    /// Certificates that change when the test says so.
    #[derive(Default)]
    struct Script {
        results: Mutex<Vec<Result<bool, &'static str>>>,
        calls: Mutex<u64>,
    }

    impl Watched for Arc<Script> {
        fn files(&self) -> Vec<&Path> {
            vec![Path::new("/nowhere")]
        }

        fn reload(&self) -> Result<bool, TlsError> {
            *self.calls.lock().expect("lock") += 1;
            let next = self.results.lock().expect("lock").pop();
            next.unwrap_or(Ok(false))
                .map_err(|reason| TlsError::Certificate {
                    file: "f".into(),
                    reason: reason.to_owned(),
                })
        }

        fn certificates(&self) -> Vec<(&'static str, CertificateFacts)> {
            vec![("own", facts(0, u64::MAX))]
        }
    }

    #[test]
    fn a_fault_is_tried_again_and_told_once_if_it_stays() {
        let script = Arc::new(Script::default());
        let mut follower = Follower::new(Arc::clone(&script));
        let calls = || *script.calls.lock().expect("lock");
        follower.look(false);
        follower.look(false);
        assert_eq!(calls(), 1, "files that do not change are read once");
        // Half-written files: no word.
        *script.results.lock().expect("lock") = vec![Ok(true), Err("does not match")];
        follower.look(true);
        assert!(follower.told, "who asks is told at once");
        follower.look(false);
        assert_eq!((follower.report.reloads, follower.report.refused), (1, 1));
        let clock = "ended, and this machine's clock says 2";
        let later = "ended, and this machine's clock says 3";
        *script.results.lock().expect("lock") =
            vec![Ok(false), Err(later), Err(later), Err(clock), Err("torn")];
        follower.seen.clear();
        for (told, refused) in [(false, 1), (false, 1), (true, 2), (true, 2), (false, 2)] {
            follower.look(false);
            assert_eq!((follower.told, follower.report.refused), (told, refused));
        }
        let before = calls();
        follower.look(false);
        assert_eq!(calls(), before, "nothing is wrong any more");
        follower.look(true);
        assert_eq!(calls(), before + 1);
    }

    #[test]
    fn each_urgency_is_told_once() {
        let mut follower = Follower::new(Arc::new(Script::default()));
        let ending = |left: u64| vec![("own", facts(0, now() + left))];
        for (left, warnings) in [(u64::MAX / 2, 0), (0, 1)] {
            follower.report.certificates = ending(left);
            follower.warn();
            follower.warn();
            assert_eq!(follower.warned.len(), warnings);
        }
        let (_, urgency, at) = follower.warned[0].clone();
        assert_eq!(urgency, Urgency::Hours);
        follower.warn();
        assert_eq!(follower.warned[0].2, at, "not again on the same day");
    }
}
