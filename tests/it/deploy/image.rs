//! Checks the image against the workspace and the pods.

use std::collections::BTreeSet;

use super::flags::programs;
use super::manifests::{Base, number, read, text};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The instructions of the Dockerfile, each as a list of words.
fn instructions() -> Vec<Vec<String>> {
    let text = read("Dockerfile");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    let lines = text.lines().map(words);
    lines
        .filter(|words: &Vec<String>| !words.is_empty())
        .collect()
}

/// The words after each instruction of this name.
fn all(name: &str) -> Vec<Vec<String>> {
    let lines = instructions().into_iter();
    let lines = lines.filter(|words| words[0] == name);
    lines.map(|words| words[1..].to_vec()).collect()
}

/// The words after the only instruction of this name.
fn only(name: &str) -> Vec<String> {
    let mut found = all(name);
    assert_eq!(found.len(), 1, "{name}");
    found.remove(0)
}

fn names() -> BTreeSet<String> {
    let names = programs();
    names.iter().map(|p| p.get_name().to_owned()).collect()
}

#[test]
fn the_image_has_the_programs_of_the_workspace() {
    let built = only("RUN");
    let built = built.windows(2).filter(|pair| pair[0] == "--bin");
    let built: BTreeSet<String> = built.map(|pair| pair[1].clone()).collect();
    assert_eq!(built, names());
    let copies = all("COPY");
    let copied = copies.last().expect("a copy");
    assert_eq!(copied[0], "--from=build");
    let (to, from) = copied[1..].split_last().expect("words");
    let from = from.iter().map(|path| path.strip_prefix("/out/"));
    let from: BTreeSet<String> = from.map(|name| name.expect("/out/").to_owned()).collect();
    assert_eq!(from, names());
    let path = all("ENV").into_iter().flatten();
    let path: Vec<String> = path.filter(|word| word.starts_with("PATH=")).collect();
    assert_eq!(path, [format!("PATH={}", to.trim_end_matches('/'))]);
    for (crate_name, manifest) in [
        (
            "coordinator",
            include_str!("../../../coordinator/Cargo.toml"),
        ),
        (
            "expert-node",
            include_str!("../../../expert-node/Cargo.toml"),
        ),
    ] {
        let named = |name: &String| manifest.contains(&format!("[[bin]]\nname = \"{name}\""));
        assert!(names().iter().any(named), "{crate_name}");
    }
}

#[test]
fn base_images_are_of_one_version_and_the_toolchain_is_the_projects() {
    let froms = all("FROM");
    let [build, last] = &froms[..] else {
        panic!("{froms:?}");
    };
    assert_eq!(last[..], ["scratch"]);
    let toolchain = include_str!("../../../rust-toolchain.toml");
    let channel = toolchain.split('"').nth(1).expect("channel");
    let image = &build[0];
    assert!(image.contains(&format!("rust:{channel}-")), "{image}");
    let environment: Vec<String> = all("ENV").into_iter().flatten().collect();
    assert!(environment.contains(&format!("RUSTUP_TOOLCHAIN={channel}")));
}

#[test]
fn pods_run_the_image_as_it_says() {
    let base = Base::load();
    let mut ports = BTreeSet::new();
    for workload in base.workloads() {
        let container = workload.container();
        assert_eq!(text(&container["image"]), format!("ds4:{VERSION}"));
        assert!(names().contains(workload.program()));
        let user = number(&workload.pod()["securityContext"]["runAsUser"]);
        assert_eq!(only("USER"), [format!("{user}:{user}")]);
        ports.extend(workload.ports().into_values().map(|port| port.to_string()));
    }
    assert_eq!(only("EXPOSE").into_iter().collect::<BTreeSet<_>>(), ports);
    assert_eq!(only("STOPSIGNAL"), ["SIGTERM"]);
    let label = format!("org.opencontainers.image.version=\"{VERSION}\"");
    assert!(only("LABEL").contains(&label));
    let readme = read("README.md");
    assert!(readme.contains(&format!("ds4:{VERSION}")), "the README");
}
