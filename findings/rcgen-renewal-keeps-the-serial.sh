#!/usr/bin/env bash
# Two certificates that rcgen issues for one key have one serial number: whoever revokes the old one
# revokes its renewal.
#
# Packages: crates rcgen 0.14.10 and rustls-webpki 0.103.17 (rustls's verifier).
#
# Behaviour: an authority signs a certificate for a node's key, later a second one for the same key,
# with other dates and another name. `CertificateParams::serial_number` is left alone. The
# two certificates carry the same serial number: rcgen derives it from the public key. A revocation list that names the first one's serial makes the verifier refuse the second as
# revoked. A certificate for a new key, by the same authority, is accepted.
#
# Why a good guess is wrong: RFC 5280 demands that an authority never use a serial number twice, and
# other tools draw it at random or count; a renewal with a kept key is the usual way to renew, and
# everything else works, for nothing compares serials before the first revocation. Then the node that
# was cut off and came back with a fresh certificate stays cut off. Set `serial_number` to random
# bytes, or make a key for every certificate.
#
# Seen:
#   old                serial 43175553dc09…   without the list: valid   with it: CertRevoked
#   renewed, same key  serial 43175553dc09…   without the list: valid   with it: CertRevoked
#   another key        serial 7b866dc4a66f…   without the list: valid   with it: valid
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "serials"
version = "0.0.0"
edition = "2021"

[profile.dev]
debug = false

[dependencies]
rcgen = { version = "=0.14.10", default-features = false, features = ["pem", "ring"] }
rustls-webpki = { version = "=0.103.17", default-features = false, features = ["ring", "std"] }
rustls-pki-types = "=1.16.0"
TOML
cat >src/main.rs <<'RS'
use rcgen::{
    date_time_ymd, BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;
use webpki::{anchor_from_trusted_cert, ring, BorrowedCertRevocationList, EndEntityCert, KeyUsage, RevocationOptionsBuilder};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn issue(authority: &Authority, key: &KeyPair, name: &str, year: i32) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(year, 1, 1);
    params.not_after = date_time_ymd(year + 4, 1, 1);
    params.signed_by(key, authority).unwrap().der().clone()
}

fn serial(certificate: &CertificateDer) -> Vec<u8> {
    EndEntityCert::try_from(certificate).unwrap().serial().to_vec()
}

fn main() {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();

    let key = KeyPair::generate().unwrap();
    let old = issue(&authority, &key, "node-1.example", 2025);
    let renewed = issue(&authority, &key, "renewed.example", 2026);
    let other = issue(&authority, &KeyPair::generate().unwrap(), "node-2.example", 2026);

    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 2, 1),
        next_update: date_time_ymd(2030, 1, 1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from_slice(&serial(&old)),
            revocation_time: date_time_ymd(2026, 1, 15),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(&authority)
    .unwrap();

    let root = authority.der().clone();
    let anchors = [anchor_from_trusted_cert(&root).unwrap()];
    let list = BorrowedCertRevocationList::from_der(list.der()).unwrap().into();
    let lists = [&list];
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_780_000_000)); // 2026
    let verdict = |certificate: &CertificateDer, revocation: bool| {
        let revocation = revocation.then(|| RevocationOptionsBuilder::new(&lists).unwrap().build());
        EndEntityCert::try_from(certificate)
            .unwrap()
            .verify_for_usage(&[ring::ECDSA_P256_SHA256], &anchors, &[], now, KeyUsage::server_auth(), revocation, None)
            .map_or_else(|e| format!("{e:?}"), |_| "valid".to_owned())
    };
    let mut seen = Vec::new();
    for (name, certificate) in [("old", &old), ("renewed, same key", &renewed), ("another key", &other)] {
        let hex: String = serial(certificate).iter().take(6).map(|b| format!("{b:02x}")).collect();
        let (before, after) = (verdict(certificate, false), verdict(certificate, true));
        println!("{name:18} serial {hex}…   without the list: {before}   with it: {after}");
        assert_eq!(before, "valid");
        seen.push(after);
    }
    assert_eq!(serial(&old), serial(&renewed));
    assert_ne!(serial(&old), serial(&other));
    assert_eq!(seen, ["CertRevoked", "CertRevoked", "valid"]);
}
RS
cargo run --quiet
