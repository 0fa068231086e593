//! Calls an expert node over gRPC, as a coordinator does: reads its description, sends one layer's
//! work for two tokens, and prints a checksum of the rows that come back.
//!
//!     cargo run --release -p ds4-examples --bin call_expert_node [HOST:PORT]
//!
//! Without an address it starts a node for the reference model inside this process. A node answers
//! a call the same way to the bit on every CPU, so the checksum can be compared between machines.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, Route};
use ds4_common::kernels::Kernels;
use ds4_common::quant::{BlockQ8K, quantize_q8_k};
use ds4_common::tiles::TileChoice;
use ds4_expert_node::load::{ModelConfig, WeightSource};
use ds4_expert_node::node::NodeSettings;
use ds4_expert_node::{EmbeddedNode, NodeConfig};
use ds4_proto::channel;
use ds4_proto::pb;
use ds4_proto::pb::compute_reply::Kind as Reply;
use ds4_proto::pb::compute_request::Kind as Request;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::wire::{
    EncodedBatch, NodeInfo, ReceivedRows, Versions, decode_node, hello, open_reply, request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::main]
async fn main() -> Result<()> {
    // Held until the end: a node stops when it is dropped.
    let mut embedded = None;
    let address = match std::env::args().nth(1) {
        Some(address) => address,
        None => embedded.insert(start_node().await?).address(),
    };
    // Plain text is for loopback only; `ds4_proto::security` opens connections with TLS.
    let connection = channel::endpoint(&address)?.connect().await?;

    // `describe` needs no handshake. What arrives is checked before it is used.
    let mut control = NodeControlClient::new(connection.clone());
    let description = control.describe(Versions::request()).await?.into_inner();
    let node = decode_node(&description)??;
    let (layers, experts) = (node.shape.layers, node.shape.grid.experts);
    println!("{}: {layers} layers of {experts} experts", node.model);

    // One stream carries all calls, after a hello by which a node of another model refuses it.
    let (to_node, requests) = mpsc::channel(4);
    let greeting = hello(&node.fingerprint, &node.shape, node.versions.newest);
    let work = work(&node)?;
    let checksum = work.checksum;
    for kind in [Request::Hello(greeting), Request::Work(work)] {
        to_node.send(request(kind)).await?;
    }
    let mut client = channel::compute_client(connection);
    let stream = client.compute(ReceiverStream::new(requests)).await?;
    let mut replies = stream.into_inner();
    while let Some(reply) = replies.message().await? {
        match open_reply(reply)? {
            Some(Reply::Welcome(welcome)) => {
                println!("welcome: {} calls in flight at most", welcome.max_in_flight);
            }
            Some(Reply::Rows(rows)) => {
                // Their checksum is bound to the work, so these are its rows, as computed.
                let rows = ReceivedRows::new(rows, checksum).check()?;
                let count = rows.len() / node.shape.row_bytes();
                println!("rows: {count} of {} floats", node.shape.hidden);
                println!("checksum: {}", &blake3::hash(&rows).to_hex()[..16]);
                return Ok(());
            }
            Some(Reply::Failure(failure)) => bail!("refused: {}", failure.message),
            None => bail!("the node sent an empty reply"),
        }
    }
    bail!("the node ended the stream without an answer")
}

/// A node that holds every tile of the reference model and listens on a free port of loopback.
async fn start_node() -> Result<EmbeddedNode> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
    let model = format!("{folder}/tiny-b/tiny-b.gguf");
    let config = NodeConfig {
        model: ModelConfig {
            source: WeightSource::Model {
                paths: vec![model.into()],
                tiles: TileChoice::All,
            },
            kernels: Kernels::detect(),
            populate: false,
            verify: ds4_expert_node::load::VerifySettings::EMBEDDED,
        },
        settings: NodeSettings::default(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    Ok(EmbeddedNode::start(&config, listener).await?)
}

/// The routed experts of layer 0 for two tokens. In a coordinator the activations come out of the
/// layer's norm and the routes out of its router; here they are made up.
fn work(node: &NodeInfo) -> Result<pb::Work> {
    let (shape, tokens) = (node.shape, 2);
    // Activations are quantised once, to the blocks that the kernels multiply with K-quants.
    let values: Vec<f32> = (0..tokens * shape.hidden)
        .map(|i| (i % 13) as f32 - 6.0)
        .collect();
    let mut blocks = vec![BlockQ8K::ZERO; values.len() / 256];
    quantize_q8_k(&values, &mut blocks);
    let route = |slot: usize| Route {
        expert: slot as u32 % shape.grid.experts,
        weight: 0.25,
    };
    let fields = BatchFields {
        layer: 0,
        tokens,
        routes: (0..tokens * shape.experts_used).map(route).collect(),
        input: ExpertInput::Q8K(blocks),
        round: true,
    };
    let batch = ExpertBatch::new(shape, fields)?;
    // The tiles to compute: all that this node holds of the layer.
    let held = node.held.layer(0);
    let tiles = held.context("the node holds nothing of layer 0")?;
    Ok(EncodedBatch::new(&batch, 0..tokens).work(1, tiles, Duration::from_secs(10)))
}
