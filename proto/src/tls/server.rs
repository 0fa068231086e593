//! TLS of a server whose clients have no certificates: the HTTP API.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::explain;
use super::facts::CertificateFacts;
use super::files::{Identity, TlsError};
use super::watch::Watched;

/// A connection of a client, with or without TLS.
pub type MaybeTls<S> = Either<S, Box<TlsStream<S>>>;

/// The two PEM files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate, intermediate ones behind it.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// A server's certificate and key as they are at the moment. Cheap to clone; all clones change
/// together when the files are read again.
#[derive(Clone)]
pub struct ServerIdentity(Arc<Live>);

struct Live {
    files: ServerFiles,
    current: RwLock<Arc<Current>>,
}

struct Current {
    identity: Identity,
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for ServerIdentity {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServerIdentity")
            .field(&self.0.files)
            .finish()
    }
}

impl ServerFiles {
    /// Reads the files. Who signed the certificate is the clients' question.
    ///
    /// # Errors
    /// Names the file that is missing or malformed, the key that does not match, or the certificate
    /// that is not valid today.
    pub fn load(&self) -> Result<ServerIdentity, TlsError> {
        let current = RwLock::new(Arc::new(self.read()?));
        let files = self.clone();
        Ok(ServerIdentity(Arc::new(Live { files, current })))
    }

    fn read(&self) -> Result<Current, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let identity = Identity::read(&self.cert, &self.key, &provider)?;
        identity.check_dates(&self.cert)?;
        let certified = SingleCertAndKey::from(identity.certified.as_ref().clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(certified));
        config.alpn_protocols.push(b"http/1.1".to_vec());
        let config = Arc::new(config);
        Ok(Current { identity, config })
    }
}

impl ServerIdentity {
    fn current(&self) -> Arc<Current> {
        // A set is replaced as a whole.
        let current = &self.0.current;
        Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shakes hands with a client, who decides how long that takes.
    ///
    /// # Errors
    /// Says what the client did wrong; the connection is closed.
    pub async fn accept<S>(&self, stream: S) -> Result<MaybeTls<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current().config));
        match acceptor.accept(stream).await {
            Ok(stream) => Ok(Either::Right(Box::new(stream))),
            Err(error) => Err(explain(&error).unwrap_or_else(|| error.to_string())),
        }
    }
}

impl Watched for ServerIdentity {
    fn files(&self) -> Vec<&Path> {
        let ServerFiles { cert, key } = &self.0.files;
        vec![cert, key]
    }

    fn reload(&self) -> Result<bool, TlsError> {
        let new = self.0.files.read()?;
        let texts = |current: &Current| {
            let Identity {
                cert_pem, key_pem, ..
            } = &current.identity;
            [cert_pem.clone(), key_pem.clone()]
        };
        if texts(&new) == texts(&self.current()) {
            return Ok(false);
        }
        let current = &self.0.current;
        *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(true)
    }

    fn certificates(&self) -> Vec<(&'static str, CertificateFacts)> {
        vec![("http", self.current().identity.facts.clone())]
    }
}
