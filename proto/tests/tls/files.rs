//! Certificates of every kind, good and bad, in a folder of their own.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ds4_proto::tls::{Credentials, Role, TlsError, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Place(TempDir::new().expect("folder"))
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

/// An authority, and the file of its certificate.
pub(crate) struct Maker {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) ca: PathBuf,
}

/// What a certificate says.
pub(crate) struct Member {
    pub(crate) file: &'static str,
    pub(crate) names: Vec<String>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    /// First and last day of validity, from now.
    pub(crate) days: (i64, i64),
}

impl Member {
    pub(crate) fn node(file: &'static str) -> Self {
        Member {
            file,
            names: ["localhost", "127.0.0.1"].map(str::to_owned).to_vec(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            days: (-1, 30),
        }
    }

    pub(crate) fn coordinator(file: &'static str) -> Self {
        Member {
            usages: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
            ..Member::node(file)
        }
    }
}

pub(crate) struct Files(pub(crate) TlsFiles);

impl Files {
    pub(crate) fn load(&self, role: Role) -> Result<Credentials, TlsError> {
        self.0.load(role)
    }

    /// As a peer without our checks has them.
    pub(crate) fn load_unchecked(&self) -> Credentials {
        self.0.load_unchecked().expect("readable")
    }
}

fn day(offset: i64) -> SystemTime {
    let by = Duration::from_secs(offset.unsigned_abs() * 86_400);
    match offset < 0 {
        true => SystemTime::now() - by,
        false => SystemTime::now() + by,
    }
}

impl Maker {
    pub(crate) fn new(place: &Place, name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("certificate").pem();
        Maker {
            issuer: Issuer::new(params, key),
            ca: place.file(&format!("{name}.pem"), &certificate),
        }
    }

    pub(crate) fn member(&self, place: &Place, member: &Member) -> Files {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(member.names.clone()).expect("names");
        params.extended_key_usages.clone_from(&member.usages);
        params.not_before = day(member.days.0).into();
        params.not_after = day(member.days.1).into();
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        Files(TlsFiles {
            ca: self.ca.clone(),
            cert: place.file(&format!("{}.pem", member.file), &certificate.pem()),
            key: place.file(&format!("{}.key", member.file), &key.serialize_pem()),
        })
    }
}
