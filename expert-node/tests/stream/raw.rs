//! Bytes that no coordinator of this software would send.

use bytes::{Buf, BufMut};
use ds4_proto::limits::MAX_MESSAGE_BYTES;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Request;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::*;

/// Sends bytes as messages, whatever they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, raw: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let left = raw.remaining();
        Ok(Some(raw.copy_to_bytes(left)))
    }
}

/// The status with which the node ends a stream of these messages.
async fn refusal_of(address: &str, messages: Vec<Bytes>) -> Status {
    let mut client = tonic::client::Grpc::new(connect(address).await);
    client.ready().await.expect("ready");
    let path =
        tonic::codegen::http::uri::PathAndQuery::from_static("/ds4.v1.ExpertCompute/Compute");
    let request = Request::new(tokio_stream::iter(messages));
    let answer = client.streaming(request, path, Raw).await;
    let mut replies = match answer {
        Ok(replies) => replies.into_inner(),
        Err(status) => return status,
    };
    loop {
        match tokio::time::timeout(WAIT, replies.message())
            .await
            .expect("an end")
        {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok("ended"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn garbage_and_oversize_end_one_stream_only() {
    let node = node().await;
    let mut bystander = Talk::open(&node.address).await;
    let garbage = Bytes::from(vec![0xff; 300]);
    // More than this model's calls can take, although others' could.
    assert!(wire::request_bytes(&SHAPE) < MAX_MESSAGE_BYTES / 10);
    let oversize = Bytes::from(vec![0; wire::request_bytes(&SHAPE) + 1]);
    let status = refusal_of(&node.address, vec![garbage]).await;
    assert_ne!(status.code(), Code::Ok, "{status:?}");
    let greeting = wire::request(Kind::Hello(hello(&FINGERPRINT, &SHAPE, PROTOCOL_VERSION)));
    let greeting = Bytes::from(prost::Message::encode_to_vec(&greeting));
    let status = refusal_of(&node.address, vec![greeting, oversize]).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let long_hello = wire::request(Kind::Work(pb::Work {
        input: vec![0; 2000].into(),
        ..work(1, 1.0)
    }));
    let long_hello = Bytes::from(prost::Message::encode_to_vec(&long_hello));
    let status = refusal_of(&node.address, vec![long_hello]).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("1024"), "{status:?}");
    let status = refusal_of(&node.address, vec![Bytes::new()]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    bystander.send(Kind::Work(work(1, 4.0))).await;
    assert_eq!(floats(&bystander.rows().await), [4.0; 4]);
}

#[tokio::test]
async fn bytes_that_are_no_http_close_one_connection_only() {
    let node = node().await;
    let mut socket = TcpStream::connect(&node.address).await.expect("connection");
    socket.write_all(&[0x16; 4096]).await.expect("sent");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(WAIT, socket.read_to_end(&mut answer)).await;
    // Closed or reset, but not waited for.
    let _ = read.expect("the node closes it");
    let mut talk = Talk::open(&node.address).await;
    talk.send(Kind::Work(work(1, 4.0))).await;
    assert_eq!(floats(&talk.rows().await), [4.0; 4]);
}
