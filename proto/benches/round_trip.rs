//! The bytes of an expert call there and back on loopback, in plain text and over mutual TLS:
//! `cargo bench -p ds4-proto --bench round_trip`.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/tls/files.rs"]
mod files;

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ds4_proto::channel;
use ds4_proto::limits::MAX_MESSAGE_BYTES;
use ds4_proto::pb;
use ds4_proto::pb::compute_reply::Kind as Reply;
use ds4_proto::pb::compute_request::Kind;
use ds4_proto::pb::expert_compute_server::ExpertCompute;
use ds4_proto::security::Security;
use ds4_proto::tls::{Peers, Role};
use ds4_proto::wire;
use futures::stream::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use files::{Maker, Member, Place};

/// Bytes of a token's activations and routes, and of a row: a hidden width of 4096, six experts.
const TOKEN_BYTES: usize = 16 * 292 + 6 * 8;
const ROW_BYTES: usize = 4 * 4096;

const WARM_UP: usize = 50;

/// Answers every call at once, with as many rows as it says tokens.
struct Mirror;

#[tonic::async_trait]
impl ExpertCompute for Mirror {
    type ComputeStream = Pin<Box<dyn Stream<Item = Result<pb::ComputeReply, Status>> + Send>>;

    async fn compute(
        &self,
        request: Request<Streaming<pb::ComputeRequest>>,
    ) -> Result<Response<Self::ComputeStream>, Status> {
        let rows = Bytes::from(vec![1; ROW_BYTES * 512]);
        let answered = request.into_inner().map(move |message| {
            let kind = match message?.kind {
                Some(Kind::Work(work)) => Reply::Rows(pb::Rows {
                    id: work.id,
                    rows: rows.slice(..ROW_BYTES * work.tokens as usize),
                    ..pb::Rows::default()
                }),
                _ => Reply::Welcome(pb::Welcome::default()),
            };
            Ok(wire::reply(kind))
        });
        Ok(Response::new(Box::pin(answered)))
    }
}

/// A stream to a mirror, behind its welcome.
struct Talk {
    out: mpsc::Sender<pb::ComputeRequest>,
    replies: Streaming<pb::ComputeReply>,
}

impl Talk {
    async fn open(node: &Security, coordinator: &Security) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let service = channel::compute_server(Mirror, MAX_MESSAGE_BYTES);
        let server = channel::server().add_service(service);
        let incoming = node.incoming(listener, Peers::Coordinators);
        tokio::spawn(server.serve_with_incoming(incoming));
        let (out, requests) = mpsc::channel(4);
        out.send(message(Kind::Hello(pb::Hello::default()))).await?;
        let channel = coordinator.endpoint(&address)?.connect().await?;
        let mut client = channel::compute_client(channel);
        let replies = client.compute(ReceiverStream::new(requests)).await?;
        let mut talk = Talk {
            out,
            replies: replies.into_inner(),
        };
        talk.replies.message().await?;
        Ok(talk)
    }

    /// Round trips of a call of so many tokens, one after the other.
    async fn measure(&mut self, tokens: usize, rounds: usize) -> anyhow::Result<Vec<Duration>> {
        let input = Bytes::from(vec![1; TOKEN_BYTES * tokens]);
        let mut times = Vec::with_capacity(rounds);
        for round in 0..rounds + WARM_UP {
            let work = pb::Work {
                id: round as u64,
                tokens: tokens as u32,
                input: input.clone(),
                ..pb::Work::default()
            };
            let start = Instant::now();
            self.out.send(message(Kind::Work(work))).await?;
            let reply = self.replies.message().await?;
            let took = start.elapsed();
            anyhow::ensure!(reply.is_some(), "the mirror left");
            if round >= WARM_UP {
                times.push(took);
            }
        }
        times.sort_unstable();
        Ok(times)
    }
}

fn message(kind: Kind) -> pb::ComputeRequest {
    wire::request(kind)
}

/// Connections, TLS handshakes included, one after the other.
async fn measure_connects(security: &Security, address: &str) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        security.endpoint(address)?.connect().await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let place = Place::new();
    let maker = Maker::new(&place, "ca");
    let node = maker.member(&place, &Member::node("node"));
    let coordinator = maker.member(&place, &Member::coordinator("coordinator"));
    let node = Security::Tls(node.load(Role::Node)?);
    let coordinator = Security::Tls(coordinator.load(Role::Coordinator)?);
    let plain = Security::Loopback;
    println!("{:<10} {:>7} {:>12} {:>12}", "", "tokens", "median", "99 %");
    for (name, node, coordinator) in [
        ("plain text", &plain, &plain),
        ("TLS", &node, &coordinator),
        ("plain text", &plain, &plain),
        ("TLS", &node, &coordinator),
    ] {
        let mut talk = Talk::open(node, coordinator).await?;
        for (tokens, rounds) in [(1, 4000), (8, 2000), (64, 500), (512, 100)] {
            let times = talk.measure(tokens, rounds).await?;
            println!(
                "{name:<10} {tokens:>7} {:>12.1?} {:>12.1?}",
                times[times.len() / 2],
                times[times.len() * 99 / 100]
            );
        }
    }
    for (name, node, coordinator) in [("plain text", &plain, &plain), ("TLS", &node, &coordinator)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let service = channel::compute_server(Mirror, MAX_MESSAGE_BYTES);
        let incoming = node.incoming(listener, Peers::Coordinators);
        tokio::spawn(
            channel::server()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        let median = measure_connects(coordinator, &address).await?;
        println!("{name:<10} connect {median:>12.1?}");
    }
    Ok(())
}
