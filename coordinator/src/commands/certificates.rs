//! Follows the certificates of this process, and says in metrics until when they are valid.

use ds4_cli::Reloaders;
use ds4_proto::security::Security;
use ds4_proto::tls::{CertificateReport, CertificateWatch, ServerIdentity, WATCH_INTERVAL};
use metrics::{counter, describe_counter, describe_gauge, gauge};

const EXPIRY: &str = "ds4_certificate_expiry_timestamp_seconds";
const RELOADS: &str = "ds4_certificate_reloads_total";

/// Registers the descriptions of the metrics with the process's recorder.
pub(super) fn describe() {
    describe_gauge!(
        EXPIRY,
        "End of a certificate that this process uses, in seconds since 1970, by what it is for \
         (coordinator, authority, http)."
    );
    describe_counter!(
        RELOADS,
        "Times that changed certificate files were read again, by files (cluster, http) and outcome \
         (used, refused)."
    );
}

/// Follows the certificates of connections to other members until the result is dropped.
pub(super) fn watch(security: &Security) -> Option<CertificateWatch> {
    security.watch(observe)
}

/// Follows the certificate of the HTTP API, for as long as there are `reloaders`, which also have it
/// read again.
pub(super) fn follow_http(identity: &ServerIdentity, reloaders: &Reloaders) {
    let watch = CertificateWatch::start(identity.clone(), WATCH_INTERVAL, observe_http);
    reloaders.add("certificate of the API", move || {
        watch.reload();
        Ok("its files are being read".to_owned())
    });
}

/// As [`watch`], for as long as there are `reloaders`, which also have them read again.
pub(super) fn follow(security: &Security, reloaders: &Reloaders) {
    if let Some(watch) = watch(security) {
        reloaders.add("certificates", move || {
            watch.reload();
            Ok("their files are being read".to_owned())
        });
    }
}

fn observe(report: &CertificateReport) {
    record("cluster", report);
}

fn observe_http(report: &CertificateReport) {
    record("http", report);
}

fn record(files: &'static str, report: &CertificateReport) {
    for (label, facts) in &report.certificates {
        gauge!(EXPIRY, "certificate" => *label).set(facts.not_after as f64);
    }
    counter!(RELOADS, "files" => files, "outcome" => "used").absolute(report.reloads);
    counter!(RELOADS, "files" => files, "outcome" => "refused").absolute(report.refused);
}
