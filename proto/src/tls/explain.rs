//! Errors of TLS in words that tell what to do.

use std::error::Error;

use rustls::{AlertDescription, CertificateError};

use super::utc;

/// Stands before the time of day in a message. What follows differs from one message to the next.
const CLOCK: &str = ", and this machine's clock says ";

/// A message up to the time of day in it, by which to tell whether it was logged already.
#[must_use]
pub fn without_clock(text: &str) -> &str {
    text.split(CLOCK).next().unwrap_or(text)
}

/// Says of a certificate that its validity is over, in seconds since 1970.
pub(super) fn ended(not_after: u64, now: u64) -> String {
    let (not_after, now) = (utc(not_after), utc(now));
    format!("has expired: it was valid until {not_after}{CLOCK}{now}")
}

/// Says of a certificate that its validity has not begun, in seconds since 1970.
pub(super) fn not_begun(not_before: u64, now: u64) -> String {
    let (not_before, now) = (utc(not_before), utc(now));
    format!("is not valid yet: it is valid from {not_before} on{CLOCK}{now}")
}

/// Describes the error of TLS that is the root of `error`, if there is one. Calls the peer "it".
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    causes(error).find_map(|cause| {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return Some(of_tls(tls));
        }
        let text = cause.to_string();
        if let Some(alert) = named_alert(&text) {
            return Some(format!("it refused {}", refused(alert)));
        }
        let plain = || "it speaks TLS but was contacted in plain text".to_owned();
        text.contains(super::SPEAKS_TLS).then(plain)
    })
}

/// Whether a certificate, the peer's or this side's, is what is wrong: other certificates would
/// mend it, trying again would not.
#[must_use]
pub fn is_about_certificates(error: &(dyn Error + 'static)) -> bool {
    let alerts = |alert: AlertDescription| {
        !matches!(
            alert,
            AlertDescription::HandshakeFailure
                | AlertDescription::InternalError
                | AlertDescription::NoApplicationProtocol
                | AlertDescription::ProtocolVersion
        )
    };
    causes(error).any(|cause| match cause.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => true,
        Some(rustls::Error::AlertReceived(alert)) => alerts(*alert),
        Some(_) => false,
        None => named_alert(&cause.to_string()).is_some_and(alerts),
    })
}

/// The error and what caused it, from the outside in.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An I/O error that wraps one does not name it as its source.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        match wrapped {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
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
        CertificateError::ExpiredContext { time, not_after } => {
            ended(not_after.as_secs(), time.as_secs())
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            not_begun(not_before.as_secs(), time.as_secs())
        }
        CertificateError::Expired => "has expired".to_owned(),
        CertificateError::NotValidYet => "is not valid yet".to_owned(),
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
        // The alert is the same for one that has not begun.
        AlertDescription::CertificateExpired => {
            "this side's certificate: expired, or not valid yet by its clock".to_owned()
        }
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
        assert_eq!(
            text,
            "it refused this side's certificate: expired, or not valid yet by its clock"
        );
        assert_eq!(explain(&std::io::Error::other("cable")), None);
    }

    #[test]
    fn faults_of_certificates_are_told_from_others() {
        let alert = |alert| std::io::Error::other(rustls::Error::AlertReceived(alert));
        let late = rustls::Error::InvalidCertificate(CertificateError::Expired);
        assert!(is_about_certificates(&std::io::Error::other(late)));
        assert!(is_about_certificates(&alert(AlertDescription::UnknownCA)));
        assert!(!is_about_certificates(&alert(
            AlertDescription::ProtocolVersion
        )));
        assert!(!is_about_certificates(&std::io::Error::other("cable")));
        let by_text = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        assert!(is_about_certificates(&std::io::Error::other(
            by_text.to_string()
        )));
    }

    #[test]
    fn both_times_are_named_and_the_clock_does_not_make_another_message() {
        let text = ended(86_400, 90_000);
        assert_eq!(
            text,
            "has expired: it was valid until 1970-01-02T00:00:00Z, and this machine's clock says \
             1970-01-02T01:00:00Z"
        );
        assert_eq!(without_clock(&text), without_clock(&ended(86_400, 90_001)));
        assert_ne!(without_clock(&text), without_clock(&ended(86_401, 90_000)));
        assert!(not_begun(86_400, 5).contains("1970-01-01T00:00:05Z"));
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
