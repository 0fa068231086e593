#!/usr/bin/env bash
# hyper's HTTP/1 server does not notice that a client has reset the connection while the answer pauses:
# not with `half_close(true)`, and not without it once the client has sent anything beyond its request.
#
# Packages: crates hyper 1.12.0 and hyper-util 0.1.21 (for the socket), tokio 1.54.1.
#
# Behaviour: an answer is streamed, with chunks at 0, 2, 3 and 4 seconds, and the client goes half a
# second in. By default hyper reads while it writes: it drops connection and body at once, be it a
# reset, a close, or a client that only shuts its writing side and would have read on. With
# `half_close(true)` the latter gets its answer; but then, once it has the request, hyper does not read
# at all before the answer is over: a reset is found by the next write, a close by the one after that,
# because the first goes out and is answered by a reset. Until then the body is kept, however long it
# pauses. The same happens without `half_close` if something waits in the read buffer: a second
# request sent ahead, or the empty line that some clients send behind a body.
#
# Why a good guess is wrong: the option is described as one about an end of file, so one expects it to
# tell that, which may be half a close, from a reset, which never is. And who leaves the default
# trusts that a body is dropped when its client goes, tests it with a client that sends one request,
# and finds it true. Often that drop is what stops work whose result nobody reads any more;
# where it matters, send something now and then in every pause (twice, for a close), or watch the
# socket beside hyper.
#
# Seen:
#   client sends                   half   at 0.5 s it             body dropped
#   one request                    false  resets                  at 0.5 s, after chunk 1; client has 1
#   one request                    false  closes                  at 0.5 s, after chunk 1; client has 1
#   one request                    false  shuts its writing side  at 0.5 s, after chunk 1; client has 1
#   one request                    true   resets                  at 2.0 s, after chunk 2; client has 1
#   one request                    true   closes                  at 3.0 s, after chunk 3; client has 1
#   one request                    true   shuts its writing side  at 4.0 s, after chunk 4; client has 4
#   one request and an empty line  false  resets                  at 2.0 s, after chunk 2; client has 1
#   one request and an empty line  false  closes                  at 3.0 s, after chunk 3; client has 1
#   one request and an empty line  false  shuts its writing side  at 4.0 s, after chunk 4; client has 4
#   two requests at once           false  resets                  at 2.0 s, after chunk 2; client has 1
#   two requests at once           false  closes                  at 3.0 s, after chunk 3; client has 1
#   two requests at once           false  shuts its writing side  at 4.0 s, after chunk 4; client has 4
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "gone"
version = "0.0.0"
edition = "2021"

[profile.dev]
debug = false

[dependencies]
bytes = "=1.12.2"
hyper = { version = "=1.12.0", features = ["http1", "server"] }
hyper-util = { version = "=0.1.21", features = ["tokio"] }
tokio = { version = "=1.54.1", features = ["io-util", "macros", "net", "rt", "sync", "time"] }
TOML
cat >src/main.rs <<'RS'
use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::{server::conn::http1, service::service_fn, Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, sleep_until, timeout, Instant, Sleep};

/// A body of four chunks, at 0, 2, 3 and 4 seconds; when it is dropped, it says when and after how many.
struct Slow {
    start: Instant,
    sent: usize,
    next: Pin<Box<Sleep>>,
    gone: Option<oneshot::Sender<(Duration, usize)>>,
}

const AT: [u64; 4] = [0, 2, 3, 4];

impl Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == AT.len() {
            return Poll::Ready(None);
        }
        std::task::ready!(self.next.as_mut().poll(cx));
        self.sent += 1;
        let at = self.start + Duration::from_secs(*AT.get(self.sent).unwrap_or(&0));
        self.next.as_mut().reset(at);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"chunk\n")))))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.gone.take().unwrap().send((self.start.elapsed(), self.sent));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    Closes,
    Resets,
    ShutsWrite,
}

async fn case(half_close: bool, request: &str, leaves: Leaves) -> (f64, usize, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let (tell, gone) = oneshot::channel();
    let tell = std::sync::Mutex::new(Some(tell));
    tokio::spawn(async move {
        let service = service_fn(|_: Request<hyper::body::Incoming>| {
            // A second request gets a body whose end nobody waits for.
            let gone = tell.lock().unwrap().take().unwrap_or_else(|| oneshot::channel().0);
            let start = Instant::now();
            let body = Slow { start, sent: 0, next: Box::pin(sleep_until(start)), gone: Some(gone) };
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        let _ = http1::Builder::new().half_close(half_close).serve_connection(TokioIo::new(server), service).await;
    });

    client.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = [0; 1024];
    let mut answer = Vec::new();
    while !answer.ends_with(b"chunk\n\r\n") {
        let n = client.read(&mut buffer).await.unwrap();
        answer.extend_from_slice(&buffer[..n]);
    }
    sleep(Duration::from_millis(500)).await;
    let mut received = 1;
    match leaves {
        Leaves::Closes => drop(client),
        Leaves::Resets => {
            client.set_zero_linger().unwrap();
            drop(client);
        }
        Leaves::ShutsWrite => {
            client.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = timeout(Duration::from_secs(6), client.read_to_end(&mut rest)).await;
            received += String::from_utf8_lossy(&rest).matches("chunk\n").count();
        }
    }
    let (when, sent) = gone.await.unwrap();
    (when.as_secs_f64(), sent, received)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let get = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let line = format!("{get}\r\n");
    let two = get.repeat(2);
    // The chunks that the server has produced when it drops the body, and those that arrive.
    let expected = [
        ("one request", get, false, [(1, 1), (1, 1), (1, 1)]),
        ("one request", get, true, [(2, 1), (3, 1), (4, 4)]),
        ("one request and an empty line", &line, false, [(2, 1), (3, 1), (4, 4)]),
        ("two requests at once", &two, false, [(2, 1), (3, 1), (4, 4)]),
    ];
    let ways =
        [(Leaves::Resets, "resets"), (Leaves::Closes, "closes"), (Leaves::ShutsWrite, "shuts its writing side")];
    let mut cases = Vec::new();
    for (name, request, half_close, counts) in expected {
        for ((leaves, how), counts) in ways.into_iter().zip(counts) {
            let request = request.to_owned();
            let case = tokio::spawn(async move { case(half_close, &request, leaves).await });
            cases.push((format!("{name:29}  {half_close:5}  {how:22}"), counts, case));
        }
    }
    println!("{:29}  {:5}  {:22}  body dropped", "client sends", "half", "at 0.5 s it");
    let mut as_stated = true;
    for (name, counts, case) in cases {
        let (when, sent, received) = case.await.unwrap();
        println!("{name}  at {when:.1} s, after chunk {sent}; client has {received}");
        as_stated &= (sent, received) == counts && (sent == 1) == (when < 1.5);
    }
    assert!(as_stated);
}
RS
cargo run --quiet
