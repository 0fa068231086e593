//! Mutual TLS between the processes of a cluster. One authority signs everybody's certificate;
//! what a certificate is for, its extended key usage, says what its holder may be: nodes serve
//! (`serverAuth`), coordinators ask (`clientAuth`), so that who takes over one node cannot give
//! work to the others.

mod credentials;
mod explain;
mod peers;

/// What a port with TLS says to a peer without it.
pub(crate) const SPEAKS_TLS: &str = "this port speaks TLS";

pub use credentials::{Credentials, Role, TlsError, TlsFiles};
pub use explain::explain;
pub use peers::Peers;
