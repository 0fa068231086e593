//! A certificate that ends while everything runs, and is then replaced on disk.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ds4_proto::tls::TlsFiles;
use ds4_tests::golden::Reference;
use ds4_tests::process::Server;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use crate::bad_input::{TestFolder, text};
use crate::cluster::{COORD, NODE};

const MODEL: Reference = Reference("tiny-w");

/// Time for what takes a few seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Validity of the certificate that ends: long enough for both programs to start.
const SHORT: Duration = Duration::from_secs(16);

struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    fn new(dir: &TestFolder) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("certificate").pem();
        dir.file("ca.pem", certificate);
        Authority(Issuer::new(params, key))
    }

    /// Writes the files of a member that is valid for so long, in both roles.
    fn issue(&self, dir: &TestFolder, name: &str, time: Duration) -> TlsFiles {
        let key = KeyPair::generate().expect("key");
        let names = vec!["127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + time).into();
        let certificate = params.signed_by(&key, &self.0).expect("certificate");
        TlsFiles {
            ca: dir.path("ca.pem"),
            cert: dir.file(&format!("{name}.pem"), certificate.pem()),
            key: dir.file(&format!("{name}.key"), key.serialize_pem()),
        }
    }
}

fn start(program: &str, args: &[&str], files: &TlsFiles, log: &Path) -> Server {
    let TlsFiles { ca, cert, key } = files;
    let mut command = Command::new(program);
    command
        .args(args)
        .args(["--tls-ca", text(ca), "--tls-cert", text(cert)])
        .args(["--tls-key", text(key)])
        .stderr(File::create(log).expect("a log"));
    Server::launch(command).expect("it becomes ready")
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The value of the series that starts with `name`.
fn metric(url: &str, name: &str) -> Option<f64> {
    let text = reqwest::blocking::get(format!("{url}/metrics"));
    let text = text.expect("metrics").text().expect("text");
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn ask(url: &str) -> u16 {
    let body = r#"{"prompt": "x", "max_tokens": 2, "temperature": 0, "ignore_eos": true}"#;
    let client = reqwest::blocking::Client::new();
    let sent = client.post(format!("{url}/v1/completions")).body(body);
    sent.timeout(PATIENCE)
        .send()
        .expect("an answer")
        .status()
        .as_u16()
}

#[test]
fn a_node_whose_certificate_ended_comes_back_with_a_new_one_by_itself() {
    let dir = TestFolder::new();
    let authority = Authority::new(&dir);
    let coordinator = authority.issue(&dir, "coordinator", Duration::from_secs(86_400));
    let member = authority.issue(&dir, "node", SHORT);
    let ends = SystemTime::now() + SHORT;
    let (node_log, log) = (dir.path("node.log"), dir.path("coordinator.log"));
    let logged = |log: &Path| std::fs::read_to_string(log).expect("a log");
    let model = MODEL.model();
    let serve = [
        "serve",
        "-m",
        text(&model),
        "--listen=127.0.0.1:0",
        "--threads=1",
    ];
    let node = start(NODE, &serve, &member, &node_log);
    let mut words = node.ready.split(&[' ', ':'][..]);
    let port = words
        .find(|word| word.parse::<u16>().is_ok())
        .expect("a port");
    let nodes = format!("127.0.0.1:{port}");
    let to_node = [
        "--nodes",
        nodes.as_str(),
        "--local-fallback=never",
        "--call-timeout=5",
    ];
    let serve = [&serve[..], &to_node[..]].concat();
    let server = start(COORD, &serve, &coordinator, &log);
    let url = server.ready.as_str();
    assert_eq!(ask(url), 200);
    // Said before the end, in the log of the node and in the coordinator's metrics.
    wait_for("the warning", || {
        logged(&node_log).contains("a certificate expires in")
    });
    let end = metric(url, "ds4_node_certificate_expiry_timestamp_seconds").expect("a metric");
    let wanted = ends
        .duration_since(UNIX_EPOCH)
        .expect("a time")
        .as_secs_f64();
    assert!((end - wanted).abs() < 3.0, "{end} instead of {wanted}");
    let own = r#"ds4_certificate_expiry_timestamp_seconds{certificate="coordinator"}"#;
    assert!(metric(url, own).expect("a metric") > wanted + 3600.0);

    wait_for("its end", || logged(&node_log).contains("has expired"));
    assert_eq!(ask(url), 200, "what is open goes on");
    let up = format!("ds4_node_state{{node=\"{nodes}\",state=\"up\"}}");
    let is_up = || metric(url, &up) == Some(1.0);
    node.signal("STOP").expect("stopped");
    wait_for("the loss of the connection", || !is_up());
    node.signal("CONT").expect("it goes on");
    let faults = "ds4_node_certificate_faults_total";
    wait_for("the refusal", || metric(url, faults) > Some(0.0));
    let text = logged(&log);
    let why = "its certificate has expired: it was valid until";
    assert!(
        text.contains("until a certificate is replaced") && text.contains(why),
        "{text}"
    );
    let told = text.matches(why).count();
    assert_eq!(told, 1, "once for all attempts: {text}");

    authority.issue(&dir, "node", Duration::from_secs(86_400));
    wait_for("its return", is_up);
    assert_eq!(ask(url), 200);
    let end = metric(url, "ds4_node_certificate_expiry_timestamp_seconds").expect("a metric");
    assert!(end > wanted + 3600.0, "the new one is seen: {end}");
}
