//! How the machines of a cluster reach each other: over TLS, or in plain text, which does not leave
//! a machine unless it is explicitly allowed to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;

use futures::stream::Stream;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};

use crate::channel::{self, AddressError};
use crate::gate::{self, Peer};
use crate::tls::{
    CertificateFacts, CertificateReport, CertificateWatch, Credentials, Peers, SeenCertificate,
    WATCH_INTERVAL,
};

/// What protects connections between coordinators and nodes.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// Plain text, and only between processes of one machine.
    #[default]
    Loopback,
    /// Plain text, also between machines, which was explicitly allowed.
    Insecure,
    /// TLS; both sides show certificates.
    Tls(Credentials),
}

/// Plain text would leave the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not on this machine, and plain text can be read and changed on its way: pass --tls-ca, \
     --tls-cert and --tls-key, or --insecure"
)]
pub struct PlainText(String);

/// Why a peer cannot be connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The address cannot be connected to.
    #[error("'{address}' is not a valid address: {reason}")]
    Address {
        /// The address, as it was given.
        address: String,
        /// Why.
        reason: AddressError,
    },
    /// The address is beyond this machine and there is no TLS.
    #[error(transparent)]
    PlainText(#[from] PlainText),
}

impl Security {
    /// Refuses an address at which a server would accept plain text from other machines.
    ///
    /// # Errors
    /// There is no TLS, and the address can be reached from other machines.
    pub fn check_listen(&self, address: SocketAddr) -> Result<(), PlainText> {
        match self {
            Security::Loopback if !address.ip().to_canonical().is_loopback() => {
                Err(PlainText(address.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The connections that `listener` accepts: over TLS those of `peers`, in plain text all.
    pub fn incoming(
        &self,
        listener: TcpListener,
        peers: Peers,
    ) -> impl Stream<Item = io::Result<Peer>> + use<> {
        let tls = match self {
            Security::Tls(credentials) => Some((credentials.clone(), peers)),
            Security::Loopback | Security::Insecure => None,
        };
        gate::incoming(listener, tls)
    }

    /// Logs the certificates and follows their files, if there are any, until the result is
    /// dropped. `observe` gets a report at once and every [`WATCH_INTERVAL`].
    ///
    /// # Panics
    /// There is no Tokio runtime.
    #[must_use]
    pub fn watch(
        &self,
        observe: impl Fn(&CertificateReport) + Send + 'static,
    ) -> Option<CertificateWatch> {
        let Security::Tls(credentials) = self else {
            return None;
        };
        let credentials = credentials.clone();
        Some(CertificateWatch::start(
            credentials,
            WATCH_INTERVAL,
            observe,
        ))
    }

    /// How to reach the peer at `address`, a `host:port`. `http://host:port` means plain text
    /// even where other nodes are reached over TLS, for nodes on the same machine.
    ///
    /// # Errors
    /// The address is not valid, or plain text would leave the machine.
    pub fn endpoint(&self, address: &str) -> Result<Dial, DialError> {
        self.dial(address, None)
    }

    /// As [`Self::endpoint`], for the IP `address` that a `name` was resolved to: the peer's
    /// certificate must be for the name, since addresses are not known when it is made.
    ///
    /// # Errors
    /// The address is not valid, or plain text would leave the machine.
    pub fn endpoint_as(&self, address: &str, name: &str) -> Result<Dial, DialError> {
        self.dial(address, Some(name))
    }

    fn dial(&self, address: &str, name: Option<&str>) -> Result<Dial, DialError> {
        let named_plain = address.starts_with("http://");
        let no_address = |reason| DialError::Address {
            address: address.to_owned(),
            reason,
        };
        let credentials = match self {
            Security::Tls(credentials) if !named_plain => Some(credentials.clone()),
            _ => None,
        };
        let plain = credentials.is_none();
        let endpoint = match plain {
            true => channel::endpoint(address),
            false => channel::tls_endpoint(address),
        };
        let endpoint = endpoint.map_err(no_address)?;
        let local = endpoint.uri().host().is_some_and(is_this_machine);
        if plain && !local && !matches!(self, Security::Insecure) {
            return Err(PlainText(address.to_owned()).into());
        }
        let dial = Dial {
            endpoint,
            name: name.map(str::to_owned),
            credentials,
            seen: SeenCertificate::default(),
        };
        // The credentials were checked when they were read; what is left is the name.
        dial.ready().map_err(|_| no_address(AddressError::Form))?;
        Ok(dial)
    }
}

/// How to reach one peer. Each connection uses the credentials as they are at its start.
#[derive(Clone, Debug)]
pub struct Dial {
    endpoint: Endpoint,
    /// The name that the peer's certificate must be for, if it is not the host in the address.
    name: Option<String>,
    /// `None` for plain text.
    credentials: Option<Credentials>,
    seen: SeenCertificate,
}

impl Dial {
    /// Connects.
    ///
    /// # Errors
    /// The peer cannot be reached, or one side refuses the other's certificate.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        self.ready()?.connect().await
    }

    /// A channel that connects when it is first used, and again when the connection was lost, with
    /// the credentials of now.
    ///
    /// # Errors
    /// The TLS library refuses the settings.
    pub fn connect_lazy(&self) -> Result<Channel, tonic::transport::Error> {
        Ok(self.ready()?.connect_lazy())
    }

    /// The certificate that the peer showed last; `None` in plain text and before a connection.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<CertificateFacts> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    fn ready(&self) -> Result<Endpoint, tonic::transport::Error> {
        let endpoint = self.endpoint.clone();
        match &self.credentials {
            None => Ok(endpoint),
            Some(credentials) => credentials.client(endpoint, self.name.as_deref(), &self.seen),
        }
    }
}

/// Names other than `localhost` may lead anywhere.
fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_on_the_machine_unless_asked_for() {
        for here in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "localhost:1",
            "http://LOCALHOST:1",
        ] {
            assert!(Security::Loopback.endpoint(here).is_ok(), "{here}");
        }
        for away in [
            "10.0.0.1:1",
            "[::2]:1",
            "node:1",
            "0.0.0.0:1",
            "http://localhost.x:1",
        ] {
            let error = Security::Loopback.endpoint(away).expect_err(away);
            assert_eq!(error, PlainText(away.to_owned()).into());
            assert!(Security::Insecure.endpoint(away).is_ok(), "{away}");
        }
        let error = Security::Insecure.endpoint("node").expect_err("no port");
        let reason = AddressError::NoPort;
        let address = "node".to_owned();
        assert_eq!(error, DialError::Address { address, reason });
    }

    #[test]
    fn listening_beyond_the_machine_needs_more() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("address");
        for here in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(Security::Loopback.check_listen(at(here)), Ok(()));
        }
        for away in ["0.0.0.0:1", "[::]:1", "192.168.1.1:1"] {
            assert!(Security::Loopback.check_listen(at(away)).is_err(), "{away}");
            assert_eq!(Security::Insecure.check_listen(at(away)), Ok(()));
        }
    }
}
