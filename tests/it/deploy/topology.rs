//! The base as processes: every pod on a machine of its own, with the flags, variables, names,
//! volumes and certificates that it has in a cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ds4_tests::golden::Reference;
use ds4_tests::process::{PATIENCE, Server};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::certificates;
use super::machines::{Namespace, Network, obstacle};
use super::manifests::{Base, Workload, text};
use super::names::{NameServer, of_pod};
use crate::cluster::{COORD, NODE};

const MODEL: Reference = Reference("tiny-w");

/// A pod's process, then the machine that it is on.
struct Pod {
    server: Server,
    machine: Namespace,
    address: String,
}

impl Pod {
    fn stop(mut self) -> Result<()> {
        let status = self.server.stop()?;
        ensure!(status.success(), "{}: {status}", self.machine.name);
        Ok(())
    }
}

/// The part of Kubernetes that this needs: machines, volumes and names for pods.
struct Cluster {
    base: Base,
    names: NameServer,
    /// Address and names of every pod.
    pods: Mutex<BTreeMap<String, (String, Vec<String>)>>,
    network: Network,
    volumes: TempDir,
}

impl Cluster {
    fn new() -> Result<Self> {
        let network = Network::new()?;
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

    /// The folder of a volume of a pod, which outlives the pod if it is a claim.
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

    /// `text` with the paths of this machine in place of those of the container.
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

    /// Starts a pod on a new machine and waits for it to be ready. Its names are known before.
    fn start(&self, workload: &Workload, pod: &str) -> Result<Pod> {
        let (machine, address) = self.network.machine()?;
        let names = of_pod(&self.base, workload, pod);
        let known = (address.clone(), names);
        self.tell_names(|pods| drop(pods.insert(pod.to_owned(), known)))?;
        let program = match workload.program() {
            "ds4-coord" => COORD,
            _ => NODE,
        };
        let mut words = vec!["env".to_owned()];
        for (name, value) in workload.variables(pod) {
            words.push(format!("{name}={}", self.localise(workload, pod, &value)?));
        }
        words.push(program.to_owned());
        for arg in workload.args() {
            words.push(self.localise(workload, pod, &arg)?);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let server = Server::start("ip", &machine.command(&words));
        let server = server.with_context(|| pod.to_owned())?;
        Ok(Pod {
            server,
            machine,
            address,
        })
    }

    /// Puts the model where the coordinator has it, as whoever sets a cluster up does.
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

    /// All pods at once, since nobody is ready without the others: the coordinator, and `count`
    /// nodes by number.
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

    /// The pod's names are gone, as when it is being deleted.
    fn forget(&self, pod: &str) -> Result<()> {
        self.tell_names(|pods| drop(pods.remove(pod)))
    }
}

/// Does `work` on a thread that is in the namespace.
fn inside<T: Send>(machine: &Namespace, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let entered = || {
        let file = File::open(format!("/run/netns/{}", machine.name))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(entered).join();
        done.map_err(|_| anyhow!("a panic"))?
    })
}

/// Requests to a coordinator, from its own machine or from this one.
struct Client<'p> {
    machine: Option<&'p Namespace>,
    url: String,
}

impl Client<'_> {
    fn send(&self, path: &str, body: Option<Value>) -> Result<Value> {
        let work = || {
            let client = reqwest::blocking::Client::builder()
                .timeout(PATIENCE)
                .no_proxy()
                .build()?;
            let url = format!("{}{path}", self.url);
            let request = match body {
                Some(body) => client.post(url).json(&body),
                None => client.get(url),
            };
            Ok(request.send()?.error_for_status()?.json()?)
        };
        match self.machine {
            Some(machine) => inside(machine, work),
            None => work(),
        }
    }

    /// What the model says, always the same.
    fn complete(&self) -> Result<String> {
        let body = json!({
            "prompt": "The cluster that loses a node", "max_tokens": 48, "temperature": 0,
        });
        let answer = self.send("/v1/completions", Some(body))?;
        let text = answer.pointer("/choices/0/text").and_then(Value::as_str);
        Ok(text.context("no text")?.to_owned())
    }

    /// Waits until the coordinator counts this many nodes, all of them up.
    fn wait_for_nodes(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nodes = self.send("/health", None)?["nodes"].take();
            if nodes == json!({"up": count, "total": count}) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{nodes} instead of {count}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The text of one process with no nodes at all.
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
        machine: None,
        url: server.ready.clone(),
    };
    client.complete()
}

/// As a kubelet asks, without a certificate.
fn serving(pod: &Pod, port: u64) -> Result<()> {
    inside(&pod.machine, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let asked = async {
            let address = format!("http://{}:{port}", pod.address);
            let channel = Endpoint::from_shared(address)?.connect().await?;
            let mut client = HealthClient::new(channel);
            let service = String::new();
            let reply = client.check(HealthCheckRequest { service }).await?;
            anyhow::Ok(reply.into_inner().status())
        };
        let status = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await })??;
        ensure!(status == ServingStatus::Serving, "{status:?}");
        Ok(())
    })
}

#[test]
fn the_base_serves_while_nodes_come_and_go() {
    if let Some(reason) = obstacle() {
        eprintln!("skipped: the topology of deploy/base as processes: {reason}");
        return;
    }
    let cluster = Cluster::new().expect("network");
    let (coordinator, experts) = (cluster.base.coordinator(), cluster.base.experts());
    let count = experts.replicas();
    let name = |number: usize| format!("{}-{number}", experts.name());

    let (coord, mut nodes) = cluster.start_all(count, &name).expect("all pods");
    let port = coordinator.ports()["http"];
    let client = Client {
        machine: Some(&coord.machine),
        url: format!("http://{}:{port}", coord.address),
    };
    let expected = alone().expect("the text");
    client.wait_for_nodes(count).expect("all nodes");
    assert_eq!(client.complete().expect("all nodes"), expected);
    for node in nodes.values() {
        serving(node, experts.ports()["health"]).expect("health");
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

    // Scaled down and up again.
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
