//! Mutual TLS between the processes of a cluster. One authority signs all certificates. The extended
//! key usage of a certificate decides its holder's role: nodes serve (`serverAuth`), coordinators
//! connect (`clientAuth`), so that an attacker with one node's key cannot give work to the others.

mod credentials;
mod explain;
mod peers;

/// What a port with TLS answers a peer without it.
pub(crate) const SPEAKS_TLS: &str = "this port speaks TLS";

pub use credentials::{Credentials, Role, TlsError, TlsFiles};
pub use explain::explain;
pub use peers::Peers;
