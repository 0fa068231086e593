//! Certificates that change while members run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ds4_proto::tls::{CertificateReport, CertificateWatch, Credentials, TlsFiles, Watched};
use tokio::sync::watch;

use super::files::Files;
use super::*;

const INTERVAL: Duration = Duration::from_millis(10);

/// A running watch whose reports can be awaited.
struct Watch {
    _running: CertificateWatch,
    reports: watch::Receiver<CertificateReport>,
}

impl Watch {
    fn start(credentials: &Credentials) -> Self {
        let (report, reports) = watch::channel(CertificateReport::default());
        let running = CertificateWatch::start(credentials.clone(), INTERVAL, move |found| {
            report.send_replace(found.clone());
        });
        Watch {
            _running: running,
            reports,
        }
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&CertificateReport) -> bool) {
        let seen = tokio::time::timeout(WAIT, self.reports.wait_for(wanted));
        seen.await.expect(what).expect("the watch goes on");
    }

    async fn reloaded(&mut self, times: u64) {
        self.until("new certificates in time", |report| report.reloads >= times)
            .await;
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("copied");
}

/// Replaces a member's certificate and key, one after the other.
fn replace(files: &TlsFiles, by: &Files) {
    copy(&by.0.cert, &files.cert);
    copy(&by.0.key, &files.key);
}

#[tokio::test]
async fn an_ended_certificate_is_replaced_without_a_restart_of_either_side() {
    let c = cluster();
    let ended = Member {
        days: (-30, -1),
        ..Member::node("ended")
    };
    let ended = c.maker.member(&c.place, &ended);
    // As a node has it whose certificate ended while it ran.
    let credentials = ended.load_unchecked();
    let address = serve(&Security::Tls(credentials.clone()), Peers::Coordinators).await;
    let error = refusal(&c.coordinator, &address).await;
    assert!(error.starts_with("its certificate has expired"), "{error}");
    let mut node = Watch::start(&credentials);
    replace(
        &ended.0,
        &c.maker.member(&c.place, &Member::node("renewed")),
    );
    node.reloaded(1).await;
    ask(&c.coordinator, &address).await.expect("renewed");

    // The other side's, whose connections a node refuses.
    let ended = Member {
        days: (-30, -1),
        ..Member::coordinator("ended-too")
    };
    let ended = c.maker.member(&c.place, &ended);
    let credentials = ended.load_unchecked();
    let coordinator = Security::Tls(credentials.clone());
    let error = refusal(&coordinator, &address).await;
    assert!(
        error.contains("this side's certificate: expired"),
        "{error}"
    );
    let mut watch = Watch::start(&credentials);
    let renewed = Member::coordinator("renewed-too");
    replace(&ended.0, &c.maker.member(&c.place, &renewed));
    watch.reloaded(1).await;
    ask(&coordinator, &address).await.expect("renewed");
}

#[tokio::test]
async fn files_that_are_not_whole_and_valid_change_nothing() {
    let c = cluster();
    let files = c.maker.member(&c.place, &Member::node("live"));
    let credentials = files.load(Role::Node).expect("a node");
    let before = credentials.own();
    let address = serve(&Security::Tls(credentials.clone()), Peers::Coordinators).await;
    let mut watch = Watch::start(&credentials);
    let other = c.maker.member(&c.place, &Member::node("other"));
    let foreign = Maker::new(&c.place, "foreign").member(&c.place, &Member::node("stranger"));
    let ended = Member {
        days: (-9, -1),
        ..Member::node("over")
    };
    let ended = c.maker.member(&c.place, &ended);
    let posing = Member {
        usages: vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth],
        ..Member::node("posing")
    };
    let posing = c.maker.member(&c.place, &posing);
    let text = c.place.file("half.pem", "-----BEGIN CERTIFICATE-----\nMII");
    let bad: [(&str, &dyn Fn()); 5] = [
        ("half a file", &|| copy(&text, &files.0.cert)),
        ("another key", &|| copy(&other.0.cert, &files.0.cert)),
        ("another authority", &|| replace(&files.0, &foreign)),
        ("the past", &|| replace(&files.0, &ended)),
        ("another role", &|| replace(&files.0, &posing)),
    ];
    for (refused, (what, spoil)) in bad.into_iter().enumerate() {
        spoil();
        let refused = refused as u64 + 1;
        watch.until(what, |report| report.refused >= refused).await;
        assert_eq!(credentials.own(), before, "{what}");
        ask(&c.coordinator, &address).await.expect(what);
    }
    std::fs::remove_file(&files.0.key).expect("removed");
    watch.until("no file", |report| report.refused >= 6).await;
    ask(&c.coordinator, &address).await.expect("no file");
    replace(&files.0, &other);
    watch.reloaded(1).await;
    assert_ne!(credentials.own(), before);
    let dial = c.coordinator.endpoint(&address).expect("an address");
    assert_eq!(dial.peer_certificate(), None);
    ask_at(Ok(dial.clone())).await.expect("the new certificate");
    assert_eq!(dial.peer_certificate(), Some(credentials.own()));
    assert!(!credentials.reload().expect("unchanged"));
}

/// From one authority to another while both are in use: members first trust both, then get
/// certificates of the new one, then trust that one alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_replaced_under_load_without_a_failed_request() {
    let c = cluster();
    let (node, coordinator) = (
        c.maker.member(&c.place, &Member::node("n")),
        c.maker.member(&c.place, &Member::coordinator("c")),
    );
    // Each has a file of authorities of its own, since files do not change everywhere at once.
    let own_ca = |files: &Files, name: &str| {
        let ca = c.place.file(name, "");
        copy(&files.0.ca, &ca);
        Files(TlsFiles {
            ca,
            ..files.0.clone()
        })
    };
    let (node, coordinator) = (own_ca(&node, "n-ca.pem"), own_ca(&coordinator, "c-ca.pem"));
    let old_coordinator = coordinator.load_unchecked();
    let serving = node.load(Role::Node).expect("a node");
    let asking = coordinator.load(Role::Coordinator).expect("a coordinator");
    let address = serve(&Security::Tls(serving.clone()), Peers::Coordinators).await;
    let (mut node_watch, mut coordinator_watch) = (Watch::start(&serving), Watch::start(&asking));

    let (stop, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let load = (0..3).map(|_| {
        let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
        let (security, address) = (Security::Tls(asking.clone()), address.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // Each on a connection of its own.
                ask(&security, &address).await.expect("no request fails");
                asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let load: Vec<_> = load.collect();
    let next = Maker::new(&c.place, "next");
    let texts = [&c.maker.ca, &next.ca].map(|ca| std::fs::read_to_string(ca).expect("read"));
    let both = texts.concat();
    let more_load = || async {
        let target = asked.load(Ordering::Relaxed) + 10;
        let reached = async {
            while asked.load(Ordering::Relaxed) < target && !load.iter().any(|t| t.is_finished()) {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::time::timeout(WAIT, reached).await.expect("load");
    };
    // Both authorities, here first and there later.
    std::fs::write(&node.0.ca, &both).expect("written");
    node_watch.reloaded(1).await;
    more_load().await;
    std::fs::write(&coordinator.0.ca, &both).expect("written");
    coordinator_watch.reloaded(1).await;
    more_load().await;
    replace(&node.0, &next.member(&c.place, &Member::node("n2")));
    node_watch.reloaded(2).await;
    more_load().await;
    replace(
        &coordinator.0,
        &next.member(&c.place, &Member::coordinator("c2")),
    );
    coordinator_watch.reloaded(2).await;
    more_load().await;
    for (files, watch) in [
        (&node, &mut node_watch),
        (&coordinator, &mut coordinator_watch),
    ] {
        std::fs::write(&files.0.ca, &texts[1]).expect("written");
        watch.reloaded(3).await;
        more_load().await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }
    // The old authority is trusted no more, on either side.
    let error = refusal(&Security::Tls(old_coordinator), &address).await;
    assert!(error.contains("authority"), "{error}");
}
