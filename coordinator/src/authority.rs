//! The certificate authority of a cluster: one key that signs the certificates of all members.

use std::time::{Duration, SystemTime};

use ds4_proto::tls::{CertificateFacts, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Certificates are valid from this long ago, for machines whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Validity of the authority's own certificate.
const AUTHORITY_DAYS: u32 = 3650;

/// The most by which a member's validity is shortened: one in this many days.
const STAGGER: u64 = 10;

/// Why a certificate cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The authority's key file does not contain a usable private key.
    #[error("ca.key does not contain a private key: {0}")]
    Key(rcgen::Error),
    /// No certificate of the authority has the public key of its private one.
    #[error("ca.key does not belong to any certificate in ca.pem")]
    OtherKey,
    /// A wildcard that verifiers do not accept.
    #[error(
        "'{0}' would be refused: in TLS at least two labels must follow '*.', as in *.nodes.lan"
    )]
    Wildcard(String),
    /// A name that a certificate cannot be issued for.
    #[error("'{0}' is neither a DNS name, which may begin with '*.', nor an IP address")]
    Name(String),
    /// No key could be generated or no signature made.
    #[error("cannot create the certificate: {0}")]
    Sign(rcgen::Error),
}

/// A certificate with its private key.
#[derive(Debug)]
pub struct Issued {
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key, PEM (PKCS #8).
    pub key: String,
    /// Last second of the certificate's validity, since 1970.
    pub not_after: u64,
}

/// Issues certificates with the key of one cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

impl std::fmt::Debug for Authority {
    /// Leaves the key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Generates an authority with a fresh key.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`] if the system provides no random numbers.
    pub fn generate() -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let text = key.serialize_pem();
        let certificate = params(&key).self_signed(&key);
        let certificate = certificate.map_err(AuthorityError::Sign)?.pem();
        Ok(Self::of(certificate, key, text))
    }

    /// Restores an authority from its key and certificates, both PEM: while one authority replaces
    /// another, there are those of both, of which one has this key.
    ///
    /// # Errors
    /// [`AuthorityError::Key`] if `key` is not a private key, [`AuthorityError::OtherKey`] if no
    /// certificate belongs to it.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self, AuthorityError> {
        let pair = KeyPair::from_pem(key).map_err(AuthorityError::Key)?;
        let public = pair.subject_public_key_info();
        let end = "-----END CERTIFICATE-----";
        let mut all = certificates.split_inclusive(end).map(str::trim_start);
        let own = all.find(|pem| {
            let facts = CertificateFacts::of_pem(pem.as_bytes());
            facts.iter().any(|facts| facts.public_key == public)
        });
        let own = own.ok_or(AuthorityError::OtherKey)?;
        Ok(Self::of(format!("{own}\n"), pair, key.to_owned()))
    }

    fn of(certificate: String, pair: KeyPair, key: String) -> Self {
        Authority {
            issuer: Issuer::new(params(&pair), pair),
            certificate,
            key,
        }
    }

    /// The authority's own certificate, PEM, which every member trusts.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The private key, PEM. Anyone who has it can join the cluster.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Issues a certificate for a member in `role`, called `title`, that is valid for `names` (DNS
    /// names, whose first label may be `*`, and IP addresses) for `days` from now, at most 36,500,
    /// less up to a tenth that depends on `title`: members whose certificates were issued together
    /// must not end together.
    ///
    /// A node's certificate allows server authentication only, so that a node cannot pass for a
    /// coordinator. A coordinator's allows client and server authentication, because nodes fetch
    /// slices from it; its names keep it from passing for a node.
    ///
    /// # Errors
    /// [`AuthorityError::Name`] for an invalid name, [`AuthorityError::Sign`] if signing fails.
    pub fn issue(
        &self,
        role: Role,
        title: &str,
        names: &[String],
        days: u64,
    ) -> Result<Issued, AuthorityError> {
        for name in names {
            check_name(name)?;
        }
        let mut params = CertificateParams::new(names).map_err(AuthorityError::Sign)?;
        params.distinguished_name = name_of(&format!("ds4 {role} {title}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Role::Coordinator => vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
        };
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        params.not_before = (now - CLOCK_SKEW).into();
        let end = now + validity(title, days);
        params.not_after = end.into();
        let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let certificate = params.signed_by(&key, &self.issuer);
        Ok(Issued {
            certificate: certificate.map_err(AuthorityError::Sign)?.pem(),
            key: key.serialize_pem(),
            not_after: end
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        })
    }
}

/// The validity of the certificate of the member `title`.
fn validity(title: &str, days: u64) -> Duration {
    let seconds = days.min(36_500) * DAY.as_secs();
    // FNV-1a, of which the upper half is mixed best.
    let hash = title.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let share = (hash ^ (hash >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    Duration::from_secs(seconds - seconds / STAGGER * share / (1 << 16))
}

/// The content of an authority's certificate. It is derived from the key alone, so the key is
/// enough to continue an authority.
fn params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let id = params.key_identifier(key);
    let id: String = id
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = name_of(&format!("ds4 cluster {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + DAY * AUTHORITY_DAYS).into();
    params
}

fn name_of(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// Checks that a certificate can be issued for `name`: an IP address, or labels of 1 to 63 letters,
/// digits, dashes inside and underscores, the last of which is not a number; the first may be `*` if
/// two follow. Verifiers understand nothing else.
///
/// # Errors
/// [`AuthorityError::Name`], [`AuthorityError::Wildcard`].
pub fn check_name(name: &str) -> Result<(), AuthorityError> {
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let inside = !label.starts_with('-') && !label.ends_with('-');
        inside && !label.is_empty() && label.len() <= 63 && label.bytes().all(plain)
    };
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    let last = host.rsplit('.').next().unwrap_or(host);
    let is_number = last.bytes().all(|b| b.is_ascii_digit());
    if name.len() > 253 || is_number || !host.split('.').all(label) {
        return Err(AuthorityError::Name(name.to_owned()));
    }
    if host.len() < name.len() && !host.contains('.') {
        return Err(AuthorityError::Wildcard(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use webpki::EndEntityCert;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_certificate_is_for_its_names_and_addresses_alone() {
        let authority = Authority::generate().expect("authority");
        let listed = names(&["node-1", "*.nodes.svc", "10.0.0.7", "fd00::7"]);
        let issued = authority.issue(Role::Node, "node-1", &listed, 30);
        let pem = issued.expect("certificate").certificate;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let certificate = EndEntityCert::try_from(&der).expect("certificate");
        let is_for = |name: &str| {
            let name = ServerName::try_from(name).expect("a name");
            certificate.verify_is_valid_for_subject_name(&name).is_ok()
        };
        for good in ["node-1", "NODE-1", "a.nodes.svc", "10.0.0.7", "fd00::7"] {
            assert!(is_for(good), "{good}");
        }
        for bad in [
            "node-2",
            "nodes.svc",
            "a.b.nodes.svc",
            "10.0.0.8",
            "fd00::8",
        ] {
            assert!(!is_for(bad), "{bad}");
        }
    }

    #[test]
    fn names_that_verifiers_do_not_understand_are_refused() {
        let authority = Authority::generate().expect("authority");
        let long = "a".repeat(64);
        for bad in [
            "",
            "a b",
            "*",
            "a.*",
            "*.",
            "a..b",
            "b\n",
            "\u{e4}.de",
            "1.2.3.4:5",
            "1.2.3",
            "a.-b",
            "a-.b",
            &long,
        ] {
            let issued = authority.issue(Role::Node, "x", &names(&[bad]), 30);
            assert!(matches!(issued, Err(AuthorityError::Name(_))), "{bad:?}");
        }
        let issued = authority.issue(Role::Node, "x", &names(&["*.ds4-expert"]), 30);
        let error = issued.expect_err("a wildcard above one label").to_string();
        assert!(
            error.contains("'*.ds4-expert'") && error.contains("two labels"),
            "{error}"
        );
    }

    #[test]
    fn members_of_one_day_end_on_different_days() {
        let titles: Vec<String> = (0..100).map(|n| format!("node-{n}")).collect();
        let mut ends: Vec<u64> = titles.iter().map(|t| validity(t, 365).as_secs()).collect();
        assert_eq!(
            ends[7],
            validity("node-7", 365).as_secs(),
            "the same each time"
        );
        ends.sort_unstable();
        let year = 365 * DAY.as_secs();
        assert!(ends[0] >= year - year / STAGGER && ends[99] <= year);
        // Spread over the tenth: no week of it holds more than half of them.
        let week = 7 * DAY.as_secs();
        assert!(ends.iter().all(|end| {
            let near = ends.iter().filter(|other| other.abs_diff(*end) < week / 2);
            near.count() < 50
        }));
        let span = ends[99] - ends[0];
        assert!(span > year / STAGGER * 3 / 4, "{span}");
        assert!(validity("a", 1).as_secs() >= DAY.as_secs() * 9 / 10);
    }

    #[test]
    fn an_authority_goes_on_from_its_files() {
        let first = Authority::generate().expect("authority");
        let again = Authority::from_pem(first.certificate(), first.key());
        let again = again.expect("authority");
        assert_eq!(again.certificate(), first.certificate());
        assert_eq!(again.key(), first.key());
        assert!(!format!("{again:?}").contains("PRIVATE"));
        let error = Authority::from_pem("", "no key").expect_err("no key");
        assert!(error.to_string().contains("ca.key"), "{error}");
        // While one replaces another, the file holds both.
        let other = Authority::generate().expect("authority");
        let both = [first.certificate(), other.certificate()].concat();
        for authority in [&first, &other] {
            let found = Authority::from_pem(&both, authority.key()).expect("one of them");
            assert_eq!(found.certificate(), authority.certificate());
        }
        let error = Authority::from_pem(other.certificate(), first.key());
        assert!(matches!(error, Err(AuthorityError::OtherKey)));
    }
}
