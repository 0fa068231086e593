//! The manifests of `deploy/base` as data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

/// A file under `deploy/`.
pub(super) fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).join(name)
}

pub(super) fn read(name: &str) -> String {
    let path = file(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// One Kubernetes object.
#[derive(Clone, Debug)]
pub(super) struct Object(pub(super) Value);

impl Object {
    pub(super) fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    pub(super) fn kind(&self) -> &str {
        text(self.at("/kind"))
    }

    pub(super) fn name(&self) -> &str {
        text(self.at("/metadata/name"))
    }
}

/// The text of a value that must be one.
pub(super) fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not a text"))
}

/// The number of a value that must be one.
pub(super) fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is not a number"))
}

/// The items of a list; none if the value is missing.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// All objects that the base creates.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) objects: Vec<Object>,
}

impl Base {
    pub(super) fn load() -> Self {
        let kustomization = documents("base/kustomization.yaml").remove(0);
        let files = items(&kustomization["resources"]).iter().map(text);
        let objects = files.flat_map(|name| documents(&format!("base/{name}")));
        Base {
            objects: objects.map(Object).collect(),
        }
    }

    pub(super) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |o| o.kind() == kind)
    }

    pub(super) fn find(&self, kind: &str, name: &str) -> Option<&Object> {
        let mut objects = self.objects.iter();
        objects.find(|object| object.kind() == kind && object.name() == name)
    }

    /// The pods: coordinator, then expert nodes.
    pub(super) fn workloads(&self) -> [Workload; 2] {
        [self.coordinator(), self.experts()]
    }

    pub(super) fn coordinator(&self) -> Workload {
        Workload(self.of_kind("Deployment").next().expect("one").clone())
    }

    pub(super) fn experts(&self) -> Workload {
        Workload(self.of_kind("StatefulSet").next().expect("one").clone())
    }

    /// The Services that select the pods of `workload`.
    pub(super) fn services_of(&self, workload: &Workload) -> Vec<&Object> {
        let chosen = |service: &&Object| selects(service.at("/spec/selector"), workload);
        self.of_kind("Service").filter(chosen).collect()
    }
}

/// Whether the pods have all labels of a selector.
pub(super) fn selects(selector: &Value, workload: &Workload) -> bool {
    let labels = workload.0.at("/spec/template/metadata/labels");
    let wanted = selector.as_object().expect("labels");
    !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value)
}

/// A Deployment or StatefulSet.
#[derive(Clone, Debug)]
pub(super) struct Workload(pub(super) Object);

impl Workload {
    pub(super) fn name(&self) -> &str {
        self.0.name()
    }

    pub(super) fn replicas(&self) -> usize {
        number(self.0.at("/spec/replicas")) as usize
    }

    pub(super) fn pod(&self) -> &Value {
        self.0.at("/spec/template/spec")
    }

    /// The only container.
    pub(super) fn container(&self) -> &Value {
        let containers = items(&self.pod()["containers"]);
        assert_eq!(containers.len(), 1, "{}", self.name());
        &containers[0]
    }

    pub(super) fn program(&self) -> &str {
        let command = items(&self.container()["command"]);
        assert_eq!(command.len(), 1, "{}", self.name());
        text(&command[0])
    }

    pub(super) fn args(&self) -> Vec<String> {
        let args = items(&self.container()["args"]).iter();
        args.map(|arg| text(arg).to_owned()).collect()
    }

    /// The environment variables of the pod called `pod`.
    pub(super) fn variables(&self, pod: &str) -> Vec<(String, String)> {
        let variable = |entry: &Value| {
            let value = match entry.pointer("/valueFrom/fieldRef/fieldPath") {
                Some(path) => {
                    assert_eq!(path, "metadata.name", "another field of the pod");
                    pod.to_owned()
                }
                None => text(&entry["value"]).to_owned(),
            };
            (text(&entry["name"]).to_owned(), value)
        };
        items(&self.container()["env"])
            .iter()
            .map(variable)
            .collect()
    }

    /// Ports by name.
    pub(super) fn ports(&self) -> BTreeMap<String, u64> {
        let ports = items(&self.container()["ports"]).iter();
        let port = |p: &Value| (text(&p["name"]).to_owned(), number(&p["containerPort"]));
        ports.map(port).collect()
    }

    /// The folder where each volume is mounted, and the volume's name.
    pub(super) fn mounts(&self) -> BTreeMap<String, String> {
        let mounts = items(&self.container()["volumeMounts"]).iter();
        let mount = |m: &Value| {
            let folder = text(&m["mountPath"]).to_owned();
            (folder, text(&m["name"]).to_owned())
        };
        mounts.map(mount).collect()
    }

    /// The pods' volume called `name`, or the claim template of that name.
    pub(super) fn volume(&self, name: &str) -> Option<&Value> {
        let volumes = items(&self.pod()["volumes"]).iter();
        let claims = items(self.0.at("/spec/volumeClaimTemplates")).iter();
        let claims = claims.filter(|claim| claim["metadata"]["name"] == name);
        volumes
            .filter(|volume| volume["name"] == name)
            .chain(claims)
            .next()
    }
}

#[test]
fn the_kustomization_names_every_file_beside_it() {
    let kustomization = documents("base/kustomization.yaml").remove(0);
    let keys: Vec<&String> = kustomization.as_object().expect("a map").keys().collect();
    assert_eq!(
        keys,
        ["apiVersion", "kind", "resources"],
        "the tests know no others"
    );
    let named = items(&kustomization["resources"]).iter();
    let named: BTreeSet<String> = named.map(|name| text(name).to_owned()).collect();
    let there = std::fs::read_dir(file("base")).expect("folder");
    let there = there.map(|entry| entry.expect("entry").file_name().into_string());
    let mut there: BTreeSet<String> = there.map(|name| name.expect("utf-8")).collect();
    assert!(there.remove("kustomization.yaml"));
    assert_eq!(named, there);
}

#[test]
fn every_object_exists_once() {
    let base = Base::load();
    let mut seen = BTreeSet::new();
    for object in &base.objects {
        let id = (object.kind(), object.name());
        assert!(seen.insert(id), "{id:?} is there twice");
        assert!(object.at("/metadata/namespace").is_null(), "{id:?}");
    }
    assert_eq!(base.of_kind("Deployment").count(), 1);
    assert_eq!(base.of_kind("StatefulSet").count(), 1);
}
