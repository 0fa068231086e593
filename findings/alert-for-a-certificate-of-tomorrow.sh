#!/usr/bin/env bash
# A rustls server tells a client whose certificate is not valid yet that it has expired; an OpenSSL server
# tells the same client that its certificate is bad.
#
# Packages: crate rustls 0.23.46 (certificates by rcgen 0.14.10); PyPI pyopenssl 26.4.0 with cryptography
# 50.0.2, whose wheel brings OpenSSL 4.0.3.
#
# Behaviour: a server demands client certificates, and a client comes with one that begins in the future.
# rustls knows two reasons, `Expired` and `NotValidYet`, but has one alert for both,
# certificate_expired (45). OpenSSL, beside the same alert for what has ended, sends
# bad_certificate (42) for what has not begun, which is also its answer to much else. In all
# other cases tried here the two agree.
#
# Why a good guess is wrong: the alert is all that a client learns. A fresh certificate on a node
# whose authority's clock runs ahead, or on a server whose clock runs behind, is refused as expired, and
# who reads that renews it: the new one begins later still. With OpenSSL at the other end one
# looks for a damaged file instead. The standard gives rustls leave (its certificate_expired covers
# whatever is outside its dates), and rustls's table of alerts is drawn after OpenSSL's, so that one
# would expect them to agree. Do not translate the alert as "has expired": print both dates of one's
# own certificate, and let the server log its reason. Issue with `not_before` a while in the past.
#
# Seen:
#   client certificate    rustls                 OpenSSL 4.0.3 29 Sep 2026
#   valid                 welcome                welcome
#   ended in 2021         CertificateExpired     CertificateExpired
#   begins in 2110        CertificateExpired     BadCertificate
#   for servers only      UnsupportedCertificate UnsupportedCertificate
#   by another authority  UnknownCA              UnknownCA
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet pyopenssl==26.4.0 cryptography==50.0.2

cat >server.py <<'PY'
"""An OpenSSL server that demands client certificates; takes COUNT connections, one after another."""
import socket, sys
from OpenSSL import SSL

context = SSL.Context(SSL.TLS_SERVER_METHOD)
context.use_certificate_file("server.pem")
context.use_privatekey_file("key.pem")
context.load_verify_locations("authority.pem")
context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(), flush=True)
for _ in range(int(sys.argv[1])):
    stream, _ = listener.accept()
    connection = SSL.Connection(context, stream)
    connection.set_accept_state()
    try:
        connection.do_handshake()
        connection.sendall(b"welcome")
        connection.shutdown()
    except SSL.Error:
        pass
    # Closing with something unread would reset the connection, and the alert with it.
    stream.shutdown(socket.SHUT_WR)
    while stream.recv(1024):
        pass
    stream.close()
PY

mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "alerts"
version = "0.0.0"
edition = "2021"

[profile.dev]
debug = false

[dependencies]
rcgen = { version = "=0.14.10", default-features = false, features = ["pem", "ring"] }
rustls = { version = "=0.23.46", default-features = false, features = ["ring", "std", "tls12"] }
rustls-pki-types = "=1.16.0"
TOML
cat >src/main.rs <<'RS'
use rcgen::{
    date_time_ymd, BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, Stream};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::{fs, sync::Arc, thread};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(by: &Authority, key: &KeyPair, years: (i32, i32), usage: ExtendedKeyUsagePurpose) -> rcgen::Certificate {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "node");
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    params.extended_key_usages = vec![usage];
    params.signed_by(key, by).unwrap()
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// What a client with this certificate reads from the server.
fn visit(port: u16, roots: &RootCertStore, certificate: &CertificateDer<'static>, key: &KeyPair) -> String {
    let config = ClientConfig::builder()
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(vec![certificate.clone()], private(key))
        .unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut text = String::new();
    match Stream::new(&mut tls, &mut stream).read_to_string(&mut text) {
        Ok(_) => text,
        Err(e) => e.to_string().replace("received fatal alert: ", ""),
    }
}

fn main() {
    let (ours, other) = (authority("ours"), authority("other"));
    let key = KeyPair::generate().unwrap();
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let server = issue(&ours, &key, (2020, 2120), ServerAuth);
    let cases = [
        ("valid", issue(&ours, &key, (2020, 2120), ClientAuth), ["welcome"; 2]),
        ("ended in 2021", issue(&ours, &key, (2020, 2021), ClientAuth), ["CertificateExpired"; 2]),
        ("begins in 2110", issue(&ours, &key, (2110, 2120), ClientAuth), ["CertificateExpired", "BadCertificate"]),
        ("for servers only", issue(&ours, &key, (2020, 2120), ServerAuth), ["UnsupportedCertificate"; 2]),
        ("by another authority", issue(&other, &key, (2020, 2120), ClientAuth), ["UnknownCA"; 2]),
    ];
    let mut roots = RootCertStore::empty();
    roots.add(ours.der().clone()).unwrap();

    // The server of rustls.
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots.clone())).build().unwrap();
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.der().clone()], private(&key))
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rustls = listener.local_addr().unwrap().port();
    thread::spawn(move || loop {
        let (mut stream, _) = listener.accept().unwrap();
        let mut tls = ServerConnection::new(config.clone()).unwrap();
        if Stream::new(&mut tls, &mut stream).write_all(b"welcome").is_ok() {
            tls.send_close_notify();
        }
        while tls.wants_write() {
            tls.write_tls(&mut stream).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });

    // That of OpenSSL.
    fs::write("server.pem", server.pem()).unwrap();
    fs::write("key.pem", key.serialize_pem()).unwrap();
    fs::write("authority.pem", ours.pem()).unwrap();
    let mut python = Command::new("venv/bin/python")
        .args(["server.py", &cases.len().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(python.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (openssl, version) = line.trim().split_once(' ').unwrap();
    let openssl = openssl.parse().unwrap();

    println!("{:20}  {:22} {version}", "client certificate", "rustls");
    let mut as_stated = true;
    for (name, certificate, expected) in &cases {
        let seen = [rustls, openssl].map(|port| visit(port, &roots, certificate.der(), &key));
        println!("{name:20}  {:22} {}", seen[0], seen[1]);
        as_stated &= seen == *expected;
    }
    assert!(python.wait().unwrap().success());
    assert!(as_stated);
}
RS
cargo run --quiet
