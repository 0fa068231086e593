//! One tensor from the coordinator.

use bytes::Bytes;
use ds4_common::slice::{ByteProgress, SliceError, SliceWriter};
use ds4_proto::channel;
use ds4_proto::limits::{SLICE_CHUNK_BYTES, SLICE_STALL};
use ds4_proto::pb::{self, fetch_reply};
use ds4_proto::wire::decode_hash;

use super::error::{PullError, Setback, setback};
use super::{Pull, blocking};

impl Pull<'_> {
    /// Appends the rest of a tensor and ends it. Returns the writer with what was appended, also
    /// after a setback; an error of the writer ends the pull.
    pub(super) async fn fetch(
        &self,
        mut writer: SliceWriter,
        tensor: usize,
        offset: u64,
        progress: &mut ByteProgress,
    ) -> Result<(SliceWriter, Result<(), Setback>), PullError> {
        let request = pb::FetchRequest {
            node: self.config.node.clone(),
            slice: writer.head().identity().as_bytes().to_vec().into(),
            tensor: tensor as u32,
            offset,
        };
        let mut client = channel::fetch_client(self.channel.clone());
        let opened = tokio::time::timeout(SLICE_STALL, client.fetch(request)).await;
        let mut stream = match opened {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => return Ok((writer, Err(setback(&status)))),
            Err(_) => return Ok((writer, Err(Setback::passing("timed out waiting for data")))),
        };
        loop {
            let reply = match tokio::time::timeout(SLICE_STALL, stream.message()).await {
                Ok(Ok(Some(reply))) => reply.kind,
                Ok(Ok(None)) => {
                    return Ok((writer, Err(Setback::passing("the stream ended early"))));
                }
                Ok(Err(status)) => return Ok((writer, Err(setback(&status)))),
                Err(_) => {
                    return Ok((
                        writer,
                        Err(Setback::passing("timed out waiting for more data")),
                    ));
                }
            };
            match reply {
                Some(fetch_reply::Kind::Data(data)) => {
                    let room = writer.head().tensors()[tensor].bytes - writer.tensor_bytes();
                    if let Err(reason) = check(&data, room) {
                        return Ok((writer, Err(Setback::Wrong(reason))));
                    }
                    writer = blocking(move || {
                        writer.append(&data)?;
                        Ok(writer)
                    })
                    .await?;
                    if let Some(line) = progress.reach(writer.done_bytes()) {
                        tracing::info!("pulling the slice: {line}");
                    }
                }
                Some(fetch_reply::Kind::End(end)) => return finish(writer, &end).await,
                None => {
                    let nothing = "a message without data".to_owned();
                    return Ok((writer, Err(Setback::Wrong(nothing))));
                }
            }
        }
    }
}

/// Whether a chunk may be written.
fn check(data: &Bytes, room: u64) -> Result<(), String> {
    match data.len() {
        1..=SLICE_CHUNK_BYTES if data.len() as u64 <= room => Ok(()),
        found => Err(format!("a part of {found} bytes, where {room} are missing")),
    }
}

/// Ends the tensor if it is whole and right.
async fn finish(
    mut writer: SliceWriter,
    end: &pb::FetchEnd,
) -> Result<(SliceWriter, Result<(), Setback>), PullError> {
    let hash = match decode_hash(&end.hash) {
        Ok(hash) => hash,
        Err(error) => return Ok((writer, Err(Setback::Wrong(error.to_string())))),
    };
    blocking(move || {
        let ended = match writer.end_tensor(Some(hash)) {
            Ok(()) => Ok(()),
            Err(error @ (SliceError::TensorHash { .. } | SliceError::Tensor { .. })) => {
                Err(Setback::Wrong(error.to_string()))
            }
            Err(error) => return Err(PullError::from(error)),
        };
        Ok((writer, ended))
    })
    .await
}
