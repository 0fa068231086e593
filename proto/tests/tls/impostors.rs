//! Ports behind which there is no node, as a coordinator sees them.

use tokio::io::AsyncWriteExt;

use super::*;

/// Takes connections, says `words` on each, and keeps them open.
async fn impostor(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(words).await;
            kept.push(socket);
        }
    });
    format!("localhost:{port}")
}

#[tokio::test]
async fn a_port_that_does_not_finish_a_handshake_is_given_up() {
    let c = cluster();
    // Nothing, and the head of a record of which the rest is missing.
    for words in [&b""[..], &[0x16, 3, 3, 0x20, 0, 2]] {
        let address = impostor(words).await;
        let error = refusal(&c.coordinator, &address).await;
        assert!(error.contains("handshake"), "{words:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_port_that_speaks_something_else_is_named_as_such() {
    let c = cluster();
    for words in [
        &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &[0; 64],
    ] {
        let address = impostor(words).await;
        let error = refusal(&c.coordinator, &address).await;
        assert_eq!(error, "it does not speak TLS", "{words:?}");
    }
}
