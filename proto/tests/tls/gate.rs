//! Peers that stall or send garbage during the handshake do not disturb others.

use std::time::{Duration, Instant};

use ds4_proto::limits::{HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MAX_HANDSHAKES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A record that says that 16 KiB follow, and the first of them.
const HALF_HELLO: [u8; 9] = [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];

fn port(address: &str) -> String {
    address.replace("localhost", "127.0.0.1")
}

async fn connect(address: &str) -> TcpStream {
    let connected = tokio::time::timeout(WAIT, TcpStream::connect(port(address)));
    connected.await.expect("in time").expect("connection")
}

/// Waits until the server ends the connection, whatever it says before.
async fn ended(mut socket: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    // Closed or reset.
    let _ = tokio::time::timeout(WAIT, socket.read_to_end(&mut said))
        .await
        .expect("an end");
    said
}

#[tokio::test]
async fn an_unfinished_handshake_ends_and_holds_up_no_other() {
    let c = cluster();
    for (security, coordinator) in [
        (c.node.clone(), c.coordinator.clone()),
        (Security::Loopback, Security::Loopback),
    ] {
        let address = serve(&security, Peers::Coordinators).await;
        let start = Instant::now();
        let mut unfinished = Vec::new();
        for begun in [&b""[..], &HALF_HELLO, &PREFACE[..20], &HALF_HELLO[..1]] {
            let mut socket = connect(&address).await;
            socket.write_all(begun).await.expect("sent");
            unfinished.push(socket);
        }
        ask(&coordinator, &address).await.expect("a good peer");
        assert!(start.elapsed() < HANDSHAKE_TIMEOUT, "it had to wait");
        for socket in unfinished {
            ended(socket).await;
        }
        ask(&coordinator, &address).await.expect("a good peer");
    }
}

#[tokio::test]
async fn garbage_is_refused_at_its_first_wrong_byte() {
    let c = cluster();
    for (security, coordinator) in [
        (c.node.clone(), c.coordinator.clone()),
        (Security::Loopback, Security::Loopback),
    ] {
        let address = serve(&security, Peers::Coordinators).await;
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &b"PRI * HTTP/1.1\r\n\r\n"[..],
            &[0; 64],
            &[0xff; 4096],
            // A TLS record of a length that is not allowed, and an alert.
            &[0x16, 3, 1, 0xff, 0xff, 1],
            &[0x15, 3, 3, 0, 2, 2, 40],
        ] {
            let start = Instant::now();
            let mut socket = connect(&address).await;
            socket.write_all(garbage).await.expect("sent");
            socket.shutdown().await.expect("end");
            ended(socket).await;
            assert!(start.elapsed() < HANDSHAKE_TIMEOUT, "{garbage:?}");
        }
        ask(&coordinator, &address).await.expect("a good peer");
    }
}

/// More half-open connections than there are slots: the newest is always served.
#[tokio::test]
async fn a_flood_of_half_handshakes_keeps_no_peer_out() {
    let c = cluster();
    let address = serve(&c.node, Peers::Coordinators).await;
    let mut flood = Vec::new();
    for _ in 0..2 * MAX_HANDSHAKES {
        let mut socket = connect(&address).await;
        // The oldest ones are gone by now.
        let _ = socket.write_all(&HALF_HELLO).await;
        flood.push(socket);
    }
    let start = Instant::now();
    ask(&c.coordinator, &address).await.expect("a good peer");
    assert!(start.elapsed() < HANDSHAKE_TIMEOUT, "it had to wait");
    // The first was dropped before its time was over.
    ended(flood.remove(0)).await;
    assert!(start.elapsed() < HANDSHAKE_TIMEOUT, "it was not dropped");
}

/// Connections whose handshake is done take permits, and those that wait get freed ones.
#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let address = serve(&Security::Loopback, Peers::Coordinators).await;
    let open = || async {
        let mut socket = connect(&address).await;
        socket.write_all(PREFACE).await.expect("sent");
        socket
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .expect("sent");
        socket
    };
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut socket = open().await;
        // The server's settings show that the connection was taken.
        socket.read_u8().await.expect("settings");
        idle.push(socket);
    }
    let mut late = open().await;
    let early = tokio::time::timeout(Duration::from_millis(100), late.read_u8()).await;
    assert!(early.is_err(), "the bound does not hold");
    drop(idle);
    let taken = tokio::time::timeout(WAIT, late.read_u8()).await;
    taken.expect("in time").expect("settings");
    ask(&Security::Loopback, &address)
        .await
        .expect("a good peer");
}
