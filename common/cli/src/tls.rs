//! The flags that protect connections between nodes and coordinators.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use ds4_proto::security::Security;
use ds4_proto::tls::{Role, TlsFiles};

/// Certificates for TLS, or permission to use plain text.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate of the cluster's authority (PEM). With it, nodes and coordinators require TLS
    /// and verify each other; `ds4-coord certs` writes the files [default: none]
    #[arg(long, env = "DS4_TLS_CA", value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,

    /// Certificate of this process (PEM) [default: none]
    #[arg(long, env = "DS4_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of this process's certificate (PEM) [default: none]
    #[arg(long, env = "DS4_TLS_KEY", value_name = "FILE", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,

    /// Allow plain text to and from other machines; without TLS, only this machine can be reached
    /// [default: off]
    #[arg(long, env = "DS4_INSECURE")]
    pub insecure: bool,
}

impl TlsArgs {
    /// How this process, a `role` of the cluster, protects its connections. Warns of plain text.
    ///
    /// # Errors
    /// A file is missing, malformed, expired or not for this role, or the flags exclude each other.
    pub fn security(&self, role: Role) -> Result<Security> {
        if let (Some(ca), Some(cert), Some(key)) = (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            // Not left to the parser, which would count the variable's value "false" as given.
            ensure!(
                !self.insecure,
                "--insecure cannot be used together with --tls-ca"
            );
            let files = TlsFiles {
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
            };
            let credentials = files.load(role)?;
            warn_of_readable(key);
            return Ok(Security::Tls(credentials));
        }
        if self.insecure {
            tracing::warn!(
                "--insecure: anyone on the network between coordinator and nodes can read and \
                 change their traffic and use the nodes"
            );
            return Ok(Security::Insecure);
        }
        Ok(Security::Loopback)
    }
}

/// A key that every user of the machine can read is not a secret. It is not refused: some
/// platforms hand keys to containers, which have one user, in just this way.
fn warn_of_readable(key: &Path) {
    let readable = |file: std::fs::Metadata| file.permissions().mode() & 0o004 != 0;
    if std::fs::metadata(key).is_ok_and(readable) {
        tracing::warn!(key = %key.display(), "the private key is readable by every user of this machine");
    }
}
