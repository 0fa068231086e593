//! Certificates and keys from files, checked before anything is opened with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::peers::{Anchors, PeerVerifier, Peers, Purpose};
use crate::limits::HANDSHAKE_TIMEOUT;

/// The protocol of all connections of a cluster inside of TLS: HTTP/2.
const ALPN: &[u8] = b"h2";

/// The role of a process in the cluster, which its certificate must be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connects to nodes: its certificate is for clients.
    Coordinator,
    /// Serves coordinators: its certificate is for servers.
    Node,
}

impl Role {
    fn purposes(self) -> &'static [Purpose] {
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
    #[error("{} holds an unsupported kind of key: {error}", file.display())]
    Key {
        /// File that the message names.
        file: PathBuf,
        /// The reason.
        error: rustls::Error,
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

/// A member's certificate and key, and the authorities that it trusts. Cheap to clone. Files that
/// change later are read by the next process only.
#[derive(Clone)]
pub struct Credentials(Arc<LoadedCredentials>);

struct LoadedCredentials {
    anchors: Arc<Anchors>,
    identity: CertifiedKey,
    provider: Arc<CryptoProvider>,
    /// As read, for the client, which parses them itself.
    ca_pem: Vec<u8>,
    cert_pem: Vec<u8>,
    key_pem: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl TlsFiles {
    /// Reads the files of a member that is a `role`.
    ///
    /// # Errors
    /// Names the file that is missing or malformed, or does not match another one, or whose
    /// certificate has expired or is for another role.
    pub fn load(&self, role: Role) -> Result<Credentials, TlsError> {
        let credentials = self.load_unchecked()?;
        let loaded = &credentials.0;
        self.check(&loaded.anchors, &loaded.identity.cert, role)?;
        Ok(credentials)
    }

    /// Reads the files without checking the certificate's signer, dates and purpose, which peers
    /// check.
    ///
    /// # Errors
    /// Names the file that is missing or malformed, or the key that does not match.
    pub fn load_unchecked(&self) -> Result<Credentials, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let (ca_pem, cert_pem, key_pem) = (read(&self.ca)?, read(&self.cert)?, read(&self.key)?);
        let anchors = Anchors::new(certificates(&self.ca, &ca_pem)?, &provider);
        let anchors = anchors.map_err(|reason| TlsError::Authority {
            file: self.ca.clone(),
            reason,
        })?;
        let chain = certificates(&self.cert, &cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| TlsError::Pem {
            file: self.key.clone(),
            what: "private key",
            error,
        })?;
        let identity = self.identity(chain, key, &provider)?;
        Ok(Credentials(Arc::new(LoadedCredentials {
            anchors: Arc::new(anchors),
            identity,
            provider,
            ca_pem,
            cert_pem,
            key_pem,
        })))
    }

    fn identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, TlsError> {
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|error| TlsError::Key {
            file: self.key.clone(),
            error,
        })?;
        let identity = CertifiedKey::new(chain, key);
        match identity.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(identity)
            }
            Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::KeyMismatch {
                key: self.key.clone(),
                cert: self.cert.clone(),
            }),
            Err(error) => Err(TlsError::Certificate {
                file: self.cert.clone(),
                reason: format!("cannot be read: {error}"),
            }),
        }
    }

    /// Finds at the start, with the file's name, what every peer would refuse.
    fn check(
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

impl Credentials {
    /// Settings of a server that accepts `peers` only.
    ///
    /// # Errors
    /// The TLS library refuses the settings.
    pub fn server(&self, peers: Peers) -> Result<Arc<ServerConfig>, TlsError> {
        let loaded = &self.0;
        let verifier = PeerVerifier::new(Arc::clone(&loaded.anchors), peers);
        let identity = rustls::sign::SingleCertAndKey::from(loaded.identity.clone());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&loaded.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(identity));
        config.alpn_protocols.push(ALPN.to_vec());
        // Connections last for days, so resuming them gains nothing; and a peer that comes back
        // shows a certificate that is valid then.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Settings of a client. The server's certificate must be for the name in the address.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        let loaded = &self.0;
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&loaded.ca_pem))
            .identity(Identity::from_pem(&loaded.cert_pem, &loaded.key_pem))
            .timeout(HANDSHAKE_TIMEOUT)
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
