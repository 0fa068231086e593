//! `deploy/base` as processes: every pod on a machine of its own, with the flags, variables, names,
//! volumes and certificates that it has in a cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ds4_tests::golden::Reference;
use ds4_tests::namespace::{Machine, Namespace, Network};
use ds4_tests::process::{Server, TIMEOUT};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::certificates;
use super::manifests::{Base, Workload, text};
use super::names::{NameServer, network, obstacle, of_pod};
use crate::cluster::{COORD, NODE};

const MODEL: Reference = Reference("tiny-w");

/// A pod's process and its machine, which must be dropped in this order.
struct Pod {
    server: Server,
    machine: Machine,
}

impl Pod {
    fn stop(mut self) -> Result<()> {
        let status = self.server.stop()?;
        ensure!(status.success(), "{}: {status}", self.machine.name());
        Ok(())
    }
}

/// The parts of Kubernetes that the base needs: machines, volumes and names for pods.
struct Cluster {
    base: Base,
    names: NameServer,
    /// By pod: its address and its names.
    pods: Mutex<BTreeMap<String, (String, Vec<String>)>>,
    network: Network,
    volumes: TempDir,
}

impl Cluster {
    fn new() -> Result<Self> {
        let network = network()?;
        let volumes = TempDir::new()?;
        certificates::make(volumes.path())?;
        let cluster = Cluster {
            base: Base::load(),
            names: NameServer::start(&network)?,
            pods: Mutex::default(),
            network,
            volumes,
        };
        cluster.bring_model()?;
        Ok(cluster)
    }

    /// The folder of a pod's volume. Folders of secrets and claims outlive the pod.
    fn volume(&self, workload: &Workload, pod: &str, name: &str) -> Result<PathBuf> {
        let volume = workload.volume(name).context("no such volume")?;
        let at = |pointer: &str| volume.pointer(pointer).map(text);
        let folder = match (
            at("/secret/secretName"),
            at("/persistentVolumeClaim/claimName"),
        ) {
            (Some(secret), _) => self.volumes.path().join(secret),
            (_, Some(claim)) => self.volumes.path().join(claim),
            _ => self.volumes.path().join(format!("{name}-{pod}")),
        };
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// `text` with the container's paths replaced by those of this machine.
    fn localise(&self, workload: &Workload, pod: &str, text: &str) -> Result<String> {
        let (flag, value) = match text.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (format!("{flag}="), value),
            _ => (String::new(), text),
        };
        for (mount, volume) in workload.mounts() {
            if let Ok(rest) = Path::new(value).strip_prefix(&mount) {
                let path = self.volume(workload, pod, &volume)?.join(rest);
                return Ok(format!("{flag}{}", path.display()));
            }
        }
        Ok(text.to_owned())
    }

    fn tell_names(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, (String, Vec<String>)>),
    ) -> Result<()> {
        let mut pods = self
            .pods
            .lock()
            .map_err(|_| anyhow!("another pod failed"))?;
        change(&mut pods);
        self.names.tell(
            pods.values()
                .map(|(a, names)| (a.as_str(), names.as_slice())),
        )
    }

    /// Starts a pod on a new machine and waits until it is ready. Its names resolve before it runs.
    fn start(&self, workload: &Workload, pod: &str) -> Result<Pod> {
        let machine = self.network.machine()?;
        let address = machine.address().to_string();
        let names = of_pod(&self.base, workload, pod);
        let known = (address, names);
        self.tell_names(|pods| drop(pods.insert(pod.to_owned(), known)))?;
        let program = match workload.program() {
            "ds4-coord" => COORD,
            _ => NODE,
        };
        let mut command = machine.namespace().command(program);
        for (name, value) in workload.variables(pod) {
            command.env(name, self.localise(workload, pod, &value)?);
        }
        for arg in workload.args() {
            command.arg(self.localise(workload, pod, &arg)?);
        }
        let server = Server::launch(command).with_context(|| pod.to_owned())?;
        Ok(Pod { server, machine })
    }

    /// Puts the model into the coordinator's volume, as the operator of a cluster does.
    fn bring_model(&self) -> Result<()> {
        let coordinator = self.base.coordinator();
        let claim = self.volume(&coordinator, "", "model")?;
        let variables = coordinator.variables("");
        let model = variables.iter().find(|(name, _)| name == "DS4_MODEL");
        let (_, path) = model.context("DS4_MODEL")?;
        let file = Path::new(path).file_name().context("a file")?;
        std::os::unix::fs::symlink(MODEL.model(), claim.join(file))?;
        Ok(())
    }

    /// Starts the coordinator and `count` nodes at once, since none becomes ready without the
    /// others. The nodes are returned by number.
    fn start_all(
        &self,
        count: usize,
        name: &(impl Fn(usize) -> String + Sync),
    ) -> Result<(Pod, BTreeMap<usize, Pod>)> {
        let (coordinator, experts) = (self.base.coordinator(), &self.base.experts());
        std::thread::scope(|scope| {
            let coord = scope.spawn(|| self.start(&coordinator, "ds4-coord-0"));
            let start = |number| scope.spawn(move || self.start(experts, &name(number)));
            let nodes: Vec<_> = (0..count).map(|n| (n, start(n))).collect();
            let joined =
                |(number, node): (usize, std::thread::ScopedJoinHandle<'_, Result<Pod>>)| {
                    let node = node.join().map_err(|_| anyhow!("a panic"))??;
                    anyhow::Ok((number, node))
                };
            let nodes = nodes.into_iter().map(joined).collect::<Result<_>>()?;
            let coord = coord.join().map_err(|_| anyhow!("a panic"))??;
            Ok((coord, nodes))
        })
    }

    /// Removes the pod's names, as while it is being deleted.
    fn forget(&self, pod: &str) -> Result<()> {
        self.tell_names(|pods| drop(pods.remove(pod)))
    }
}

/// Sends requests to a coordinator.
struct Client {
    /// Where the requests come from: the coordinator's machine or the test's.
    from: Namespace,
    url: String,
}

impl Client {
    fn send(&self, path: &str, body: Option<Value>) -> Result<Value> {
        self.from.run(|| {
            let client = reqwest::blocking::Client::builder()
                .timeout(TIMEOUT)
                .no_proxy()
                .build()?;
            let url = format!("{}{path}", self.url);
            let request = match body {
                Some(body) => client.post(url).json(&body),
                None => client.get(url),
            };
            Ok(request.send()?.error_for_status()?.json()?)
        })?
    }

    /// The text of a greedy completion, which is always the same.
    fn complete(&self) -> Result<String> {
        let body = json!({
            "prompt": "The cluster that loses a node", "max_tokens": 48, "temperature": 0,
        });
        let answer = self.send("/v1/completions", Some(body))?;
        let text = answer.pointer("/choices/0/text").and_then(Value::as_str);
        Ok(text.context("no text")?.to_owned())
    }

    /// Waits until the coordinator has exactly `count` nodes and all of them are up.
    fn wait_for_nodes(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let nodes = self.send("/health", None)?["nodes"].take();
            if nodes == json!({"up": count, "total": count}) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{nodes} instead of {count} nodes"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The text that one process without nodes generates.
fn alone() -> Result<String> {
    let model = MODEL.model();
    let model = model.to_str().context("utf-8")?;
    let args = [
        "serve",
        "-m",
        model,
        "--embedded",
        "0",
        "--listen",
        "127.0.0.1:0",
    ];
    let server = Server::start(COORD, &args)?;
    let client = Client {
        from: Namespace::Current,
        url: server.ready.clone(),
    };
    client.complete()
}

/// Probes a pod's health port as a kubelet does, without a certificate.
fn probe(pod: &Pod, port: u64) -> Result<()> {
    pod.machine.namespace().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let asked = async {
            let address = format!("http://{}:{port}", pod.machine.address());
            let channel = Endpoint::from_shared(address)?.connect().await?;
            let mut client = HealthClient::new(channel);
            let service = String::new();
            let reply = client.check(HealthCheckRequest { service }).await?;
            anyhow::Ok(reply.into_inner().status())
        };
        let status = runtime.block_on(async { tokio::time::timeout(TIMEOUT, asked).await })??;
        ensure!(status == ServingStatus::Serving, "{status:?}");
        Ok(())
    })?
}

#[test]
fn the_base_serves_while_nodes_come_and_go() {
    if let Some(reason) = obstacle() {
        println!("skipped: {reason}");
        return;
    }
    let cluster = Cluster::new().expect("network");
    let (coordinator, experts) = (cluster.base.coordinator(), cluster.base.experts());
    let count = experts.replicas();
    let name = |number: usize| format!("{}-{number}", experts.name());

    let (coord, mut nodes) = cluster.start_all(count, &name).expect("all pods");
    let port = coordinator.ports()["http"];
    let client = Client {
        from: coord.machine.namespace(),
        url: format!("http://{}:{port}", coord.machine.address()),
    };
    let expected = alone().expect("the text");
    client.wait_for_nodes(count).expect("all nodes");
    assert_eq!(client.complete().expect("all nodes"), expected);
    for node in nodes.values() {
        probe(node, experts.ports()["health"]).expect("health");
    }

    // A node dies under a request and comes back on another machine, with its volume.
    let lost = nodes.remove(&1).expect("node 1");
    let text = std::thread::scope(|scope| {
        let request = scope.spawn(|| client.complete());
        std::thread::sleep(Duration::from_millis(100));
        drop(lost);
        request.join().expect("no panic")
    });
    assert_eq!(text.expect("with a node less"), expected);
    nodes.insert(1, cluster.start(&experts, &name(1)).expect("node 1"));
    client.wait_for_nodes(count).expect("node 1 again");
    assert_eq!(client.complete().expect("all nodes"), expected);

    // Nodes are scaled down and up again.
    let last = count - 1;
    cluster.forget(&name(last)).expect("names");
    nodes
        .remove(&last)
        .expect("node")
        .stop()
        .expect("a clean end");
    client.wait_for_nodes(last).expect("one node less");
    assert_eq!(client.complete().expect("one node less"), expected);
    nodes.insert(last, cluster.start(&experts, &name(last)).expect("node"));
    client.wait_for_nodes(count).expect("all nodes");
    assert_eq!(client.complete().expect("all nodes"), expected);

    coord.stop().expect("a clean end");
    for node in nodes.into_values() {
        node.stop().expect("a clean end");
    }
}
