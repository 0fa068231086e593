//! Has a node compute its known calls before it counts as up.

use std::sync::Arc;
use std::time::Duration;

use ds4_proto::error_text::status_text;
use ds4_proto::limits::MAX_TEXT_BYTES;
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::wire::{EncodedBatch, ReceivedRows, RowsFault, clip, open_reply, request};

use super::{LinkFault, LinkTarget, OpenStream};
use crate::cluster::known_calls::{KnownAnswers, KnownCall, digest, known_calls};
use crate::cluster::membership::ClusterError;
use crate::cluster::node_metrics::{NumberFault, fault};

/// Time for all known calls of a node, whose weights may have to be read from a disk.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// Ids of known calls, above those of a connection's other calls.
const FIRST_ID: u64 = 1 << 63;

/// Sends the known calls one after the other and compares the answers.
pub(super) async fn check(
    target: &LinkTarget,
    answers: &Arc<KnownAnswers>,
    stream: &mut OpenStream,
) -> Result<(), LinkFault> {
    let all = check_all(target, answers, stream);
    tokio::time::timeout(KNOWN_TIMEOUT, all)
        .await
        .unwrap_or_else(|_| {
            let seconds = KNOWN_TIMEOUT.as_secs();
            let text = format!("it did not compute its known calls within {seconds} s");
            Err(LinkFault::Lost(text))
        })
}

async fn check_all(
    target: &LinkTarget,
    answers: &Arc<KnownAnswers>,
    stream: &mut OpenStream,
) -> Result<(), LinkFault> {
    for (id, call) in (FIRST_ID..).zip(known_calls(&target.expected.shape, &stream.held)) {
        let wrong = match ask(stream, id, &call).await? {
            Ok(rows) => compare(target, answers, call.clone(), rows).await?,
            Err(bits) => Some((bits, "finite numbers".to_owned())),
        };
        let Some((found, expected)) = wrong else {
            continue;
        };
        fault(&target.name, NumberFault::KnownCall);
        return Err(LinkFault::mismatch(ClusterError::WrongNumbers {
            node: target.name.to_string(),
            layer: call.batch.layer,
            tile: call.tile,
            found,
            expected,
        }));
    }
    Ok(())
}

/// The digest of rows and what it should have been, if it is another.
async fn compare(
    target: &LinkTarget,
    answers: &Arc<KnownAnswers>,
    call: KnownCall,
    rows: bytes::Bytes,
) -> Result<Option<(u64, String)>, LinkFault> {
    let (answers, node) = (Arc::clone(answers), Arc::clone(&target.name));
    // This process may have to compute the answer.
    let compared = tokio::task::spawn_blocking(move || {
        let known = answers.compare(&call, &node, &rows).err()?;
        let expected = format!("{:016x} of {}", known.digest, known.by);
        Some((digest(&rows), expected))
    });
    // An error means that the runtime is shutting down.
    compared
        .await
        .map_err(|error| LinkFault::Lost(error.to_string()))
}

/// The rows of one known call; the inner error are rows that are not finite, as a checksum.
async fn ask(
    stream: &mut OpenStream,
    id: u64,
    call: &KnownCall,
) -> Result<Result<bytes::Bytes, u64>, LinkFault> {
    let lost = |text: &str| LinkFault::Lost(text.to_owned());
    let tiles = call
        .tiles()
        .ok_or_else(|| lost("a known call has no tiles"))?;
    let work = EncodedBatch::new(&call.batch, 0..1).work(id, &tiles, KNOWN_TIMEOUT);
    let checksum = work.checksum;
    let sent = stream
        .outbound
        .send(request(compute_request::Kind::Work(work)));
    sent.await.map_err(|_| lost("the stream ended"))?;
    let reply = stream.inbound.message().await;
    let reply = reply.map_err(|status| LinkFault::Lost(status_text(&status)))?;
    let reply = open_reply(reply.unwrap_or_default());
    match reply.map_err(|error| LinkFault::Lost(error.to_string()))? {
        Some(compute_reply::Kind::Rows(rows)) if rows.id == id => {
            let expected = call.batch.shape().row_bytes();
            if rows.rows.len() != expected {
                let text = format!("{} bytes of rows instead of {expected}", rows.rows.len());
                return Err(LinkFault::Lost(text));
            }
            match ReceivedRows::new(rows, checksum).check() {
                Ok(rows) => Ok(Ok(rows)),
                Err(RowsFault::NotFinite(bits)) => Ok(Err(bits)),
                Err(error @ RowsFault::Checksum) => Err(LinkFault::Lost(error.to_string())),
            }
        }
        Some(compute_reply::Kind::Failure(failure)) => Err(match failure.kind() {
            pb::FailureKind::Draining => LinkFault::Draining,
            _ => LinkFault::Lost(format!(
                "it did not compute a known call: {}",
                clip(&failure.message, MAX_TEXT_BYTES)
            )),
        }),
        _ => Err(lost("it answered a known call with something else")),
    }
}
