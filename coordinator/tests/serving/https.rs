//! The API over TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ds4_coordinator::http::ConnectionLimits;
use ds4_proto::tls::{CertificateWatch, ServerFiles};
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::server::Server;

const WAIT: Duration = Duration::from_secs(20);

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// Writes a certificate for this machine that signs itself, and its key.
fn write(files: &ServerFiles) {
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key);
    std::fs::write(&files.cert, certificate.unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
}

/// Connects to a server that has the certificate in the file.
fn connect(url: &str, certificate: &Path) -> std::io::Result<Connection> {
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(certificate).unwrap();
    roots
        .add(CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let mut connection = StreamOwned::new(client, socket);
    connection.conn.complete_io(&mut connection.sock)?;
    Ok(connection)
}

/// The head of the answer to one more request on the connection.
fn health(connection: &mut Connection) -> String {
    let request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    connection.write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains("\"ok\"") {
        let read = connection.read(&mut part).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..read]);
    }
    let text = String::from_utf8(answer).unwrap();
    text.split("\r\n").next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_used_by_new_connections_and_silence_holds_up_nobody() {
    let folder = TempDir::new().unwrap();
    let files = ServerFiles {
        cert: folder.path().join("http.pem"),
        key: folder.path().join("http.key"),
    };
    write(&files);
    let identity = files.load().unwrap();
    let limits = ConnectionLimits {
        header_timeout: Duration::from_secs(3),
        ..ConnectionLimits::default()
    };
    let server = Server::over_tls(identity.clone(), limits).await;
    let (report, mut reports) = watch::channel(0);
    let _watch = CertificateWatch::start(identity, Duration::from_millis(10), move |found| {
        report.send_replace(found.reloads);
    });
    let url = server.url.clone();
    let address = url.trim_start_matches("http://").to_owned();
    let at = files.clone();
    let first = spawn_blocking(move || {
        // Neither who says nothing nor who does not speak TLS keeps others out, and both are let go.
        let silent = TcpStream::connect(&address).unwrap();
        let mut plain = TcpStream::connect(&address).unwrap();
        plain.write_all(b"GET /health HTTP/1.1\r\n\r\n").unwrap();
        let mut connection = connect(&url, &at.cert).unwrap();
        assert_eq!(health(&mut connection), "HTTP/1.1 200 OK");
        for mut ended in [silent, plain] {
            ended.set_read_timeout(Some(WAIT)).unwrap();
            let mut said = Vec::new();
            // Closed or reset, and never with an answer in plain text.
            let closed = ended.read_to_end(&mut said);
            let timed_out = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
            assert!(!closed.is_err_and(|error| timed_out(&error)));
            assert!(!said.starts_with(b"HTTP"), "{said:?}");
        }
    });
    first.await.unwrap();
    let old = folder.path().join("old.pem");
    std::fs::copy(&files.cert, &old).unwrap();
    write(&files);
    let reloaded = tokio::time::timeout(WAIT, reports.wait_for(|reloads| *reloads > 0));
    reloaded.await.unwrap().unwrap();
    let url = server.url.clone();
    spawn_blocking(move || {
        assert!(connect(&url, &old).is_err(), "the old one is still shown");
        let mut new = connect(&url, &files.cert).unwrap();
        assert_eq!(health(&mut new), "HTTP/1.1 200 OK");
        // A key that does not match changes nothing.
        std::fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = files.load().unwrap_err().to_string();
        assert!(error.contains("does not match"), "{error}");
        connect(&url, &files.cert).unwrap();
    })
    .await
    .unwrap();
}
