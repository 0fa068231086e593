//! One call to one node over a connection of its own, past the dispatcher, for diagnosis.

use std::time::Duration;

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Holdings, TileSet};
use ds4_proto::channel;
use ds4_proto::error_text::{error_text, status_text};
use ds4_proto::limits::MAX_TEXT_BYTES;
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::security::Dial;
use ds4_proto::wire::{
    EncodedBatch, ReceivedRows, clip, floats_from_bytes, hello, open_reply, request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::describe::describe;
use crate::cluster::membership::Expectation;

/// Why a node did not compute a call.
#[derive(Debug, thiserror::Error)]
#[error("expert node {node}: {reason}")]
pub struct OneCallError {
    /// Name of the node.
    pub node: String,
    /// What happened.
    pub reason: String,
}

/// What a node computed.
#[derive(Clone, Debug)]
pub struct TileRows {
    /// The tiles.
    pub tiles: TileSet,
    /// The rows of their subtrees, in order, `(rows x hidden)`.
    pub rows: Vec<f32>,
}

/// Lets the node behind `dial` compute the tiles that `choose` picks among those that it holds;
/// `None` if it picks none. Waits for at most `deadline`.
///
/// # Errors
/// The node cannot be reached, serves another model, refuses the call, or answers too late or with
/// another number of rows.
pub async fn call_once(
    node: &str,
    dial: Dial,
    expected: &Expectation,
    batch: &ExpertBatch,
    choose: impl FnOnce(&Holdings) -> Option<TileSet>,
    deadline: Duration,
) -> Result<Option<TileRows>, OneCallError> {
    let talk = talk(node, dial, expected, batch, choose, deadline);
    let outcome = tokio::time::timeout(deadline, talk).await;
    let late = || format!("it did not answer within {} s", deadline.as_secs_f64());
    let outcome = outcome.unwrap_or_else(|_| Err(late()));
    outcome.map_err(|reason| OneCallError {
        node: node.to_owned(),
        reason,
    })
}

async fn talk(
    node: &str,
    dial: Dial,
    expected: &Expectation,
    batch: &ExpertBatch,
    choose: impl FnOnce(&Holdings) -> Option<TileSet>,
    deadline: Duration,
) -> Result<Option<TileRows>, String> {
    let channel = dial.connect().await.map_err(|e| error_text(&e))?;
    let info = describe(node, channel.clone(), expected).await;
    let info = info.map_err(|fault| fault.to_string())?;
    let Some(tiles) = choose(&info.held) else {
        return Ok(None);
    };
    let (outbound, requests) = mpsc::channel(2);
    let greeting = hello(&expected.fingerprint, &expected.shape, info.versions.newest);
    let work = EncodedBatch::new(batch, 0..batch.tokens).work(1, &tiles, deadline);
    let checksum = work.checksum;
    let hello = compute_request::Kind::Hello(greeting);
    for kind in [hello, compute_request::Kind::Work(work)] {
        // The channel is new and has room for both.
        let _ = outbound.try_send(request(kind));
    }
    let mut client = channel::compute_client(channel);
    let reply = client.compute(ReceiverStream::new(requests)).await;
    let mut inbound = reply.map_err(|status| status_text(&status))?.into_inner();
    let expected_rows = batch.reply_rows(0..batch.tokens, tiles.rects());
    let rows = rows(
        &mut inbound,
        checksum,
        expected_rows * expected.shape.hidden,
    )
    .await?;
    Ok(Some(TileRows { tiles, rows }))
}

/// The floats of the reply that follows the welcome.
async fn rows(
    inbound: &mut Streaming<pb::ComputeReply>,
    checksum: u64,
    floats: usize,
) -> Result<Vec<f32>, String> {
    loop {
        let message = inbound.message().await.map_err(|s| status_text(&s))?;
        let message = message.ok_or("it ended the stream without an answer")?;
        match open_reply(message).map_err(|error| error.to_string())? {
            Some(compute_reply::Kind::Welcome(_)) => {}
            Some(compute_reply::Kind::Rows(reply)) => {
                if reply.rows.len() != floats * size_of::<f32>() {
                    let (found, expected) = (reply.rows.len(), floats * size_of::<f32>());
                    return Err(format!("{found} bytes of rows instead of {expected}"));
                }
                let bytes = ReceivedRows::new(reply, checksum).check();
                let bytes = bytes.map_err(|fault| fault.to_string())?;
                let mut rows = vec![0.0; floats];
                floats_from_bytes(&bytes, &mut rows);
                return Ok(rows);
            }
            Some(compute_reply::Kind::Failure(failure)) => {
                return Err(clip(&failure.message, MAX_TEXT_BYTES));
            }
            None => return Err("it sent a message of an unknown kind".to_owned()),
        }
    }
}
