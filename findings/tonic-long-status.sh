#!/usr/bin/env bash
# A tonic server's error whose message or details are long reaches the client as another error: code
# INTERNAL, "h2 protocol error: http2 error", whatever the code was.
#
# Packages: crates tonic 0.14.9 and tonic-health 0.14.9 (whose service only serves to have calls).
#
# Behaviour: a handler answers INVALID_ARGUMENT with a message of n characters. gRPC carries code,
# message and details in header fields, the message percent-encoded, the details in base64, and
# tonic's client takes 16 KiB of header fields at most. Beyond that the client gets INTERNAL with
# the text above: code, message and details are lost, and nothing is said of a size. Up to 16,000
# ASCII characters arrive; of Chinese ones, nine bytes each, 1,000 but not 1,900; of details 12,000 bytes
# but not 13,000. The next call on the channel is fine. With `Endpoint::http2_max_header_list_size`
# raised at the client all of them arrive.
#
# Why a good guess is wrong: an error is a message like any other, and messages may have 4 MiB; the
# limit that one reads about is max_decoding_message_size. If it were too long after all, one would
# expect it cut, or RESOURCE_EXHAUSTED. Instead a deliberate "your request is wrong, do not repeat it"
# turns into "the connection broke", which retry rules repeat and health rules count against the
# node. And it happens to the errors with most to say, those that list what is missing or quote what
# came.
#
# Seen:
#    16000 of x        InvalidArgument, whole                      raised: InvalidArgument, whole
#    17000 of x        Internal, h2 protocol error: http2 error    raised: InvalidArgument, whole
#     1000 of 层        InvalidArgument, whole                      raised: InvalidArgument, whole
#     1900 of 层        Internal, h2 protocol error: http2 error    raised: InvalidArgument, whole
#    12000 of details  InvalidArgument, whole                      raised: InvalidArgument, whole
#    13000 of details  Internal, h2 protocol error: http2 error    raised: InvalidArgument, whole
#      100 of x        InvalidArgument, whole                      raised: InvalidArgument, whole
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "status"
version = "0.0.0"
edition = "2021"

[profile.dev]
debug = false

[dependencies]
tokio = { version = "=1.54.1", features = ["macros", "net", "rt-multi-thread"] }
tokio-stream = { version = "=0.1.19", features = ["net"] }
tonic = { version = "=0.14.9", default-features = false, features = ["channel", "codegen", "router", "server"] }
tonic-health = { version = "=0.14.9", default-features = false }
TOML
cat >src/main.rs <<'RS'
use std::pin::Pin;
use tokio::net::TcpListener;
use tokio_stream::{wrappers::TcpListenerStream, Stream};
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Answers each check with the error that the service's name describes: text and count.
struct Failing;

#[tonic::async_trait]
impl Health for Failing {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let (text, count) = name.split_once(' ').unwrap();
        let count = count.parse().unwrap();
        Err(match text {
            "details" => Status::with_details(Code::InvalidArgument, "short", vec![7; count].into()),
            _ => Status::invalid_argument(text.repeat(count)),
        })
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }
}

#[tokio::main]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        Server::builder().add_service(HealthServer::new(Failing)).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let plain = Endpoint::new(address.clone()).unwrap().connect().await.unwrap();
    let raised = Endpoint::new(address).unwrap().http2_max_header_list_size(128 << 10).connect().await.unwrap();

    let cases = [
        ("x", 16_000, true),
        ("x", 17_000, false),
        ("\u{5c42}", 1_000, true),
        ("\u{5c42}", 1_900, false),
        ("details", 12_000, true),
        ("details", 13_000, false),
        ("x", 100, true),
    ];
    for (text, count, arrives) in cases {
        let mut seen = Vec::new();
        for channel in [&plain, &raised] {
            let service = format!("{text} {count}");
            let error = HealthClient::new(channel.clone()).check(HealthCheckRequest { service }).await.unwrap_err();
            let whole = error.message().chars().count() == count || error.details().len() == count;
            assert_eq!(whole, error.code() == Code::InvalidArgument);
            let text = if whole { "whole" } else { error.message() };
            seen.push(format!("{:?}, {text}", error.code()));
        }
        println!("{count:6} of {text:8} {:43} raised: {}", seen[0], seen[1]);
        let lost = "Internal, h2 protocol error: http2 error";
        assert_eq!(seen[0], if arrives { "InvalidArgument, whole" } else { lost });
        assert_eq!(seen[1], "InvalidArgument, whole");
    }
}
RS
cargo run --quiet
