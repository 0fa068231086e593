//! Slices with the real binaries: cut, verified, pulled and served, by processes that are killed on
//! the way.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ds4_common::slice::{Slice, part_path};
use ds4_tests::golden::Reference;
use ds4_tests::namespace::Namespace;
use ds4_tests::process::{Server, TIMEOUT, resident_kilobytes, run};
use ds4_tests::relay::{Conditions, Relay};
use tempfile::TempDir;

use crate::cluster::{COORD, NODE, logits, start_node};

const MODEL: Reference = Reference("tiny-w");

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// Runs `ds4-coord` and returns its exit code and both outputs.
fn coord(args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(COORD, &[args, &["--log", "error"]].concat()).expect("run");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Cuts the model by `cut` into `folder`.
fn slice(folder: &Path, cut: &[&str]) {
    let model = MODEL.model();
    let args = ["slice", "-m", text(&model), "--out", text(folder)];
    let (code, _, error) = coord(&[&args, cut].concat());
    assert_eq!(code, Some(0), "{error}");
}

fn files(folder: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|i| folder.join(format!("node-{i}.gguf")))
        .collect()
}

#[test]
fn nodes_of_slices_change_no_bit() {
    let direct = logits(MODEL, &["--embedded", "0"]);
    for (cut, count) in [(&["--nodes", "3"], 3), (&["--grid", "2x2"], 4)] {
        let folder = TempDir::new().expect("folder");
        slice(folder.path(), cut);
        let files = files(folder.path(), count);
        let nodes: Vec<_> = files
            .iter()
            .map(|file| start_node(&["--slice", text(file), "--listen=127.0.0.1:0", "--verify"]))
            .collect();
        let names: Vec<&str> = nodes.iter().map(|(_, address)| address.as_str()).collect();
        assert!(
            logits(MODEL, &["--nodes", &names.join(",")]) == direct,
            "{cut:?}"
        );
        for ((node, _), file) in nodes.iter().zip(&files) {
            let resident = resident_kilobytes(node.id(), file).expect("smaps");
            let slice = Slice::open(file).expect("slice");
            let bytes = slice.head().file_bytes();
            // Only the node's own file is in memory, rounded up to whole pages.
            assert!(resident <= bytes.div_ceil(1024) + 64, "{resident} {bytes}");
            let model = resident_kilobytes(node.id(), &MODEL.model()).expect("smaps");
            assert_eq!(model, 0);
        }
    }
}

#[test]
fn a_corrupt_tensor_is_named_and_not_served() {
    let folder = TempDir::new().expect("folder");
    slice(folder.path(), &["--nodes", "2"]);
    let files = files(folder.path(), 2);
    let all = ["verify", text(&files[0]), text(&files[1])];
    let (code, out, _) = coord(&all);
    assert_eq!(code, Some(0), "{out}");

    let head = Slice::open(&files[1]).expect("slice").head().clone();
    let victim = &head.tensors()[4];
    let mut bytes = std::fs::read(&files[1]).expect("file");
    bytes[(victim.offset + 17) as usize] ^= 4;
    std::fs::write(&files[1], &bytes).expect("file");
    let (code, out, error) = coord(&all);
    assert_eq!(code, Some(1));
    assert!(out.contains(&victim.name), "{out}");
    assert_eq!(out.lines().count(), 2, "{out}");
    assert!(error.contains("1 of 2"), "{error}");
    let serve = ["serve", "--verify", "--listen=127.0.0.1:0", "--log=off"];
    let node = run(NODE, &[&serve[..], &["--slice", text(&files[1])]].concat()).expect("run");
    let error = String::from_utf8_lossy(&node.stderr);
    assert_eq!(node.status.code(), Some(1));
    assert!(error.contains(&victim.name), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");

    std::fs::write(&files[1], &bytes[..bytes.len() - 5]).expect("file");
    let (code, out, _) = coord(&all);
    assert_eq!(code, Some(1));
    assert!(out.contains("bytes") && out.contains("node-1"), "{out}");

    let other = Reference("tiny-a").model();
    let (code, out, _) = coord(&["verify", text(&files[0]), "-m", text(&other)]);
    assert_eq!(code, Some(1));
    assert!(out.contains("is a slice of the model"), "{out}");
}

#[test]
fn existing_slices_are_kept_and_other_files_are_named() {
    let folder = TempDir::new().expect("folder");
    let model = MODEL.model();
    let cut = |cut: &[&str]| {
        let args = ["slice", "-m", text(&model), "--out", text(folder.path())];
        coord(&[&args, cut].concat())
    };
    assert_eq!(cut(&["--nodes", "2", "--node", "node-1"]).0, Some(0));
    assert!(!folder.path().join("node-0.gguf").exists());
    let (code, out, _) = cut(&["--nodes", "2"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("node-1.gguf: already exists"), "{out}");
    let (code, _, error) = cut(&["--nodes", "4"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("--force"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!folder.path().join("node-3.gguf").exists(), "nothing yet");
    assert_eq!(cut(&["--nodes", "4", "--force"]).0, Some(0));
    let (_, out, _) = coord(&["inspect", text(&folder.path().join("node-3.gguf"))]);
    assert!(out.contains("blocks 6..8"), "{out}");
    let (code, _, error) = cut(&["--nodes", "2", "--node", "nobody"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("node-0, node-1"), "{error}");
}

/// A process that is killed at the end of the test at the latest.
struct Killed(Child);

impl Killed {
    fn start(program: &str, args: &[&str]) -> Self {
        let child = Command::new(program)
            .args(args)
            .env("DS4_LOG", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Killed(child.expect("spawn"))
    }

    /// Sends SIGKILL.
    fn kill(mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn slicing_resumes_after_being_killed() {
    let straight = TempDir::new().expect("folder");
    slice(straight.path(), &["--nodes", "2"]);
    let folder = TempDir::new().expect("folder");
    let model = MODEL.model();
    let args = [
        "slice",
        "-m",
        text(&model),
        "--out",
        text(folder.path()),
        "--nodes=2",
    ];
    for wait in [20, 35, 50, 65] {
        let slicing = Killed::start(COORD, &args);
        std::thread::sleep(Duration::from_millis(wait));
        slicing.kill();
    }
    slice(folder.path(), &["--nodes", "2"]);
    for (a, b) in files(straight.path(), 2)
        .iter()
        .zip(files(folder.path(), 2))
    {
        assert!(std::fs::read(a).expect("file") == std::fs::read(b).expect("file"));
    }
}

/// A relay to `target` without any conditions.
fn relay(target: SocketAddr) -> Relay {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let relay = Relay::start(&Namespace::Current, any, target, Conditions::default(), 0);
    relay.expect("relay")
}

/// Waits for `done`; panics with `what` after [`TIMEOUT`].
fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many tensors of an unfinished slice have their hashes.
fn tensors_there(path: &Path) -> usize {
    let bytes = std::fs::read(part_path(path)).unwrap_or_default();
    let length = bytes.len() as u64;
    ds4_common::slice::SliceHead::parse(path.to_path_buf(), &bytes, length).map_or(0, |head| {
        head.tensors().iter().filter(|t| t.hash.is_some()).count()
    })
}

#[test]
fn a_node_that_is_killed_while_it_pulls_ends_with_the_same_file() {
    let straight = TempDir::new().expect("folder");
    slice(straight.path(), &["--nodes", "2"]);
    let want = std::fs::read(straight.path().join("node-1.gguf")).expect("file");

    let model = MODEL.model();
    let share = [
        "share",
        "-m",
        text(&model),
        "--nodes=2",
        "--listen=127.0.0.1:0",
    ];
    let share = Server::start(COORD, &share).expect("share");
    let source = share.ready.split(' ').nth(2).expect("an address");
    let source: SocketAddr = source.parse().expect("an address");
    let folder = TempDir::new().expect("folder");
    let path = folder.path().join("node-1.gguf");
    let join = |coordinator: &str| {
        [
            "serve".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            "--name=node-1".to_owned(),
            format!("--data-dir={}", text(folder.path())),
            format!("--join={coordinator}"),
        ]
    };
    // It is killed in the middle, twice, a little further each time.
    let total = want.len() as u64;
    for fifths in [2, 1] {
        let before = tensors_there(&path);
        let allowed = total * fifths / 5;
        let relay = relay(source);
        relay.limit_replies(allowed);
        let args = join(&relay.address().to_string());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let node = Killed::start(NODE, &args);
        until("the relay passes what is allowed", || {
            relay.passed()[1] >= allowed
        });
        until("tensors are there", || tensors_there(&path) > before);
        node.kill();
        assert!(!path.exists());
    }
    let there = tensors_there(&path);
    // The rest comes through a relay that counts.
    let relay = relay(source);
    let args = join(&relay.address().to_string());
    let args: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    let (node, address) = start_node(&args);
    assert!(std::fs::read(&path).expect("file") == want);
    assert!(
        relay.passed()[1] < total * 5 / 6,
        "{there} tensors came again"
    );
    drop(node);

    // A node that has its slice needs no coordinator.
    drop(share);
    let (_again, again) = start_node(&args);
    let other = straight.path().join("node-0.gguf");
    let (_other, other) = start_node(&["--slice", text(&other), "--listen=127.0.0.1:0"]);
    assert_ne!(address, other);
    let found = logits(MODEL, &["--nodes", &format!("{again},{other}")]);
    assert!(found == logits(MODEL, &["--embedded", "0"]));
}

/// A port that was free a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    listener.local_addr().expect("address").to_string()
}

#[test]
fn a_coordinator_gives_its_own_nodes_their_slices() {
    let [join, first, second] = std::array::from_fn(|_| free_address());
    let folder = TempDir::new().expect("folder");
    let model = MODEL.model();
    let nodes = format!("{first},{second}");
    let coordinator = [
        "serve",
        "-m",
        text(&model),
        "--listen=127.0.0.1:0",
        "--nodes",
        &nodes,
        "--join-listen",
        &join,
        "--join-nodes=2",
    ];
    let (coordinator, started) = std::thread::scope(|scope| {
        let node = |name: &'static str, listen: &str| {
            let listen = format!("--listen={listen}");
            let folder = format!("--data-dir={}", text(folder.path()));
            let join = format!("--join={join}");
            scope.spawn(move || start_node(&[&listen, &folder, &join, "--name", name]))
        };
        let nodes = [node("expert-0", &first), node("expert-1", &second)];
        let coordinator = Server::start(COORD, &coordinator).expect("coordinator");
        (coordinator, nodes.map(|n| n.join().expect("node")))
    });
    for name in ["expert-0.gguf", "expert-1.gguf"] {
        assert!(Slice::open(&folder.path().join(name)).is_ok());
    }
    let metrics = format!("{}/metrics", coordinator.ready);
    let text = reqwest::blocking::get(metrics).expect("metrics").text();
    let text = text.expect("text");
    let sent = "ds4_slice_sent_ratio{node=\"node-1\"} 1";
    assert!(text.contains(sent), "{text}");
    drop(started);
}
