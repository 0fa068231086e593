//! Clusters over TLS: the same bits, and a clear error for peers that do not belong.

use ds4_common::gguf::GgufModel;
use ds4_common::model::HyperParams;
use ds4_proto::pb::DescribeRequest;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::security::Security;
use ds4_proto::tls::{Role, TlsFiles};
use ds4_tests::golden::Reference;
use ds4_tests::process::{Server, run};

use crate::bad_input::{TestFolder, text};
use crate::certs::{certs, files};
use crate::cluster::{COORD, NODE, logits, node, start_node};

const MODEL: Reference = Reference("tiny-w");

/// The TLS flags of the member with these files.
fn flags(files: &TlsFiles) -> [&str; 6] {
    let TlsFiles { ca, cert, key } = files;
    [
        "--tls-ca",
        text(ca),
        "--tls-cert",
        text(cert),
        "--tls-key",
        text(key),
    ]
}

/// Expert blocks that a node has computed.
fn blocks_of(address: &str, asker: &TlsFiles) -> u64 {
    let credentials = asker.load(Role::Coordinator).expect("a coordinator");
    let endpoint = Security::Tls(credentials).endpoint(address);
    let endpoint = endpoint.expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let described = runtime.block_on(async {
        let channel = endpoint.connect().await.expect("connection");
        let mut client = NodeControlClient::new(channel);
        let described = client.describe(DescribeRequest::default()).await;
        described.expect("a description").into_inner()
    });
    described.counters.expect("counters").expert_blocks
}

#[test]
fn logits_over_mutual_tls_have_the_same_bits() {
    let dir = TestFolder::new();
    let folder = dir.path("certs");
    let out = ["--out", text(&folder)];
    let members = ["--node", "here,localhost", "--node", "there,127.0.0.1"];
    certs(&[&out[..], &members].concat());
    let coordinator = files(&folder, "coordinator");
    let parts = ["here", "there"].map(|name| files(&folder, name));
    let start = |index: &str, files: &TlsFiles| {
        let part = ["--grid", "1x2", "--index", index];
        node(MODEL, &[&part[..], &flags(files)].concat())
    };
    let (_first, first_at) = start("0", &parts[0]);
    let (_second, second_at) = start("1", &parts[1]);
    // One is addressed by its name, one by its IP address.
    let first_at = first_at.replace("127.0.0.1", "localhost");
    let nodes = format!("{first_at},{second_at}");
    let direct = logits(MODEL, &["--embedded", "0"]);
    let to_nodes = [&["--nodes", nodes.as_str()], &flags(&coordinator)[..]].concat();
    assert!(logits(MODEL, &to_nodes) == direct, "two nodes over TLS");
    let path = MODEL.model();
    let hp = HyperParams::from_model(&GgufModel::open(&path).expect("model")).expect("shape");
    for address in [&first_at, &second_at] {
        let computed = blocks_of(address, &coordinator);
        assert!(computed >= hp.layers as u64, "{address}: {computed}");
    }
    // Embedded nodes do not need a certificate.
    let mixed = [&to_nodes[..], &["--embedded", "1"]].concat();
    assert!(logits(MODEL, &mixed) == direct, "with an embedded node");
}

#[test]
fn strangers_are_refused_with_one_line_that_says_why() {
    let dir = TestFolder::new();
    let (home, abroad) = (dir.path("home"), dir.path("abroad"));
    let here = ["--node", "a,127.0.0.1", "--node", "b,elsewhere.lan"];
    certs(&[&["--out", text(&home)], &here[..]].concat());
    certs(&["--out", text(&abroad), "--node", "a,127.0.0.1"]);
    let coordinator = files(&home, "coordinator");
    let (_secure, secure) = node(MODEL, &flags(&files(&home, "a")));
    let (_other, other_name) = node(MODEL, &flags(&files(&home, "b")));
    let (_plain, plain) = node(MODEL, &[]);
    let stranger = files(&abroad, "coordinator");
    // A member that trusts the cluster but is signed by another authority.
    let half = TlsFiles {
        ca: coordinator.ca.clone(),
        ..stranger.clone()
    };
    let posing = files(&home, "a");
    let missing = files(&home, "nobody");
    let wrong_key = TlsFiles {
        key: posing.key.clone(),
        ..coordinator.clone()
    };
    let both = [&flags(&coordinator)[..], &["--insecure"]].concat();
    let by_name = format!("http://{secure}");
    let cases: [(&[&str], &str, &[&str]); 11] = [
        (
            &both,
            &secure,
            &["--insecure", "--tls-ca", "cannot be used together"],
        ),
        (&flags(&stranger), &secure, &["not signed", "--tls-ca"]),
        (&flags(&half), &secure, &["coordinator.pem", "not signed"]),
        (&flags(&posing), &secure, &["a.pem", "not a coordinator's"]),
        (&flags(&missing), &secure, &["nobody.pem", "No such file"]),
        (
            &flags(&wrong_key),
            &secure,
            &["a.key", "does not match", "coordinator.pem"],
        ),
        (
            &flags(&coordinator),
            &other_name,
            &["is for b, elsewhere.lan, not for 127.0.0.1"],
        ),
        (&flags(&coordinator), &plain, &["does not speak TLS"]),
        (
            &flags(&coordinator),
            &by_name,
            &["it speaks TLS but was contacted in plain text"],
        ),
        (
            &[],
            &secure,
            &["it speaks TLS but was contacted in plain text"],
        ),
        (&[], "192.0.2.1:7", &["192.0.2.1:7", "--insecure"]),
    ];
    for (tls, address, parts) in cases {
        let to = ["--nodes", address, "--wait-for-nodes", "1"];
        dir.assert_logits_refused("[1]", &[&to[..], tls].concat(), parts);
    }
}

/// A node that fetches its slice is the client, although its certificate is a server's.
#[test]
fn slices_travel_over_mutual_tls_and_to_members_only() {
    let dir = TestFolder::new();
    let (home, abroad) = (dir.path("home"), dir.path("abroad"));
    certs(&["--out", text(&home), "--node", "node-0,127.0.0.1"]);
    certs(&["--out", text(&abroad), "--node", "node-0,127.0.0.1"]);
    let coordinator = files(&home, "coordinator");
    let model = MODEL.model();
    let share = ["share", "-m", text(&model), "--listen=127.0.0.1:0"];
    let share = [&share[..], &["--nodes", "1"], &flags(&coordinator)].concat();
    let share = Server::start(COORD, &share).expect("a source of slices");
    let mut words = share.ready.split_whitespace();
    let address = words.nth(2).expect("an address");
    let source = address.replace("127.0.0.1", "localhost");
    let data = dir.path("data");
    let join = |source: &str, files: Option<&TlsFiles>| {
        let pull = ["--data-dir", text(&data), "--name", "node-0", "--join"];
        let rest = [source, "--join-timeout", "1", "--listen", "127.0.0.1:0"];
        let tls = files.map(|files| flags(files).to_vec()).unwrap_or_default();
        [&pull[..], &rest, &tls]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let member = files(&home, "node-0");
    for (source, tls, part) in [
        (
            source.as_str(),
            Some(&files(&abroad, "node-0")),
            "not signed",
        ),
        (&source, None, "it speaks TLS"),
        (address, Some(&member), "not for 127.0.0.1"),
        ("192.0.2.1:7", None, "--insecure"),
    ] {
        let args = join(source, tls);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let all = [&["serve", "--log", "off"], &args[..]].concat();
        let output = run(NODE, &all).expect("it ends");
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(part) && error.contains(source), "{error}");
    }
    let args = join(&source, Some(&member));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (_node, node) = start_node(&args);
    let to_node = [&["--nodes", node.as_str()], &flags(&coordinator)[..]].concat();
    assert!(logits(MODEL, &to_node) == logits(MODEL, &["--embedded", "0"]));
}

#[test]
fn a_node_accepts_plain_text_from_other_machines_only_with_a_flag() {
    let model = MODEL.model();
    let serve = ["serve", "--log", "error", "-m", text(&model)];
    for away in ["0.0.0.0:0", "[::]:0"] {
        let output = run(NODE, &[&serve[..], &["--listen", away]].concat()).expect("it ends");
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{away}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        let parts = [away, "--insecure", "--tls-ca"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
