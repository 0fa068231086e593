//! Which peers a server accepts.

use std::sync::{Arc, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, SignatureScheme,
};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};

use super::facts::{CertificateFacts, Purpose, SeenCertificate};

/// Which members may connect to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Those that may give work to nodes.
    Coordinators,
    /// Coordinators and nodes: a node that fetches its slice is the client.
    Members,
}

impl Peers {
    fn purposes(self) -> &'static [Purpose] {
        match self {
            Peers::Coordinators => &[Purpose::Client],
            Peers::Members => &[Purpose::Client, Purpose::Server],
        }
    }
}

/// A certificate must name one of these purposes, or none at all, which stands for any (RFC 5280,
/// 4.2.1.12).
struct AnyOf(&'static [Purpose]);

impl ExtendedKeyUsageValidator for AnyOf {
    fn validate(&self, named: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut present = Vec::new();
        for purpose in named {
            let oid = purpose?.to_decoded_oid();
            if self.0.iter().any(|wanted| wanted.oid() == oid) {
                return Ok(());
            }
            present.push(oid);
        }
        // An extension without purposes does not get here: it is malformed.
        if present.is_empty() {
            return Ok(());
        }
        let required = match self.0 {
            [Purpose::Server] => KeyUsage::server_auth(),
            _ => KeyUsage::client_auth(),
        };
        let context = webpki::RequiredEkuNotFoundContext { required, present };
        Err(webpki::Error::RequiredEkuNotFoundContext(context))
    }
}

/// The authorities that a cluster trusts.
#[derive(Debug)]
pub(super) struct Anchors {
    roots: RootCertStore,
    names: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Anchors {
    /// The error says why a certificate cannot be that of an authority.
    pub(super) fn new(
        certificates: Vec<CertificateDer<'static>>,
        provider: &CryptoProvider,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        Ok(Anchors {
            names: roots.subjects(),
            roots,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// Whether one of these authorities signed a certificate for one of these purposes.
    pub(super) fn verify(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        purposes: &'static [Purpose],
    ) -> Result<(), webpki::Error> {
        let end = EndEntityCert::try_from(end)?;
        let verified = end.verify_for_usage(
            self.algorithms.all,
            &self.roots.roots,
            intermediates,
            now,
            AnyOf(purposes),
            None,
            None,
        );
        verified.map(drop)
    }
}

/// Lets a server's TLS accept these peers only.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    anchors: Arc<Anchors>,
    peers: Peers,
}

impl PeerVerifier {
    pub(super) fn new(anchors: Arc<Anchors>, peers: Peers) -> Self {
        PeerVerifier { anchors, peers }
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.anchors.names
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let purposes = self.peers.purposes();
        match self
            .anchors
            .verify(end_entity, intermediates, now, purposes)
        {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(Error::InvalidCertificate(certificate_error(error))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The server offers TLS 1.3 only.
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.anchors.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.anchors.algorithms.supported_schemes()
    }
}

/// Lets a client's TLS accept the node that it means to reach, and keeps what its certificate says.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    anchors: Arc<Anchors>,
    seen: SeenCertificate,
}

impl NodeVerifier {
    pub(super) fn new(anchors: Arc<Anchors>, seen: SeenCertificate) -> Self {
        NodeVerifier { anchors, seen }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refuse = |error| Error::InvalidCertificate(certificate_error(error));
        self.anchors
            .verify(end_entity, intermediates, now, &[Purpose::Server])
            .map_err(refuse)?;
        EndEntityCert::try_from(end_entity)
            .and_then(|end| end.verify_is_valid_for_subject_name(server_name))
            .map_err(refuse)?;
        let seen = CertificateFacts::of(end_entity);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.anchors.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.anchors.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.anchors.algorithms.supported_schemes()
    }
}

/// The error of TLS, which has an alert for the common ones.
pub(super) fn certificate_error(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        webpki::Error::CertNotValidForName(webpki::InvalidNameContext {
            expected,
            presented,
        }) => CertificateError::NotValidForNameContext {
            expected,
            presented,
        },
        error => CertificateError::Other(OtherError(Arc::new(error))),
    }
}
