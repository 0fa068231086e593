//! Transport settings of both sides: large windows for bulk messages, no delay for small ones,
//! pings so that a dead peer is noticed.

use tonic::transport::{Endpoint, Server};

pub use crate::first_message::FirstMessageLimit;
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW, FRAME_BYTES, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT,
    MAX_HEADER_BYTES, MAX_HELLO_BYTES, MAX_MESSAGE_BYTES, MAX_PROBE_MESSAGE_BYTES,
    MAX_SLICE_HEAD_BYTES, MAX_SLICE_MESSAGE_BYTES, MAX_SLICE_REQUEST_BYTES, MAX_STREAMS,
    NODE_PING_INTERVAL, NODE_PING_TIMEOUT, STREAM_WINDOW,
};
use crate::pb::expert_compute_client::ExpertComputeClient;
use crate::pb::expert_compute_server::{ExpertCompute, ExpertComputeServer};
use crate::pb::node_probe_client::NodeProbeClient;
use crate::pb::node_probe_server::{NodeProbe, NodeProbeServer};
use crate::pb::slice_source_client::SliceSourceClient;
use crate::pb::slice_source_server::{SliceSource, SliceSourceServer};

/// Why a text is not an address of a node. Trying again would not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It cannot be parsed.
    #[error("it is not of the form host:port")]
    Form,
    /// Nothing stands before the colon.
    #[error("it has no host")]
    Host,
    /// Nothing stands behind the colon.
    #[error("it has no port")]
    NoPort,
    /// The port is not a number, or out of range.
    #[error("its port is not between 1 and 65535")]
    Port,
    /// It has another scheme, or a path.
    #[error("the only URL form is http://host:port")]
    Url,
}

/// The endpoint of the node at `address`, a `host:port` or an `http://host:port`.
///
/// # Errors
/// The address is not valid.
pub fn endpoint(address: &str) -> Result<Endpoint, AddressError> {
    endpoint_of("http", address)
}

/// As [`endpoint`], for a connection over TLS, whose settings are still to be made.
///
/// # Errors
/// The address is not valid.
pub fn tls_endpoint(address: &str) -> Result<Endpoint, AddressError> {
    endpoint_of("https", address)
}

fn endpoint_of(scheme: &str, address: &str) -> Result<Endpoint, AddressError> {
    let authority = match address.split_once("://") {
        Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some(_) => return Err(AddressError::Url),
        None => address,
    };
    if authority.contains(['/', '@', '?', '#']) {
        return Err(AddressError::Url);
    }
    check_port(authority)?;
    let endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"));
    Ok(endpoint
        .map_err(|_| AddressError::Form)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keep_alive_interval(NODE_PING_INTERVAL)
        .keep_alive_timeout(NODE_PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The URL parser accepts invalid ports and an empty host.
fn check_port(authority: &str) -> Result<(), AddressError> {
    // After the bracket of an IPv6 address, whose own colons do not precede a port.
    let after_host = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match authority[after_host..].split_once(':') {
        Some((name, port)) => (&authority[..after_host + name.len()], port),
        None => (authority, ""),
    };
    match port.parse::<u16>() {
        _ if host.is_empty() => Err(AddressError::Host),
        _ if port.is_empty() => Err(AddressError::NoPort),
        Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(AddressError::Port),
    }
}

/// The node's server settings, without services.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
}

/// A compute client with this protocol's message limits.
pub fn compute_client(
    channel: tonic::transport::Channel,
) -> ExpertComputeClient<tonic::transport::Channel> {
    ExpertComputeClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// A compute service with this protocol's message limits. `largest_request` bounds the requests,
/// for each of which a stream may keep a buffer: see [`request_bytes`].
///
/// [`request_bytes`]: crate::wire::request_bytes
pub fn compute_server<S: ExpertCompute>(
    service: S,
    largest_request: usize,
) -> FirstMessageLimit<ExpertComputeServer<S>> {
    let service = ExpertComputeServer::new(service)
        .max_decoding_message_size(largest_request)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    FirstMessageLimit::new(service, MAX_HELLO_BYTES)
}

/// A client that requests offers of slices, with this protocol's message limits.
pub fn offer_client(
    channel: tonic::transport::Channel,
) -> SliceSourceClient<tonic::transport::Channel> {
    SliceSourceClient::new(channel)
        .max_decoding_message_size(MAX_SLICE_HEAD_BYTES + 1024)
        .max_encoding_message_size(MAX_SLICE_REQUEST_BYTES)
}

/// A client that fetches tensors, with this protocol's message limits.
pub fn fetch_client(
    channel: tonic::transport::Channel,
) -> SliceSourceClient<tonic::transport::Channel> {
    SliceSourceClient::new(channel)
        .max_decoding_message_size(MAX_SLICE_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_SLICE_REQUEST_BYTES)
}

/// A source of slices with this protocol's message limits.
pub fn slice_server<S: SliceSource>(service: S) -> SliceSourceServer<S> {
    SliceSourceServer::new(service)
        .max_decoding_message_size(MAX_SLICE_REQUEST_BYTES)
        .max_encoding_message_size(MAX_SLICE_HEAD_BYTES + 1024)
}

/// A client that measures, with this protocol's message limits.
pub fn probe_client(
    channel: tonic::transport::Channel,
) -> NodeProbeClient<tonic::transport::Channel> {
    NodeProbeClient::new(channel)
        .max_decoding_message_size(MAX_PROBE_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_PROBE_MESSAGE_BYTES)
}

/// A service that answers measurements, with this protocol's message limits.
pub fn probe_server<S: NodeProbe>(service: S) -> NodeProbeServer<S> {
    NodeProbeServer::new(service)
        .max_decoding_message_size(MAX_PROBE_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_PROBE_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for good in [
            "127.0.0.1:50051",
            "node-3.lan:1",
            "[::1]:65535",
            "http://node_3:80/",
            "http://[fe80::1]:9",
        ] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", AddressError::Host),
            (":1", AddressError::Host),
            ("http://", AddressError::Host),
            ("http://:7", AddressError::Host),
            ("host", AddressError::NoPort),
            ("host:", AddressError::NoPort),
            ("[::1]", AddressError::NoPort),
            ("host:0", AddressError::Port),
            ("host:99999", AddressError::Port),
            ("host:+80", AddressError::Port),
            ("host:80:81", AddressError::Port),
            ("::1", AddressError::Host),
            ("host:port", AddressError::Port),
            ("a b:1", AddressError::Form),
            ("a\nb:1", AddressError::Form),
            ("[::1:1", AddressError::Port),
            ("https://host:1", AddressError::Url),
            ("host:1/path", AddressError::Url),
            ("user@host:1", AddressError::Url),
        ] {
            assert_eq!(endpoint(bad).err(), Some(why), "{bad:?}");
        }
    }
}
