//! Which names a client may call this server by.
//!
//! A web page can have its own name resolve to this machine's loopback address (DNS rebinding). Its
//! requests then come from the visitor's browser, with the page as their origin and the page's name
//! as their host, so that they look as if they came from a page of this server. On a loopback
//! address only names of loopback are therefore answered, unless the operator names others.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header};

/// The hosts whose requests are answered.
#[derive(Clone, Debug, Default)]
pub struct HostRule {
    /// Names besides those of loopback, in lower case; `None` answers every request.
    names: Option<Vec<String>>,
    /// Whether the listener can be reached from this machine only.
    loopback: bool,
}

impl HostRule {
    /// The rule of a listener on `ip`, whose requests may also name a host of `allowed`. Beyond
    /// loopback every host is answered unless some are named; `*` stands for every host.
    #[must_use]
    pub fn new(ip: IpAddr, allowed: &[String]) -> Self {
        let loopback = ip.to_canonical().is_loopback();
        let any = allowed.iter().any(|name| name == "*") || (!loopback && allowed.is_empty());
        let names = allowed
            .iter()
            .map(|name| host_of(name).to_ascii_lowercase());
        HostRule {
            names: (!any).then(|| names.collect()),
            loopback,
        }
    }

    /// Whether a request for `uri` with `headers` is answered. One that names no host is: browsers
    /// always name one. Beyond loopback, probes may call the server by its address.
    pub(super) fn allows(&self, uri: &Uri, headers: &HeaderMap, probe: bool) -> bool {
        let Some(names) = &self.names else {
            return true;
        };
        if probe && !self.loopback {
            return true;
        }
        let in_uri = uri
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        let in_headers = headers.get_all(header::HOST).iter();
        in_uri
            .into_iter()
            .chain(in_headers.map(|host| host.as_bytes()))
            .all(|host| std::str::from_utf8(host).is_ok_and(|host| is_allowed(host, names)))
    }
}

fn is_allowed(host: &str, names: &[String]) -> bool {
    let host = host_of(host);
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    // Names below `localhost` never leave the machine: RFC 6761, 6.3.
    name == "localhost"
        || name.ends_with(".localhost")
        || address.parse().is_ok_and(loopback)
        || names.contains(&name)
}

/// The host in `host:port`.
fn host_of(text: &str) -> &str {
    let end_of_address = text.rfind(']').unwrap_or(0);
    match text[end_of_address..].rfind(':') {
        // Several colons without brackets are an address, not a port.
        Some(colon) if end_of_address > 0 || text.matches(':').count() == 1 => {
            &text[..end_of_address + colon]
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn allows(rule: &HostRule, uri: &str, hosts: &[&str], probe: bool) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_str(host).expect("a value"));
        }
        rule.allows(&uri.parse().expect("a target"), &headers, probe)
    }

    #[test]
    fn a_loopback_listener_answers_to_names_of_loopback_and_to_those_it_is_given() {
        let rule = HostRule::new([127, 0, 0, 1].into(), &["Box.example:8080".to_owned()]);
        for host in [
            "localhost",
            "localhost:8080",
            "LocalHost.",
            "app.localhost:1",
            "127.0.0.1:8080",
            "127.8.9.1",
            "[::1]:8080",
            "[::1]",
            "[::ffff:127.0.0.1]:1",
            "box.example",
            "box.example:99",
        ] {
            assert!(allows(&rule, "/", &[host], false), "{host}");
        }
        for host in [
            "evil.example:8080",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "0.0.0.0:8080",
            "10.0.0.1",
            "[::2]:1",
            "localhost:1:2",
            "",
            "caf\u{e9}",
        ] {
            assert!(!allows(&rule, "/", &[host], false), "{host}");
            assert!(!allows(&rule, "/health", &[host], true), "{host}");
        }
        assert!(allows(&rule, "/", &[], false), "browsers always send one");
        let twice = ["localhost", "evil.example"];
        assert!(
            !allows(&rule, "/", &twice, false),
            "one of two is not enough"
        );
        let absolute = "http://evil.example/health";
        assert!(!allows(&rule, absolute, &["localhost"], true));
    }

    #[test]
    fn other_listeners_answer_to_any_name_unless_some_are_given() {
        let (everywhere, here) = ([0, 0, 0, 0].into(), [127, 0, 0, 1].into());
        let any = HostRule::new(everywhere, &[]);
        assert!(allows(&any, "/", &["evil.example"], false));
        let some = HostRule::new(everywhere, &["api.example".to_owned()]);
        assert!(allows(&some, "/", &["api.example"], false));
        assert!(!allows(&some, "/", &["10.1.2.3:8080"], false));
        assert!(allows(&some, "/health", &["10.1.2.3:8080"], true));
        let all = HostRule::new(here, &["*".to_owned()]);
        assert!(allows(&all, "/", &["evil.example"], false));
    }
}
