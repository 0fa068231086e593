//! Certificates and keys from files, checked before anything is opened with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::der::private_key_kind;
use super::explain::{ended, not_begun};
use super::facts::{CertificateFacts, Purpose, now};
use super::peers::Anchors;

/// Keys that work, for messages about those that do not.
const SUPPORTED_KEYS: &str = "P-256, P-384, Ed25519 and RSA from 2048 bits on work";

/// The role of a process in the cluster, which its certificate must be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connects to nodes: its certificate is for clients.
    Coordinator,
    /// Serves coordinators: its certificate is for servers.
    Node,
}

impl Role {
    pub(super) fn purposes(self) -> &'static [Purpose] {
        match self {
            Role::Coordinator => &[Purpose::Client],
            Role::Node => &[Purpose::Server],
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Coordinator => "coordinator",
            Role::Node => "node",
        })
    }
}

/// The three PEM files of a member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that sign members' certificates.
    pub ca: PathBuf,
    /// The member's certificate, intermediate ones behind it.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{}: {error}", file.display())]
    Read {
        /// File that the message names.
        file: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The file does not hold what it should, in PEM form.
    #[error("{} holds no {what} in PEM form{}", file.display(), detail(error))]
    Pem {
        /// File that the message names.
        file: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What was found instead.
        error: pem::Error,
    },
    /// The private key is of an algorithm that is not supported.
    #[error("{} holds an unsupported kind of key{}: {SUPPORTED_KEYS}", file.display(), named(kind))]
    Key {
        /// File that the message names.
        file: PathBuf,
        /// What kind of key it is, or what the TLS library says of it.
        kind: String,
    },
    /// Key and certificate do not belong together.
    #[error("the key in {} does not match the certificate in {}", key.display(), cert.display())]
    KeyMismatch {
        /// File of the key.
        key: PathBuf,
        /// File of the certificate.
        cert: PathBuf,
    },
    /// A certificate in the file of authorities cannot be one.
    #[error("{} is not an authority's certificate: {reason}", file.display())]
    Authority {
        /// File that the message names.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The certificate is not accepted.
    #[error("the certificate in {} {reason}", file.display())]
    Certificate {
        /// File that the message names.
        file: PathBuf,
        /// Why, to follow the file's name.
        reason: String,
    },
    /// The certificate was signed by an authority that is not trusted.
    #[error("the certificate in {} was not signed by an authority in {}", cert.display(), ca.display())]
    OtherAuthority {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the authorities.
        ca: PathBuf,
    },
    /// The certificate is for another role.
    #[error("the certificate in {} is not a {role}'s: it lacks the extended key usage {}",
        file.display(), role.purposes()[0])]
    Role {
        /// File that the message names.
        file: PathBuf,
        /// The role of this process.
        role: Role,
    },
    /// The TLS library refused the settings.
    #[error("TLS: {0}")]
    Config(#[from] rustls::Error),
}

fn detail(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => String::new(),
        error => format!(": {error}"),
    }
}

fn named(kind: &str) -> String {
    match kind {
        "" => String::new(),
        kind => format!(", {kind}"),
    }
}

/// A certificate with its chain and its key, which match.
pub(super) struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    /// Of the end of the chain.
    pub(super) facts: CertificateFacts,
    /// As read.
    pub(super) cert_pem: Vec<u8>,
    pub(super) key_pem: Vec<u8>,
}

impl Identity {
    /// Reads a certificate and its key.
    pub(super) fn read(
        cert: &Path,
        key: &Path,
        provider: &CryptoProvider,
    ) -> Result<Self, TlsError> {
        let (cert_pem, key_pem) = (read(cert)?, read(key)?);
        let chain = certificates(cert, &cert_pem)?;
        let facts = chain.first().and_then(|der| CertificateFacts::of(der));
        let facts = facts.ok_or_else(|| TlsError::Certificate {
            file: cert.to_owned(),
            reason: "cannot be read: it is not an X.509 certificate".to_owned(),
        })?;
        let key_der = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| TlsError::Pem {
            file: key.to_owned(),
            what: "private key",
            error,
        })?;
        let kind = private_key_kind(key_der.secret_der());
        let unsupported = |kind: String| TlsError::Key {
            file: key.to_owned(),
            kind,
        };
        if let Some(kind) = kind.filter(|kind| !kind.supported) {
            return Err(unsupported(kind.name.to_owned()));
        }
        let signer = provider.key_provider.load_private_key(key_der);
        let signer = signer.map_err(|error| unsupported(error.to_string()))?;
        let certified = CertifiedKey::new(chain, signer);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsError::KeyMismatch {
                    key: key.to_owned(),
                    cert: cert.to_owned(),
                });
            }
            Err(error) => {
                return Err(TlsError::Certificate {
                    file: cert.to_owned(),
                    reason: format!("cannot be read: {error}"),
                });
            }
        }
        Ok(Identity {
            certified: Arc::new(certified),
            facts,
            cert_pem,
            key_pem,
        })
    }
}

impl Identity {
    /// Refuses a certificate that has ended or has not begun.
    pub(super) fn check_dates(&self, file: &Path) -> Result<(), TlsError> {
        let (now, facts) = (now(), &self.facts);
        let reason = match () {
            () if now > facts.not_after => ended(facts.not_after, now),
            () if now < facts.not_before => not_begun(facts.not_before, now),
            () => return Ok(()),
        };
        Err(TlsError::Certificate {
            file: file.to_owned(),
            reason,
        })
    }
}

/// The authorities of a file, and the file's text.
pub(super) struct Authorities {
    pub(super) anchors: Anchors,
    pub(super) facts: Vec<CertificateFacts>,
    pub(super) pem: Vec<u8>,
}

impl Authorities {
    pub(super) fn read(file: &Path, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let pem = read(file)?;
        let all = certificates(file, &pem)?;
        let refuse = |reason| TlsError::Authority {
            file: file.to_owned(),
            reason,
        };
        let facts: Vec<_> = all
            .iter()
            .filter_map(|der| CertificateFacts::of(der))
            .collect();
        if let Some(kind) = facts.iter().find_map(|facts| facts.unsupported_key) {
            let reason = format!("its key is of an unsupported kind, {kind}: {SUPPORTED_KEYS}");
            return Err(refuse(reason));
        }
        let anchors = Anchors::new(all, provider).map_err(refuse)?;
        Ok(Authorities {
            anchors,
            facts,
            pem,
        })
    }
}

impl TlsFiles {
    /// Finds, with the file's name, what every peer would refuse.
    pub(super) fn check(
        &self,
        anchors: &Anchors,
        chain: &[CertificateDer<'static>],
        role: Role,
    ) -> Result<(), TlsError> {
        // A chain that was read is not empty.
        let Some((end, intermediates)) = chain.split_first() else {
            return Ok(());
        };
        let found = anchors.verify(end, intermediates, UnixTime::now(), role.purposes());
        found.map_err(|error| match error {
            webpki::Error::UnknownIssuer => TlsError::OtherAuthority {
                cert: self.cert.clone(),
                ca: self.ca.clone(),
            },
            webpki::Error::RequiredEkuNotFoundContext(_) => TlsError::Role {
                file: self.cert.clone(),
                role,
            },
            error => TlsError::Certificate {
                file: self.cert.clone(),
                reason: super::explain::fault_of(&super::peers::certificate_error(error)),
            },
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|error| TlsError::Read {
        file: file.to_owned(),
        error,
    })
}

/// All certificates of a file, at least one.
fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.and_then(|list| match list.is_empty() {
        true => Err(pem::Error::NoItemsFound),
        false => Ok(list),
    });
    found.map_err(|error| TlsError::Pem {
        file: file.to_owned(),
        what: "certificate",
        error,
    })
}
