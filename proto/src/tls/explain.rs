//! Errors of TLS in words that tell what to do.

use std::error::Error;

use rustls::{AlertDescription, CertificateError};

/// Describes the error of TLS that is the root of `error`, if there is one. Calls the peer "it".
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(of_tls(tls));
        }
        let text = error.to_string();
        if let Some(alert) = named_alert(&text) {
            return Some(format!("it refused {}", refused(alert)));
        }
        if text.contains(super::SPEAKS_TLS) {
            return Some("it speaks TLS but was contacted in plain text".to_owned());
        }
        // An I/O error that wraps one does not name it as its source.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Alerts with which a peer refuses a connection.
const REFUSALS: [AlertDescription; 13] = [
    AlertDescription::AccessDenied,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRequired,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::DecryptError,
    AlertDescription::HandshakeFailure,
    AlertDescription::InternalError,
    AlertDescription::NoApplicationProtocol,
    AlertDescription::ProtocolVersion,
    AlertDescription::UnknownCA,
    AlertDescription::UnsupportedCertificate,
];

/// The alert that a text is about. A server's alert arrives when the client's handshake is done and
/// HTTP/2 has begun, which keeps only the text of an error.
fn named_alert(text: &str) -> Option<AlertDescription> {
    let is_text =
        |alert: &AlertDescription| rustls::Error::AlertReceived(*alert).to_string() == text;
    REFUSALS.into_iter().find(is_text)
}

fn of_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate was not signed by an authority in --tls-ca".to_owned()
        }
        rustls::Error::InvalidCertificate(fault) => {
            format!("its certificate {}", fault_of(fault))
        }
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        rustls::Error::NoCertificatesPresented => "it showed no certificate".to_owned(),
        rustls::Error::AlertReceived(alert) => format!("it refused {}", refused(*alert)),
        error => error.to_string(),
    }
}

/// What is wrong with a certificate, to follow its name.
pub(super) fn fault_of(fault: &CertificateError) -> String {
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet".to_owned()
        }
        CertificateError::UnknownIssuer => "was signed by an unknown authority".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "does not allow this use: nodes need serverAuth, coordinators clientAuth".to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "is for {}, not for {}",
            presented
                .iter()
                .map(|name| plain(name))
                .collect::<Vec<_>>()
                .join(", "),
            expected.to_str()
        ),
        fault => format!("is not accepted: {fault}"),
    }
}

/// `DnsName("a.b")` as `a.b`.
fn plain(name: &str) -> &str {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

fn refused(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => "this side's certificate: expired".to_owned(),
        AlertDescription::UnknownCA => {
            "this side's certificate: signed by an authority that it does not trust".to_owned()
        }
        AlertDescription::CertificateRequired => "a peer without a certificate".to_owned(),
        AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::BadCertificate
        | AlertDescription::AccessDenied => {
            format!("this side's certificate ({alert:?})")
        }
        alert => format!("the TLS handshake ({alert:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_found_below_other_errors() {
        let tls = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
        let status = tonic::Status::from_error(Box::new(io));
        let text = explain(&status).expect("TLS");
        assert_eq!(text, "it refused this side's certificate: expired");
        assert_eq!(explain(&std::io::Error::other("cable")), None);
    }

    #[test]
    fn alerts_are_known_by_their_text_too() {
        for alert in REFUSALS {
            let text = rustls::Error::AlertReceived(alert).to_string();
            let error = std::io::Error::other(text);
            let known = explain(&rustls::Error::AlertReceived(alert)).expect("TLS");
            assert_eq!(explain(&error), Some(known));
        }
    }

    #[test]
    fn names_are_shown_without_their_wrapping() {
        assert_eq!(plain("DnsName(\"a.b\")"), "a.b");
        assert_eq!(plain("IpAddress(10.0.0.1)"), "10.0.0.1");
        assert_eq!(plain("odd"), "odd");
    }
}
