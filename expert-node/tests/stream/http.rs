//! What HTTP/2 allows is bounded too: frames by hand, of a peer that keeps no bound.

use ds4_proto::limits::MAX_STREAMS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// The head of a call of `Compute`: fields of the static table, and literals.
fn call_head() -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.push(text.len() as u8);
        out.extend(text.bytes());
    }
    // POST and http; then :path, :authority and content-type by their places in the table.
    let mut out = vec![0x83, 0x86, 0x04];
    text(&mut out, "/ds4.v1.ExpertCompute/Compute");
    out.push(0x01);
    text(&mut out, "node");
    out.extend([0x0f, 0x10]);
    text(&mut out, "application/grpc");
    out.push(0x00);
    text(&mut out, "te");
    text(&mut out, "trailers");
    out
}

/// A connection behind its preface.
async fn raw(node: &Node) -> TcpStream {
    let mut socket = TcpStream::connect(&node.address).await.expect("connection");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    socket.write_all(preface).await.expect("sent");
    let settings = frame(SETTINGS, 0, 0, &[]);
    socket.write_all(&settings).await.expect("sent");
    socket
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// The node's next frame; `None` at the connection's end.
async fn next(socket: &mut TcpStream) -> Option<Frame> {
    let read = async {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        socket.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(stream);
        Some(Frame {
            kind,
            flags,
            stream,
            payload,
        })
    };
    tokio::time::timeout(WAIT, read)
        .await
        .expect("a frame in time")
}

async fn assert_serves(bystander: &mut Talk, id: u64) {
    bystander.send(Kind::Work(work(id, 4.0))).await;
    assert_eq!(floats(&bystander.rows().await), [4.0; 4]);
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused() {
    let node = node().await;
    let mut bystander = Talk::open(&node.address).await;
    let mut socket = raw(&node).await;
    let beyond = 8;
    let ids: Vec<u32> = (0..MAX_STREAMS + beyond).map(|i| 2 * i + 1).collect();
    for id in &ids {
        let head = frame(HEADERS, END_HEADERS, *id, &call_head());
        socket.write_all(&head).await.expect("sent");
    }
    let mut refused = Vec::new();
    while refused.len() < beyond as usize {
        let frame = next(&mut socket).await.expect("the connection goes on");
        if frame.kind == RST_STREAM {
            assert_eq!(frame.payload, REFUSED_STREAM.to_be_bytes());
            refused.push(frame.stream);
        }
    }
    assert_eq!(refused, ids[MAX_STREAMS as usize..]);
    assert_serves(&mut bystander, 1).await;
}

#[tokio::test]
async fn large_headers_end_one_request_only() {
    let node = node().await;
    let mut bystander = Talk::open(&node.address).await;
    let mut client = NodeControlClient::new(connect(&node.address).await);
    let mut request = tonic::Request::new(pb::DescribeRequest::default());
    let large = "x".repeat(20 << 10).parse().expect("a value");
    request.metadata_mut().insert("large", large);
    let answer = tokio::time::timeout(WAIT, client.describe(request)).await;
    answer.expect("in time").expect_err("20 KiB of headers");
    // The same connection.
    let again = client.describe(pb::DescribeRequest::default()).await;
    assert_eq!(again.expect("described").get_ref().model, "echo");
    assert_serves(&mut bystander, 1).await;
}

#[tokio::test]
async fn long_questions_are_refused() {
    let node = node().await;
    let mut client = HealthClient::new(connect(&node.address).await);
    let request = HealthCheckRequest {
        service: "x".repeat(2000),
    };
    let status = client.check(request).await.expect_err("2 KB of a name");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(health(&node.address, "").await, ServingStatus::Serving);
}

#[tokio::test]
async fn headers_without_an_end_close_one_connection_only() {
    let node = node().await;
    let mut bystander = Talk::open(&node.address).await;
    let mut socket = raw(&node).await;
    let begun = frame(HEADERS, 0, 1, &call_head());
    socket.write_all(&begun).await.expect("sent");
    let (mut reader, mut writer) = socket.into_split();
    // A field that is sent again and again, none of them the last.
    let more = frame(CONTINUATION, 0, 1, &[0x00, 1, b'x', 1, b'y'].repeat(200));
    let flood = async { while writer.write_all(&more).await.is_ok() {} };
    let end = async {
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    };
    let ended = async {
        tokio::select! {
            () = flood => {}
            () = end => {}
        }
    };
    let ended = tokio::time::timeout(WAIT, ended).await;
    ended.expect("the node closes the connection");
    assert_serves(&mut bystander, 1).await;
}

#[tokio::test]
async fn a_frame_that_claims_too_much_closes_one_connection_only() {
    let node = node().await;
    let mut bystander = Talk::open(&node.address).await;
    let mut socket = raw(&node).await;
    let head = frame(HEADERS, END_HEADERS, 1, &call_head());
    socket.write_all(&head).await.expect("sent");
    let claim = [0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1];
    socket.write_all(&claim).await.expect("sent");
    while next(&mut socket).await.is_some() {}
    assert_serves(&mut bystander, 1).await;
}

/// A length, and another number of bytes: less with an end, less without one, less than 4 GiB.
#[tokio::test]
async fn messages_that_lie_about_their_length_end_one_stream_only() {
    let node = node().await;
    let mut bystander = Talk::open(&node.address).await;
    for (id, (length, flags)) in [(100, END_STREAM), (100, 0), (u32::MAX, 0)]
        .into_iter()
        .enumerate()
    {
        let mut socket = raw(&node).await;
        let head = frame(HEADERS, END_HEADERS, 1, &call_head());
        socket.write_all(&head).await.expect("sent");
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.extend([7; 10]);
        let data = frame(DATA, flags, 1, &message);
        socket.write_all(&data).await.expect("sent");
        let ends = |frame: &Frame| match frame.kind {
            HEADERS => frame.flags & END_STREAM != 0,
            RST_STREAM => true,
            _ => false,
        };
        loop {
            let frame = next(&mut socket).await.expect("the connection goes on");
            if frame.stream == 1 && ends(&frame) {
                break;
            }
        }
        assert_serves(&mut bystander, id as u64 + 1).await;
    }
}
