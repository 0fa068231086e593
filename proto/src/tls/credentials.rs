//! A member's certificate and key, and the authorities that it trusts, as they are at the moment:
//! files that change are read again, and new connections use what was read last.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use tonic::transport::{ClientTlsConfig, Endpoint, Identity as ClientIdentity};

use super::facts::{CertificateFacts, Purpose, SeenCertificate};
use super::files::{Authorities, Identity, Role, TlsError, TlsFiles};
use super::peers::{Anchors, NodeVerifier, PeerVerifier, Peers};
use super::watch::Watched;
use crate::limits::HANDSHAKE_TIMEOUT;

/// The protocol of all connections of a cluster inside of TLS: HTTP/2.
const ALPN: &[u8] = b"h2";

/// A member's certificate and key, and the authorities that it trusts. Cheap to clone; all clones
/// change together when the files are read again. Connections that are open keep what they have.
#[derive(Clone)]
pub struct Credentials(Arc<Live>);

struct Live {
    files: TlsFiles,
    /// `None` for those that peers alone check.
    role: Option<Role>,
    current: RwLock<Arc<CredentialSet>>,
}

/// What was read together, and what TLS needs of it.
struct CredentialSet {
    anchors: Arc<Anchors>,
    identity: Identity,
    authorities: Vec<CertificateFacts>,
    ca_pem: Vec<u8>,
    for_coordinators: Arc<ServerConfig>,
    for_members: Arc<ServerConfig>,
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
        self.credentials(Some(role))
    }

    /// Reads the files without checking the certificate's signer, dates and purpose, which peers
    /// check.
    ///
    /// # Errors
    /// Names the file that is missing or malformed, or the key that does not match.
    pub fn load_unchecked(&self) -> Result<Credentials, TlsError> {
        self.credentials(None)
    }

    fn credentials(&self, role: Option<Role>) -> Result<Credentials, TlsError> {
        let set = CredentialSet::read(self, role)?;
        Ok(Credentials(Arc::new(Live {
            files: self.clone(),
            role,
            current: RwLock::new(Arc::new(set)),
        })))
    }
}

impl CredentialSet {
    fn read(files: &TlsFiles, role: Option<Role>) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let authorities = Authorities::read(&files.ca, &provider)?;
        let identity = Identity::read(&files.cert, &files.key, &provider)?;
        if let Some(role) = role {
            files.check(&authorities.anchors, &identity.certified.cert, role)?;
        }
        let anchors = Arc::new(authorities.anchors);
        let server = |peers| server_config(&provider, &anchors, &identity, peers);
        Ok(CredentialSet {
            for_coordinators: server(Peers::Coordinators)?,
            for_members: server(Peers::Members)?,
            anchors,
            identity,
            authorities: authorities.facts,
            ca_pem: authorities.pem,
        })
    }

    fn is_same_as(&self, other: &Self) -> bool {
        let texts = |set: &Self| {
            let Identity {
                cert_pem, key_pem, ..
            } = &set.identity;
            [&set.ca_pem, cert_pem, key_pem].map(Vec::clone)
        };
        texts(self) == texts(other)
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    anchors: &Arc<Anchors>,
    identity: &Identity,
    peers: Peers,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = PeerVerifier::new(Arc::clone(anchors), peers);
    let certified = SingleCertAndKey::from(identity.certified.as_ref().clone());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(certified));
    config.alpn_protocols.push(ALPN.to_vec());
    // Connections last for days, so resuming them gains nothing; and a peer that comes back
    // shows a certificate that is valid then.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

impl Credentials {
    fn current(&self) -> Arc<CredentialSet> {
        // A set is replaced as a whole.
        let current = &self.0.current;
        Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Settings of a server for its next handshake, which accepts `peers` only.
    #[must_use]
    pub fn server(&self, peers: Peers) -> Arc<ServerConfig> {
        let current = self.current();
        Arc::clone(match peers {
            Peers::Coordinators => &current.for_coordinators,
            Peers::Members => &current.for_members,
        })
    }

    /// The endpoint with the settings of a client for its next connection. The server's certificate
    /// must be for `name`, or without one for the host in the address; it is written to `seen`.
    ///
    /// # Errors
    /// The name cannot be one of a certificate.
    pub(crate) fn client(
        &self,
        endpoint: Endpoint,
        name: Option<&str>,
        seen: &SeenCertificate,
    ) -> Result<Endpoint, tonic::transport::Error> {
        let set = self.current();
        let Identity {
            cert_pem, key_pem, ..
        } = &set.identity;
        let tls = ClientTlsConfig::new()
            .identity(ClientIdentity::from_pem(cert_pem, key_pem))
            .timeout(HANDSHAKE_TIMEOUT);
        let tls = match name {
            Some(name) => tls.domain_name(name),
            None => tls,
        };
        let verifier = NodeVerifier::new(Arc::clone(&set.anchors), Arc::clone(seen));
        endpoint.tls_config_with_verifier(tls, Arc::new(verifier))
    }

    /// This member's certificate.
    #[must_use]
    pub fn own(&self) -> CertificateFacts {
        self.current().identity.facts.clone()
    }
}

impl Watched for Credentials {
    fn files(&self) -> Vec<&Path> {
        let TlsFiles { ca, cert, key } = &self.0.files;
        vec![ca, cert, key]
    }

    fn reload(&self) -> Result<bool, TlsError> {
        let set = CredentialSet::read(&self.0.files, self.0.role)?;
        if set.is_same_as(&self.current()) {
            return Ok(false);
        }
        *self
            .0
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
        Ok(true)
    }

    fn certificates(&self) -> Vec<(&'static str, CertificateFacts)> {
        let set = self.current();
        let label = match self.0.role {
            Some(Role::Node) => "node",
            Some(Role::Coordinator) | None => "coordinator",
        };
        let own = (label, set.identity.facts.clone());
        // Of several authorities the last to end: the others are being replaced.
        let lasting = set.authorities.iter().max_by_key(|facts| facts.not_after);
        let lasting = lasting.map(|facts| ("authority", facts.clone()));
        std::iter::once(own).chain(lasting).collect()
    }

    fn remarks(&self) -> Vec<&'static str> {
        let set = self.current();
        let any = set.identity.facts.purposes.is_none();
        let remark = "the certificate names no purposes (extended key usage), so it is for any: a \
                      node with such a certificate could pass for a coordinator";
        any.then_some(remark).into_iter().collect()
    }
}

/// The role that a certificate is for by its purposes: a coordinator's may also serve. `None` for
/// one that names no purposes, or others.
#[must_use]
pub fn role_of(facts: &CertificateFacts) -> Option<Role> {
    facts.purposes?;
    match (facts.is_for(Purpose::Client), facts.is_for(Purpose::Server)) {
        (true, _) => Some(Role::Coordinator),
        (false, true) => Some(Role::Node),
        (false, false) => None,
    }
}
