//! Transport settings of both sides: large windows for bulk messages, no delay for small ones,
//! pings so that a dead peer is noticed.

use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Error, Server};

pub use crate::first_message::FirstMessageLimit;
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW, FRAME_BYTES, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT,
    MAX_HEADER_BYTES, MAX_HELLO_BYTES, MAX_MESSAGE_BYTES, MAX_SLICE_HEAD_BYTES,
    MAX_SLICE_MESSAGE_BYTES, MAX_SLICE_REQUEST_BYTES, MAX_STREAMS, STREAM_WINDOW,
};
use crate::pb::expert_compute_client::ExpertComputeClient;
use crate::pb::expert_compute_server::{ExpertCompute, ExpertComputeServer};
use crate::pb::slice_source_client::SliceSourceClient;
use crate::pb::slice_source_server::{SliceSource, SliceSourceServer};

/// The coordinator's way to the node at `address`, a `host:port` or an `http://` URL.
///
/// # Errors
/// The address is no authority that a URL could hold.
pub fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let uri = match address.contains("://") {
        true => address.to_owned(),
        false => format!("http://{address}"),
    };
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
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

/// Connections accepted from `listener`. The server's own TCP settings do not reach a listener
/// that was bound outside of it, so they are made here.
#[must_use]
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// A compute client with this protocol's message limits.
pub fn compute_client(
    channel: tonic::transport::Channel,
) -> ExpertComputeClient<tonic::transport::Channel> {
    ExpertComputeClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// A compute service with this protocol's message limits.
pub fn compute_server<S: ExpertCompute>(service: S) -> FirstMessageLimit<ExpertComputeServer<S>> {
    let service = ExpertComputeServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    FirstMessageLimit::new(service, MAX_HELLO_BYTES)
}

/// A client that asks for offers, with this protocol's message limits.
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
