//! Mutual TLS between the processes of a cluster. One authority signs all certificates. The extended
//! key usage of a certificate decides its holder's role: nodes serve (`serverAuth`), coordinators
//! connect (`clientAuth`), so that an attacker with one node's key cannot give work to the others.
//! A certificate without purposes is for any of them.
//!
//! From top to bottom: `credentials` is what is in use, `server` what the HTTP API uses; `watch`
//! replaces them when files change; `files` reads and checks these, `peers` decides who is let in,
//! `explain` puts errors into words, `facts` and `der` say what a certificate holds.

mod credentials;
mod der;
mod explain;
mod facts;
mod files;
mod peers;
mod server;
mod watch;

/// What a port with TLS answers a peer without it.
pub(crate) const SPEAKS_TLS: &str = "this port speaks TLS";

pub use credentials::{Credentials, role_of};
pub use der::utc;
pub use explain::{explain, is_about_certificates, without_clock};
pub(crate) use facts::SeenCertificate;
pub use facts::{CertificateFacts, in_words};
pub use files::{Role, TlsError, TlsFiles};
pub use peers::Peers;
pub use server::{MaybeTls, ServerFiles, ServerIdentity};
pub use watch::{CertificateReport, CertificateWatch, WATCH_INTERVAL, Watched};
