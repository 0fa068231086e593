//! Mutual TLS between the processes of a cluster. One authority signs everybody's certificate;
//! what a certificate is for, its extended key usage, says what its holder may be: nodes serve
//! (`serverAuth`), coordinators ask (`clientAuth`), so that who takes over one node cannot give
//! work to the others.

mod credentials;
mod explain;
mod peers;

pub use credentials::{Credentials, Role, TlsError, TlsFiles};
pub use explain::explain;
pub use peers::Peers;
