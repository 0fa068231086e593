//! Who sends a request, and by which name it is known everywhere: in its answer, in the header
//! `x-request-id` and in the log.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::app::App;
use super::connection_state::{PeerAddr, neighbourhood};
use crate::scheduler::{ClientKey, RequestOrigin};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The longest id of a client that is taken over.
const REQUEST_ID_MAX: usize = 128;

/// An extension of every request.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// What tells the request from all others.
    pub(super) number: String,
    /// The id of its answer: the number with the prefix of its route.
    pub(super) id: String,
    client_id: Option<HeaderValue>,
    client: ClientKey,
}

impl Identity {
    pub(super) fn of(app: &App, request: &Request) -> Self {
        let number = app.next_id();
        let id = match request.uri().path() {
            "/v1/chat/completions" => format!("chatcmpl-{number}"),
            "/v1/completions" => format!("cmpl-{number}"),
            _ => number.clone(),
        };
        let peer = request.extensions().get::<PeerAddr>();
        let printable = |id: &&HeaderValue| {
            (1..=REQUEST_ID_MAX).contains(&id.len())
                && id.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        Identity {
            number,
            id,
            client_id: request
                .headers()
                .get(&REQUEST_ID)
                .filter(printable)
                .cloned(),
            client: client_key(
                app.client_hash(),
                request.headers(),
                peer.map(|peer| peer.0.ip()),
            ),
        }
    }

    /// What the response's header says: the client's own id, if it has one.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let own = || HeaderValue::try_from(&self.id).ok();
        self.client_id.clone().or_else(own)
    }

    /// Whom the scheduler serves, and what it writes into the log.
    pub(super) fn origin(&self) -> RequestOrigin {
        let client_id = self.client_id.as_ref().and_then(|id| id.to_str().ok());
        RequestOrigin {
            id: self.id.clone(),
            client_id: client_id.map(str::to_owned),
            client: self.client,
        }
    }

    /// The client, between whom and others the queue is fair.
    pub(super) fn client(&self) -> ClientKey {
        self.client
    }
}

/// The client: by its address, and there by its key. A client of IPv6 has a network of addresses.
fn client_key(hash: &RandomState, headers: &HeaderMap, peer: Option<IpAddr>) -> ClientKey {
    let key = [header::AUTHORIZATION, API_KEY]
        .iter()
        .find_map(|name| headers.get(name))
        .map(HeaderValue::as_bytes)
        .filter(|key| !key.is_empty());
    ClientKey {
        address: hash.hash_one(peer.map(neighbourhood)),
        key: hash.hash_one(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_apart_by_network_and_there_by_key() {
        let hash = RandomState::new();
        let of = |header: Option<(&'static str, &str)>, peer: &str| {
            let header = header.map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            });
            client_key(
                &hash,
                &header.into_iter().collect(),
                Some(peer.parse().unwrap()),
            )
        };
        let one = Some(("authorization", "Bearer 1"));
        let two = Some(("authorization", "Bearer 2"));
        let other = Some(("x-api-key", "a"));
        let keys = [one, two, other, None].map(|key| of(key, "10.0.0.1"));
        for (i, client) in keys.iter().enumerate() {
            assert_eq!(client.address, keys[0].address);
            assert!(keys[..i].iter().all(|before| before.key != client.key));
        }
        assert_eq!(of(Some(("x-api-key", "")), "10.0.0.1"), keys[3]);

        let address = |peer| of(None, peer).address;
        assert_ne!(of(one, "10.0.0.2").address, keys[0].address);
        assert_eq!(of(one, "10.0.0.2").address, address("10.0.0.2"));
        assert_eq!(address("10.0.0.1"), address("::ffff:10.0.0.1"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:0:0:2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
    }
}
