//! Every bound of the wire in one place. Both sides use the same numbers.

use std::time::Duration;

/// Newest protocol version. Peers speak the older one of both sides' newest.
///
/// - 2: a node holds the same tiles in every layer.
/// - 3: a node may hold different tiles in each layer.
/// - 4: every message has a checksum.
pub const PROTOCOL_VERSION: u32 = 4;

/// Oldest protocol version that is understood: numbers without a checksum are not computed with.
pub const OLDEST_PROTOCOL_VERSION: u32 = 4;

/// Bytes of a model fingerprint.
pub const FINGERPRINT_BYTES: usize = 32;

/// Bytes of the random number by which a node's process is known.
pub const INSTANCE_ID_BYTES: usize = 16;

/// Tokens of one call; a larger batch travels as several calls.
pub const MAX_TOKENS: usize = 512;

/// Experts that a model's router may choose for a token.
pub use ds4_common::model::MAX_EXPERTS_USED;

/// Experts of a layer, and blocks of an expert, that a peer may claim.
pub const MAX_AXIS: u32 = 1 << 16;

/// Layers that a peer may claim.
pub const MAX_LAYERS: u32 = 1 << 12;

/// Width of a layer's input that a peer may claim.
pub const MAX_HIDDEN: u32 = 1 << 20;

/// Rectangles in one call, and in one layer of a description.
pub use ds4_common::tiles::MAX_RECTS;

/// Rectangles in all layers of a description.
pub const MAX_HELD_RECTS: usize = 4 * MAX_RECTS;

/// Bytes of one rectangle: four u32.
pub const RECT_BYTES: usize = 16;

/// Bytes of activations in one call, and of rows in one reply.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;

/// Bytes of one encoded message: a full payload, the routes of all its tokens, the tiles, and the
/// rest.
pub const MAX_MESSAGE_BYTES: usize =
    MAX_PAYLOAD_BYTES + MAX_TOKENS * MAX_EXPERTS_USED * ROUTE_BYTES + MAX_RECTS * RECT_BYTES + 1024;

/// Bytes of the first message of a stream, and of a request for a node's description or health: a
/// peer that has not said hello may not fill more memory.
pub const MAX_HELLO_BYTES: usize = 1024;

/// Bytes of a node's description: its tiles, the layers that they are in, and the rest.
pub const MAX_DESCRIPTION_BYTES: usize =
    MAX_HELD_RECTS * RECT_BYTES + MAX_LAYERS as usize * 24 + (16 << 10);

/// Bytes of one route: u32 expert, f32 weight.
pub const ROUTE_BYTES: usize = 8;

/// Longest deadline of a call.
pub const MAX_DEADLINE: Duration = Duration::from_secs(600);

/// Bytes of a peer's version, model or kernel name.
pub const MAX_NAME_BYTES: usize = 128;

/// Bytes of a peer's error message that are shown.
pub const MAX_TEXT_BYTES: usize = 512;

/// Calls that a node may allow in flight on one stream.
pub const MAX_IN_FLIGHT: u32 = 1024;

/// Connections to one node. A coordinator has two at a time: that of its stream, and one that
/// requests the node's description.
pub const MAX_CONNECTIONS: usize = 128;

/// Further connections to one node whose handshake is not over. The newest displaces the oldest, so
/// that peers which never finish cannot keep out one that does.
pub const MAX_HANDSHAKES: usize = 128;

/// HTTP/2 streams on one connection: the compute stream, health and description.
pub const MAX_STREAMS: u32 = 32;

/// Bytes of a request's headers.
pub const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Flow-control window of a stream. The default of 64 KiB stalls every bulk message.
pub const STREAM_WINDOW: u32 = 8 << 20;

/// Flow-control window of a connection.
pub const CONNECTION_WINDOW: u32 = 16 << 20;

/// Largest HTTP/2 frame.
pub const FRAME_BYTES: u32 = 1 << 20;

/// Time to open a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Time from a connection's start to the end of its TLS handshake, from a stream's start to its
/// hello or welcome, and of a description.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which a node pings a coordinator.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Time that a coordinator has to answer a ping before the connection counts as dead.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence after which a coordinator pings a node. Without pings a healed partition is never
/// noticed: the connection would wait for the system's retransmissions, which come ever less often.
pub const NODE_PING_INTERVAL: Duration = Duration::from_secs(1);

/// Time that a node has to answer a ping before the connection counts as dead and is made again.
pub const NODE_PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of the head of a slice that a node accepts.
pub const MAX_SLICE_HEAD_BYTES: usize = 16 << 20;

/// Bytes of a tensor in one message.
pub const SLICE_CHUNK_BYTES: usize = 1 << 20;

/// Bytes of a request for a slice or a part of one.
pub const MAX_SLICE_REQUEST_BYTES: usize = 1024;

/// Bytes of a message with a part of a slice.
pub const MAX_SLICE_MESSAGE_BYTES: usize = SLICE_CHUNK_BYTES + 64;

/// Time between two parts of a tensor after which the other side counts as gone.
pub const SLICE_STALL: Duration = Duration::from_secs(60);

/// Computation that one measurement of a node may take.
pub const MAX_PROBE_BUDGET: Duration = Duration::from_millis(500);

/// Bytes in one message of a measurement of a link.
pub const PROBE_CHUNK_BYTES: usize = 256 << 10;

/// Bytes of one call that measures a link.
pub const MAX_PROBE_BYTES: u64 = 64 << 20;

/// Bytes of an encoded message of a measurement.
pub const MAX_PROBE_MESSAGE_BYTES: usize = PROBE_CHUNK_BYTES + 64;

/// Time of one measurement, waits included, after which a node aborts it.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Cores that a node may claim.
pub const MAX_CORES: u32 = 1 << 16;
