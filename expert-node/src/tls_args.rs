//! The flags that protect connections between nodes and coordinators, which both programs have.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use ds4_proto::security::Security;
use ds4_proto::tls::{Role, TlsFiles};

/// Certificates, or the word that there shall be none.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// PEM file of the cluster's authority. With it, nodes and coordinators speak TLS and show
    /// each other certificates; `ds4-coord certs` makes the files [default: none]
    #[arg(long, env = "DS4_TLS_CA", value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file of this process's certificate [default: none]
    #[arg(long, env = "DS4_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key [default: none]
    #[arg(long, env = "DS4_TLS_KEY", value_name = "FILE", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,
    /// Exchange plain text with other machines; without it and TLS, only this machine is reached
    #[arg(long, env = "DS4_INSECURE")]
    pub insecure: bool,
}

impl TlsArgs {
    /// What the flags ask for, of a process that is a `role`. Warns of plain text.
    ///
    /// # Errors
    /// Names the file that is missing, malformed, expired, or not this role's, or the flags that
    /// exclude each other.
    pub fn security(&self, role: Role) -> Result<Security> {
        if let (Some(ca), Some(cert), Some(key)) = (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            // Not a conflict for the parser, to which a variable that says "false" is one too.
            ensure!(!self.insecure, "--insecure and --tls-ca exclude each other");
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
                "--insecure: whoever reaches the network between coordinator and nodes can read \
                 and change what they exchange, and use the nodes"
            );
            return Ok(Security::Insecure);
        }
        Ok(Security::Loopback)
    }
}

/// A key that every user of the machine can read is no secret. Not refused: some platforms hand
/// keys to containers, which have one user, in just this way.
fn warn_of_readable(key: &Path) {
    let readable = |file: std::fs::Metadata| file.permissions().mode() & 0o004 != 0;
    if std::fs::metadata(key).is_ok_and(readable) {
        tracing::warn!(key = %key.display(), "every user of this machine can read the key");
    }
}
