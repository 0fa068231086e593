//! What a certificate says, for logs, metrics and messages.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use webpki::KeyUsage;

use super::der::{BIT_STRING, Der, INTEGER, OCTET_STRING, OID, SEQUENCE, SET, key_kind};

/// Encoded object identifiers.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// Tags of alternative names.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// Longest subject and serial number that are shown, and longest DNS name.
const MAX_SHOWN: usize = 64;
const MAX_DNS_NAME: usize = 253;

/// What a certificate says of itself. Read without checking anything: whether to believe it is
/// the verifier's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Common name of its subject; may be empty.
    pub subject: String,
    /// Serial number, in hexadecimal digits.
    pub serial: String,
    /// First 16 hexadecimal digits of its SHA-256, as `openssl x509 -fingerprint -sha256` begins.
    pub fingerprint: String,
    /// DNS names and IP addresses that it is for.
    pub names: Vec<String>,
    /// Whether it is for servers, and whether for clients; `None` if it names no purposes, which
    /// stands for any.
    pub purposes: Option<(bool, bool)>,
    /// First second of its validity, since 1970.
    pub not_before: u64,
    /// Last second of its validity, since 1970.
    pub not_after: u64,
    /// Its public key, as `SubjectPublicKeyInfo`.
    pub public_key: Vec<u8>,
    /// The kind of its key, if TLS cannot use it here.
    pub(super) unsupported_key: Option<&'static str>,
}

/// An extended key usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Server,
}

impl Purpose {
    /// Its object identifier.
    pub(super) fn oid(self) -> &'static [usize] {
        match self {
            Purpose::Client => KeyUsage::CLIENT_AUTH_REPR,
            Purpose::Server => KeyUsage::SERVER_AUTH_REPR,
        }
    }
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Purpose::Client => "clientAuth",
            Purpose::Server => "serverAuth",
        })
    }
}

/// The certificate that a peer showed last.
pub(crate) type SeenCertificate = Arc<Mutex<Option<CertificateFacts>>>;

impl CertificateFacts {
    /// Reads a certificate; `None` if it is none.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Self> {
        let mut certificate = Der(der).enter(SEQUENCE)?.enter(SEQUENCE)?;
        // The version.
        certificate.optional(0xa0);
        let serial = certificate.expect(INTEGER)?;
        // The algorithm of the signature, and the issuer.
        certificate.expect(SEQUENCE)?;
        certificate.expect(SEQUENCE)?;
        let mut validity = certificate.enter(SEQUENCE)?;
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let subject = common_name(certificate.enter(SEQUENCE)?);
        let before_key = certificate.0;
        let mut key = certificate.enter(SEQUENCE)?;
        let public_key = before_key[..before_key.len() - certificate.0.len()].to_vec();
        let kind = key.enter(SEQUENCE).and_then(key_kind);
        key.expect(BIT_STRING)?;
        let mut facts = CertificateFacts {
            subject,
            serial: hex(serial),
            fingerprint: hex(&sha256(der)[..8]),
            names: Vec::new(),
            purposes: None,
            not_before,
            not_after,
            public_key,
            unsupported_key: kind.filter(|kind| !kind.supported).map(|kind| kind.name),
        };
        while let Some((tag, content)) = certificate.next() {
            if tag == 0xa3 {
                facts.read_extensions(Der(content).enter(SEQUENCE)?);
            }
        }
        Some(facts)
    }

    /// As [`Self::of`], for every certificate of a PEM file.
    #[must_use]
    pub fn of_pem(pem: &[u8]) -> Vec<Self> {
        let found = CertificateDer::pem_slice_iter(pem).flatten();
        found.filter_map(|der| Self::of(&der)).collect()
    }

    fn read_extensions(&mut self, mut extensions: Der<'_>) {
        while let Some(mut extension) = extensions.enter(SEQUENCE) {
            let id = extension.expect(OID);
            // Whether it is critical.
            extension.optional(1);
            let Some(mut value) = extension.enter(OCTET_STRING) else {
                continue;
            };
            let Some(mut entries) = value.enter(SEQUENCE) else {
                continue;
            };
            match id {
                Some(SUBJECT_ALT_NAME) => {
                    while let Some((tag, content)) = entries.next() {
                        self.names.extend(alternative_name(tag, content));
                    }
                }
                Some(EXTENDED_KEY_USAGE) => {
                    let (mut server, mut client) = (false, false);
                    while let Some(purpose) = entries.expect(OID) {
                        server |= purpose == SERVER_AUTH;
                        client |= purpose == CLIENT_AUTH;
                    }
                    self.purposes = Some((server, client));
                }
                _ => {}
            }
        }
    }

    /// Whether it may be used for this purpose, as far as it says.
    pub(super) fn is_for(&self, purpose: Purpose) -> bool {
        self.purposes.is_none_or(|(server, client)| match purpose {
            Purpose::Server => server,
            Purpose::Client => client,
        })
    }

    /// Time until its end; zero once it has ended.
    #[must_use]
    pub fn left(&self) -> Duration {
        Duration::from_secs(self.not_after.saturating_sub(now()))
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A length of time in words, in the largest unit of which there are two or more.
#[must_use]
pub fn in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7_200.. => format!("{} hours", seconds / 3600),
        120.. => format!("{} minutes", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

/// The last common name of a subject, in printable characters.
fn common_name(mut name: Der<'_>) -> String {
    let mut found = String::new();
    while let Some(mut parts) = name.enter(SET) {
        while let Some(mut part) = parts.enter(SEQUENCE) {
            if part.expect(OID) == Some(COMMON_NAME)
                && let Some((_, text)) = part.next()
            {
                found = printable(text, MAX_SHOWN);
            }
        }
    }
    found
}

fn alternative_name(tag: u8, content: &[u8]) -> Option<String> {
    match tag {
        DNS_NAME => Some(printable(content, MAX_DNS_NAME)),
        IP_ADDRESS => {
            let v4 = <[u8; 4]>::try_from(content).map(IpAddr::from);
            let ip = v4.or_else(|_| <[u8; 16]>::try_from(content).map(IpAddr::from));
            ip.ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

fn printable(text: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let shown = text.chars().take(most);
    shown
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(MAX_SHOWN)
        .fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// By the function that TLS itself uses.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = TLS13_AES_128_GCM_SHA256.tls13();
    let output = suite.map(|suite| suite.common.hash_provider.hash(bytes));
    let output = output.and_then(|output| output.as_ref().try_into().ok());
    output.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};

    fn certificate() -> Vec<u8> {
        let names = ["a.b", "10.0.0.7", "fd00::7"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("names");
        params
            .distinguished_name
            .push(DnType::CommonName, "node\n1");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = (UNIX_EPOCH + Duration::from_secs(951_782_400)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(4_107_542_400)).into();
        let key = KeyPair::generate().expect("key");
        params
            .self_signed(&key)
            .expect("certificate")
            .der()
            .to_vec()
    }

    #[test]
    fn a_certificate_is_read_as_it_was_written() {
        let facts = CertificateFacts::of(&certificate()).expect("a certificate");
        assert_eq!(facts.subject, "node?1");
        assert_eq!(facts.names, ["a.b", "10.0.0.7", "fd00::7"]);
        assert_eq!(facts.purposes, Some((true, false)));
        assert_eq!(
            (facts.not_before, facts.not_after),
            (951_782_400, 4_107_542_400)
        );
        assert!(facts.is_for(Purpose::Server) && !facts.is_for(Purpose::Client));
        assert_eq!(facts.fingerprint.len(), 16);
        assert_eq!(facts.unsupported_key, None);
        assert!(!facts.serial.is_empty() && facts.left() > Duration::from_secs(1));
    }

    #[test]
    fn lengths_of_time_are_short() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (121, "2 minutes"),
            (86_400, "24 hours"),
            (30 * 86_400, "30 days"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), text);
        }
    }

    proptest! {
        /// What is cut off or damaged is no certificate, or another one, and nothing worse.
        #[test]
        fn damaged_certificates_do_no_harm(at in 0usize..400, byte: u8, cut: bool) {
            let mut der = certificate();
            let at = at.min(der.len() - 1);
            if cut {
                der.truncate(at);
            } else {
                der[at] = byte;
            }
            let _ = CertificateFacts::of(&der);
        }

        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = CertificateFacts::of(&bytes);
            let _ = super::super::der::private_key_kind(&bytes);
        }
    }
}
