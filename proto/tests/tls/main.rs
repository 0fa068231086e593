//! Who gets through to a node, who does not, and what each side is told.

mod files;
mod gate;
mod impostors;
mod live;

use std::sync::Arc;
use std::time::Duration;

use ds4_proto::channel;
use ds4_proto::pb;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::pb::node_control_server::{NodeControl, NodeControlServer};
use ds4_proto::security::{Dial, DialError, Security};
use ds4_proto::tls::{Peers, Role, TlsError, explain};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use files::{Maker, Member, Place};

/// Longest wait for what should happen at once.
const WAIT: Duration = Duration::from_secs(20);

struct Describer;

#[tonic::async_trait]
impl NodeControl for Describer {
    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeReply>, Status> {
        Ok(Response::new(pb::DescribeReply {
            software: "described".to_owned(),
            ..pb::DescribeReply::default()
        }))
    }
}

/// Serves on a port of its own until the runtime ends; its address.
async fn serve(security: &Security, peers: Peers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("address").port();
    let incoming = security.incoming(listener, peers);
    let server = channel::server().add_service(NodeControlServer::new(Describer));
    tokio::spawn(server.serve_with_incoming(incoming));
    format!("localhost:{port}")
}

/// One question; the error is what a person gets to see.
async fn ask(security: &Security, address: &str) -> Result<(), String> {
    ask_at(security.endpoint(address)).await
}

async fn ask_at(endpoint: Result<Dial, DialError>) -> Result<(), String> {
    let say = |error: &(dyn std::error::Error + 'static)| {
        explain(error).unwrap_or_else(|| {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        })
    };
    let asked = async {
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| say(&error))?;
        let mut client = NodeControlClient::new(channel);
        let reply = client.describe(pb::DescribeRequest::default()).await;
        reply.map_err(|status| say(&status))
    };
    let reply = tokio::time::timeout(WAIT, asked)
        .await
        .expect("an answer in time")?;
    assert_eq!(reply.get_ref().software, "described");
    Ok(())
}

async fn refusal(security: &Security, address: &str) -> String {
    ask(security, address).await.expect_err("it was let in")
}

struct Cluster {
    place: Place,
    maker: Maker,
    node: Security,
    coordinator: Security,
}

fn cluster() -> Cluster {
    let place = Place::new();
    let maker = Maker::new(&place, "ca");
    let node = maker.member(&place, &Member::node("node")).load(Role::Node);
    let coordinator = maker.member(&place, &Member::coordinator("coordinator"));
    let coordinator = coordinator.load(Role::Coordinator);
    Cluster {
        node: Security::Tls(node.expect("node")),
        coordinator: Security::Tls(coordinator.expect("coordinator")),
        place,
        maker,
    }
}

#[tokio::test]
async fn members_of_one_cluster_reach_each_other() {
    let c = cluster();
    let address = serve(&c.node, Peers::Coordinators).await;
    ask(&c.coordinator, &address).await.expect("by name");
    let by_ip = address.replace("localhost", "127.0.0.1");
    ask(&c.coordinator, &by_ip).await.expect("by IP address");
}

#[tokio::test]
async fn a_wildcard_stands_for_one_label() {
    let c = cluster();
    let names = ["*.nodes.svc", "*.localhost"].map(str::to_owned).to_vec();
    let member = Member {
        names,
        ..Member::node("set")
    };
    let set = c
        .maker
        .member(&c.place, &member)
        .load(Role::Node)
        .expect("node");
    let address = serve(&Security::Tls(set), Peers::Coordinators).await;
    let error = refusal(&c.coordinator, &address).await;
    assert_eq!(
        error,
        "its certificate is for *.nodes.svc, *.localhost, not for localhost"
    );
}

/// Addresses that come from a name server are not in certificates; the name is.
#[tokio::test]
async fn a_node_that_was_found_under_a_name_answers_for_the_name() {
    let c = cluster();
    let named = Member {
        names: vec!["experts.ds4.svc".to_owned()],
        ..Member::node("named")
    };
    let named = c.maker.member(&c.place, &named).load(Role::Node);
    let address = serve(&Security::Tls(named.expect("node")), Peers::Coordinators).await;
    let address = address.replace("localhost", "127.0.0.1");
    let found = c.coordinator.endpoint_as(&address, "experts.ds4.svc");
    ask_at(found).await.expect("by its name");
    let error = refusal(&c.coordinator, &address).await;
    let wanted = "its certificate is for experts.ds4.svc, not for 127.0.0.1";
    assert_eq!(error, wanted);
    let other = c.coordinator.endpoint_as(&address, "other.ds4.svc");
    let error = ask_at(other).await.expect_err("another name");
    assert!(error.ends_with("not for other.ds4.svc"), "{error}");
}

#[test]
fn every_kind_of_address_can_be_asked_over_tls() {
    let c = cluster();
    for good in ["[::1]:1", "node_3.lan:1", "10.0.0.1:65535"] {
        assert!(c.coordinator.endpoint(good).is_ok(), "{good}");
    }
}

#[tokio::test]
async fn a_node_cannot_give_work_to_another() {
    let c = cluster();
    let address = serve(&c.node, Peers::Coordinators).await;
    let error = refusal(&c.node, &address).await;
    assert!(
        error.starts_with("it refused this side's certificate"),
        "{error}"
    );
    // Where nodes are clients by right, both may ask.
    let address = serve(&c.node, Peers::Members).await;
    ask(&c.node, &address).await.expect("a node");
    ask(&c.coordinator, &address).await.expect("a coordinator");
}

#[tokio::test]
async fn certificates_must_say_what_they_are_for() {
    let c = cluster();
    let address = serve(&c.node, Peers::Coordinators).await;
    // No purpose is any purpose, on both sides and in both roles.
    let any = Member {
        usages: vec![],
        ..Member::coordinator("any")
    };
    let files = c.maker.member(&c.place, &any);
    let asks = Security::Tls(files.load(Role::Coordinator).expect("any purpose"));
    ask(&asks, &address).await.expect("a coordinator");
    let serves = Security::Tls(files.load(Role::Node).expect("any purpose"));
    let address = serve(&serves, Peers::Coordinators).await;
    ask(&c.coordinator, &address).await.expect("a node");
    // Another purpose is none of ours.
    let mail = Member {
        usages: vec![rcgen::ExtendedKeyUsagePurpose::EmailProtection],
        ..Member::coordinator("mail")
    };
    let files = c.maker.member(&c.place, &mail);
    let error = files.load(Role::Coordinator).expect_err("for mail");
    assert!(matches!(error, TlsError::Role { .. }), "{error}");
    let address = serve(&c.node, Peers::Coordinators).await;
    let error = refusal(&Security::Tls(files.load_unchecked()), &address).await;
    assert!(
        error.starts_with("it refused this side's certificate"),
        "{error}"
    );
    // The certificate of a coordinator, which is for clients only, is not that of a node either.
    let only = Member {
        usages: vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth],
        ..Member::coordinator("only")
    };
    let posing = c.maker.member(&c.place, &only).load_unchecked();
    let address = serve(&Security::Tls(posing), Peers::Coordinators).await;
    let error = refusal(&c.coordinator, &address).await;
    assert!(error.contains("nodes need serverAuth"), "{error}");
}

#[tokio::test]
async fn strangers_and_expired_members_are_told_why() {
    let c = cluster();
    let address = serve(&c.node, Peers::Coordinators).await;
    let others = Maker::new(&c.place, "other");
    let stranger = others.member(&c.place, &Member::coordinator("stranger"));
    let stranger = Security::Tls(stranger.load(Role::Coordinator).expect("good by itself"));
    let error = refusal(&stranger, &address).await;
    assert_eq!(
        error,
        "its certificate was not signed by an authority in --tls-ca"
    );
    // It trusts this cluster, which does not trust it.
    let mut files = others.member(&c.place, &Member::coordinator("half"));
    files.0.ca = c.maker.ca.clone();
    let half = Security::Tls(files.load_unchecked());
    let error = refusal(&half, &address).await;
    let wanted =
        "it refused this side's certificate: signed by an authority that it does not trust";
    assert_eq!(error, wanted);
    let old = Member {
        days: (-30, -1),
        ..Member::coordinator("old")
    };
    let old = c.maker.member(&c.place, &old).load_unchecked();
    let error = refusal(&Security::Tls(old), &address).await;
    assert!(
        error.starts_with("it refused this side's certificate: expired"),
        "{error}"
    );
    for (days, wanted) in [
        (
            (-30, -1),
            "its certificate has expired: it was valid until 20",
        ),
        (
            (1, 30),
            "its certificate is not valid yet: it is valid from 20",
        ),
    ] {
        let late = Member {
            days,
            ..Member::node("late")
        };
        let late = c.maker.member(&c.place, &late).load_unchecked();
        let address = serve(&Security::Tls(late), Peers::Coordinators).await;
        let error = refusal(&c.coordinator, &address).await;
        let clock = ", and this machine's clock says 20";
        assert!(
            error.starts_with(wanted) && error.contains(clock),
            "{error}"
        );
    }
}

#[tokio::test]
async fn plain_text_and_tls_do_not_mix_and_say_so() {
    let c = cluster();
    let with_tls = serve(&c.node, Peers::Coordinators).await;
    let error = refusal(&Security::Loopback, &with_tls).await;
    assert_eq!(error, "it speaks TLS but was contacted in plain text");
    let plain = serve(&Security::Loopback, Peers::Coordinators).await;
    let error = refusal(&c.coordinator, &plain).await;
    assert_eq!(error, "it does not speak TLS");
    ask(&c.coordinator, &format!("http://{plain}"))
        .await
        .expect("plain text on this machine, by name");
    let away = c
        .coordinator
        .endpoint("http://node:1")
        .expect_err("plain text elsewhere");
    assert!(away.to_string().contains("--insecure"), "{away}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_not_let_in() {
    let c = cluster();
    let address = serve(&c.node, Peers::Members).await;
    let ca = std::fs::read(&c.maker.ca).expect("ca");
    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(ca));
    let endpoint = channel::tls_endpoint(&address).expect("endpoint");
    let endpoint = endpoint.tls_config(tls).expect("settings");
    let channel = endpoint.connect().await;
    // TLS lets the client finish first; the refusal comes with the first answer.
    let status = match channel {
        Err(error) => explain(&error).expect("TLS"),
        Ok(channel) => {
            let mut client = NodeControlClient::new(channel);
            let asked = tokio::time::timeout(WAIT, client.describe(pb::DescribeRequest::default()));
            let status = asked.await.expect("in time").expect_err("it was let in");
            explain(&status).expect("TLS")
        }
    };
    assert_eq!(status, "it refused a peer without a certificate");
}

#[test]
fn files_that_are_wrong_are_named() {
    let c = cluster();
    let good = c.maker.member(&c.place, &Member::node("good"));
    let other = c.maker.member(&c.place, &Member::node("other"));
    let foreign = Maker::new(&c.place, "foreign");
    let text = c.place.file("text.pem", "no certificate");
    let broken = c.place.file(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    );
    let expired = Member {
        days: (-9, -1),
        ..Member::node("expired")
    };
    let expired = c.maker.member(&c.place, &expired);
    let mut cases = Vec::new();
    let mut case = |change: &dyn Fn(&mut ds4_proto::tls::TlsFiles), parts: &[&str]| {
        let mut files = good.0.clone();
        change(&mut files);
        let error = files.load(Role::Node).expect_err(parts[0]).to_string();
        assert!(!error.contains('\n'), "{error}");
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{error}: {parts:?}"
        );
        cases.push(error);
    };
    case(
        &|f| f.ca = "/nowhere/ca.pem".into(),
        &["/nowhere/ca.pem", "No such file"],
    );
    case(
        &|f| f.key = "/nowhere/n.key".into(),
        &["/nowhere/n.key", "No such file"],
    );
    case(&|f| f.ca = text.clone(), &["text.pem", "no certificate"]);
    case(&|f| f.cert = text.clone(), &["text.pem", "no certificate"]);
    case(
        &|f| f.cert = broken.clone(),
        &["broken.pem", "no certificate"],
    );
    case(&|f| f.key = text.clone(), &["text.pem", "no private key"]);
    case(
        &|f| f.key = good.0.cert.clone(),
        &["good.pem", "no private key"],
    );
    case(
        &|f| f.key = other.0.key.clone(),
        &["other.key", "good.pem", "does not match"],
    );
    case(
        &|f| f.ca = foreign.ca.clone(),
        &["good.pem", "foreign.pem", "not signed"],
    );
    case(&|f| *f = expired.0.clone(), &["expired.pem", "has expired"]);
    let late = Member {
        days: (2, 9),
        ..Member::node("late")
    };
    let late = c.maker.member(&c.place, &late);
    case(
        &|f| *f = late.0.clone(),
        &[
            "late.pem",
            "is not valid yet",
            "it is valid from",
            "clock says",
        ],
    );
    let curve = c.place.file("p521.key", include_str!("p521.key"));
    let old_form = c.place.file("sec1.key", include_str!("p521-sec1.key"));
    for key in [curve, old_form] {
        case(
            &|f| f.key = key.clone(),
            &[
                ".key",
                "unsupported kind of key, P-521",
                "P-256, P-384, Ed25519",
            ],
        );
    }
    let authority = c.place.file("p521.pem", include_str!("p521.pem"));
    case(
        &|f| f.ca = authority.clone(),
        &[
            "p521.pem",
            "unsupported kind, P-521",
            "P-256, P-384, Ed25519",
        ],
    );
    assert_eq!(cases.len(), 14);
    let error = good
        .load(Role::Coordinator)
        .expect_err("a node")
        .to_string();
    assert!(
        error.contains("not a coordinator's") && error.contains("clientAuth"),
        "{error}"
    );
    assert!(good.load(Role::Node).is_ok());
    let shown = format!("{:?}", good.load(Role::Node).map(Arc::new));
    assert!(!shown.contains("PRIVATE"), "{shown}");
}
