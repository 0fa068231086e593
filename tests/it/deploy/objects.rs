//! Checks that the objects fit together: references, ports and time limits.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::flags::serve;
use super::manifests::{Base, Workload, items, number, selects, text};

/// Seconds that connections and processes need beyond the time of their work.
const CLOSING: u64 = 5;

fn listens(workload: &Workload, flag: &str) -> u64 {
    let address = *serve(workload)
        .get_one::<SocketAddr>(flag)
        .unwrap_or_else(|| panic!("{flag} is not given"));
    assert!(address.ip().is_unspecified(), "{flag}: {address}");
    u64::from(address.port())
}

fn seconds(workload: &Workload, flag: &str) -> u64 {
    *serve(workload).get_one::<u64>(flag).expect("seconds")
}

/// The values of a flag as given.
fn given(workload: &Workload, flag: &str) -> Vec<String> {
    let matches = serve(workload);
    let values = matches.get_raw(flag).into_iter().flatten();
    values
        .map(|value| value.to_str().expect("utf-8").to_owned())
        .collect()
}

#[test]
fn ports_are_those_that_the_programs_listen_on() {
    let base = Base::load();
    let coordinator = base.coordinator();
    assert_eq!(coordinator.ports()["http"], listens(&coordinator, "listen"));
    let slices = listens(&coordinator, "join_listen");
    assert_eq!(coordinator.ports()["slices"], slices);
    let experts = base.experts();
    assert_eq!(experts.ports()["experts"], listens(&experts, "listen"));
    let health = listens(&experts, "health_listen");
    assert_eq!(experts.ports()["health"], health);
}

#[test]
fn probes_use_the_health_port() {
    let base = Base::load();
    // Not restarted for what it waits for, and not asked while a request would fail.
    let probes = [
        ("startupProbe", "/health"),
        ("readinessProbe", "/ready"),
        ("livenessProbe", "/live"),
    ];
    let [coordinator, experts] = base.workloads();
    let health = experts.ports()["health"];
    for (probe, path) in probes {
        let asked = &experts.container()[probe];
        assert_eq!(asked["grpc"], json!({"port": health}), "{probe}");
        let asked = &coordinator.container()[probe];
        assert_eq!(asked["httpGet"], json!({"path": path, "port": "http"}));
    }
}

#[test]
fn services_select_pods_and_their_ports() {
    let base = Base::load();
    for service in base.of_kind("Service") {
        let name = service.name();
        let workloads = base.workloads();
        let chosen = |w: &&Workload| selects(service.at("/spec/selector"), w);
        let chosen: Vec<&Workload> = workloads.iter().filter(chosen).collect();
        let [workload] = chosen[..] else {
            panic!("{name} stands for {} workloads", chosen.len());
        };
        for port in items(service.at("/spec/ports")) {
            let target = workload.ports()[text(&port["targetPort"])];
            // A headless Service does not map ports.
            assert_eq!(number(&port["port"]), target, "{name}");
        }
    }
}

/// The Service and the port that a flag's `host:port` refers to.
fn service_of<'b>(base: &'b Base, workload: &Workload, address: &str) -> &'b Value {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let service = base.find("Service", host);
    let service = service.unwrap_or_else(|| panic!("no Service {host}"));
    assert!(selects(service.at("/spec/selector"), workload), "{host}");
    let port: u64 = port.parse().expect("a number");
    let ports = items(service.at("/spec/ports"));
    let known = ports.iter().any(|p| p["port"] == port);
    assert!(known, "{address}");
    service.at("/spec")
}

#[test]
fn coordinator_and_nodes_find_each_other() {
    let base = Base::load();
    let (coordinator, experts) = (base.coordinator(), base.experts());
    let nodes = given(&coordinator, "nodes");
    let name = nodes[0].strip_prefix("dns:").expect("a name");
    let spec = service_of(&base, &experts, name);
    assert_eq!((nodes.len(), &spec["clusterIP"]), (1, &json!("None")));
    assert_eq!(spec["publishNotReadyAddresses"], true);
    let named = experts.0.at("/spec/serviceName");
    assert_eq!(name.rsplit_once(':').expect("port").0, text(named));
    let join = &given(&experts, "join")[0];
    let spec = service_of(&base, &coordinator, join);
    // Otherwise the two would wait for each other.
    assert_eq!(spec["publishNotReadyAddresses"], true);
    assert_eq!(experts.0.at("/spec/podManagementPolicy"), "Parallel");
}

#[test]
fn every_node_has_a_slice_to_pull() {
    let base = Base::load();
    let shares = *serve(&base.coordinator())
        .get_one::<u32>("join_nodes")
        .expect("a number");
    let experts = base.experts();
    assert_eq!(shares as usize, experts.replicas());
    assert_eq!(given(&experts, "name"), [format!("{}-0", experts.name())]);
}

#[test]
fn files_are_on_volumes() {
    let base = Base::load();
    for workload in base.workloads() {
        for flag in ["model", "data_dir", "tls_ca", "tls_cert", "tls_key"] {
            let matches = serve(&workload);
            let values = matches.try_get_many::<PathBuf>(flag).ok().flatten();
            for path in values.into_iter().flatten() {
                let mounts = workload.mounts();
                let on = |mount: &&String| path.starts_with(mount);
                assert!(mounts.keys().any(|m| on(&m)), "{}", path.display());
            }
        }
        for (mount, volume) in workload.mounts() {
            assert!(Path::new(&mount).is_absolute());
            let volume = workload.volume(&volume);
            let volume = volume.unwrap_or_else(|| panic!("{mount}: no volume"));
            if let Some(claim) = volume.pointer("/persistentVolumeClaim/claimName") {
                let claim = text(claim);
                assert!(base.find("PersistentVolumeClaim", claim).is_some());
            }
        }
        let used: Vec<String> = workload.mounts().into_values().collect();
        for volume in items(&workload.pod()["volumes"]) {
            assert!(used.iter().any(|name| volume["name"] == name.as_str()));
        }
    }
}

#[test]
fn pods_have_the_time_that_the_programs_take_to_stop() {
    let base = Base::load();
    for (workload, flag) in [
        (base.coordinator(), "grace"),
        (base.experts(), "drain_timeout"),
    ] {
        let pause = workload.container();
        let pause = pause.pointer("/lifecycle/preStop/sleep/seconds");
        let work = seconds(&workload, flag) + pause.map_or(0, number);
        let given = number(&workload.pod()["terminationGracePeriodSeconds"]);
        assert!(given >= work + CLOSING, "{}: {given} s", workload.name());
    }
}

/// Seconds after which a container that has not started is killed.
fn startup(workload: &Workload) -> u64 {
    let probe = &workload.container()["startupProbe"];
    number(&probe["periodSeconds"]) * number(&probe["failureThreshold"])
}

#[test]
fn pods_have_the_time_that_slices_take() {
    let base = Base::load();
    let coordinator = base.coordinator();
    let waits = seconds(&coordinator, "wait_for_nodes");
    let (own, nodes) = (startup(&coordinator), startup(&base.experts()));
    // The program gives up before the probe, because only the program reports why.
    assert!(own >= waits + 60, "{own} s, {waits} s");
    assert!(nodes >= waits, "{nodes} s, {waits} s");
    let progress = number(coordinator.0.at("/spec/progressDeadlineSeconds"));
    assert!(progress > own, "{progress} s, {own} s");
    assert!(seconds(&base.experts(), "join_timeout") <= nodes);
}

#[test]
fn pods_have_no_privileges() {
    for workload in Base::load().workloads() {
        let pod = workload.pod();
        let security = &pod["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(security["fsGroup"], security["runAsGroup"]);
        let container = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(workload.container()["securityContext"], container);
        assert_eq!(pod["automountServiceAccountToken"], false);
        // Variables of a Service (DS4_…) must not be mistaken for those of a flag.
        assert_eq!(pod["enableServiceLinks"], false);
        for volume in items(&pod["volumes"]) {
            if volume.get("secret").is_some() {
                assert_eq!(volume["secret"]["defaultMode"], 0o440);
            }
        }
        let resources = &workload.container()["resources"];
        assert_eq!(resources["requests"], resources["limits"]);
    }
}

#[test]
fn selectors_choose_their_own_pods() {
    let base = Base::load();
    for workload in base.workloads() {
        assert!(selects(
            workload.0.at("/spec/selector/matchLabels"),
            &workload
        ));
        let own = selects_only(&base, &workload);
        for kind in ["PodDisruptionBudget", "NetworkPolicy"] {
            for object in base.of_kind(kind).filter(|o| o.name() == workload.name()) {
                let pods = match kind {
                    "NetworkPolicy" => object.at("/spec/podSelector/matchLabels"),
                    _ => object.at("/spec/selector/matchLabels"),
                };
                assert!(own(pods), "{kind} {}", object.name());
            }
        }
    }
}

/// Whether a selector matches this workload and no other.
fn selects_only<'b>(base: &'b Base, workload: &'b Workload) -> impl Fn(&Value) -> bool + 'b {
    move |selector| {
        let workloads = base.workloads();
        let mut chosen = workloads.iter().filter(|w| selects(selector, w));
        chosen.next().is_some_and(|w| w.name() == workload.name()) && chosen.next().is_none()
    }
}

#[test]
fn network_policies_let_the_cluster_talk() {
    let base = Base::load();
    let (coordinator, experts) = (base.coordinator(), base.experts());
    let lets_in = |to: &Workload, port: &str, from: Option<&Workload>| {
        let policy = base.find("NetworkPolicy", to.name()).expect("a policy");
        assert!(to.ports().contains_key(port));
        items(policy.at("/spec/ingress")).iter().any(|rule| {
            let opens = items(&rule["ports"]).iter().any(|p| p["port"] == port);
            let peer = rule.pointer("/from/0/podSelector/matchLabels");
            opens
                && match (from, peer) {
                    (Some(from), Some(peer)) => selects_only(&base, from)(peer),
                    (None, None) => true,
                    _ => false,
                }
        })
    };
    assert!(lets_in(&coordinator, "http", None));
    assert!(lets_in(&coordinator, "slices", Some(&experts)));
    assert!(lets_in(&experts, "experts", Some(&coordinator)));
}
