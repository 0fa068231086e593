#!/usr/bin/env bash
# An authority and a server certificate made with rcgen's defaults: rustls's verifier accepts the
# chain, OpenSSL calls the server certificate self-signed and refuses it.
#
# Packages: crates rcgen 0.14.10 and rustls-webpki 0.103.17; PyPI pyOpenSSL 26.4.0 with cryptography
# 50.0.2, which brings OpenSSL along.
#
# Behaviour: an authority is made and signs a certificate for the name "node"; neither is given a
# distinguished name. rcgen then calls both "rcgen self signed cert". webpki follows the signature and
# is content. OpenSSL looks at names first: a certificate whose issuer is called like its subject
# counts as its own issuer, and the chain ends in error 18, "self-signed certificate", though the right
# root is trusted. `use_authority_key_identifier_extension = true` in the leaf, made to tell issuers
# of one name apart, does not help. A distinguished name of its own does, in either of the two.
#
# Why a good guess is wrong: `CertificateParams::new(names)` takes the names that matter (the subject
# alternative ones), verifiers have ignored the rest for years, and the tests, rustls on both sides,
# are green. The first to fail is curl, Python, nginx or a gRPC client in another language, with a
# message that sends one looking at trust stores. The leaf is not self-signed: its signature is the
# authority's, as the first verifier shows.
#
# Seen:
#   OpenSSL 4.0.3 29 Sep 2026
#   defaults         issuer = subject: yes   webpki: valid   OpenSSL: self-signed certificate, error 18
#   key identifier   issuer = subject: yes   webpki: valid   OpenSSL: self-signed certificate, error 18
#   authority named  issuer = subject: no    webpki: valid   OpenSSL: valid
#   leaf named       issuer = subject: no    webpki: valid   OpenSSL: valid
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "chains"
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
//! Writes four chains and prints what webpki says to each.
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::UnixTime;
use std::{fs, time::Duration};
use webpki::{anchor_from_trusted_cert, ring, EndEntityCert, KeyUsage};

fn main() {
    for chain in ["defaults", "key identifier", "authority named", "leaf named"] {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        if chain == "authority named" {
            params.distinguished_name.push(DnType::CommonName, "authority");
        }
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();

        let mut params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = chain == "key identifier";
        if chain == "leaf named" {
            params.distinguished_name.push(DnType::CommonName, "node");
        }
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();

        fs::write(format!("{chain}.root"), authority.pem()).unwrap();
        fs::write(format!("{chain}.leaf"), leaf.pem()).unwrap();
        let root = authority.der().clone();
        let anchors = [anchor_from_trusted_cert(&root).unwrap()];
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_780_000_000)); // 2026
        let usage = KeyUsage::server_auth();
        EndEntityCert::try_from(leaf.der())
            .unwrap()
            .verify_for_usage(&[ring::ECDSA_P256_SHA256], &anchors, &[], now, usage, None, None)
            .unwrap();
        println!("{chain}: valid");
    }
}
RS
cargo run --quiet >webpki

python3 -m venv venv
venv/bin/pip install --quiet pyOpenSSL==26.4.0 cryptography==50.0.2
cat >verify.py <<'PY'
import sys

from OpenSSL import SSL, crypto


def load(path):
    with open(path, "rb") as file:
        return crypto.load_certificate(crypto.FILETYPE_PEM, file.read())


print(SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())
ok = True
for line in open("webpki"):
    chain, webpki = line.strip().split(": ")
    root, leaf = load(chain + ".root"), load(chain + ".leaf")
    store = crypto.X509Store()
    store.add_cert(root)
    try:
        crypto.X509StoreContext(store, leaf).verify_certificate()
        verdict = "valid"
    except crypto.X509StoreContextError as e:
        verdict = f"{e}, error {e.errors[0]}"
    names = leaf.to_cryptography()
    same = names.issuer == names.subject
    ok &= same == (not chain.endswith(" named")) and webpki == "valid"
    ok &= verdict == ("self-signed certificate, error 18" if same else "valid")
    print(f"{chain:16} issuer = subject: {'yes' if same else 'no':5} webpki: {webpki}   OpenSSL: {verdict}")
sys.exit(not ok)
PY
venv/bin/python verify.py
