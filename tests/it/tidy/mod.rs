//! ARCHITECTURE.md against the sources: its tables of modules are the rules that hold here.

mod source;

use std::collections::{BTreeMap, BTreeSet};

use source::{Source, local_paths, root, sources};

/// The most lines of a function.
const LONGEST_FUNCTION: usize = 90;

/// Where `unsafe` may stand.
const UNSAFE: [&str; 3] = [
    "common/src/kernels/",
    "common/src/gguf/mmap.rs",
    "common/src/gguf/mmap/bus_error.rs",
];

/// Libraries whose use the map states, module by module.
const WATCHED: [&str; 11] = [
    "anyhow",
    "axum",
    "clap",
    "ds4_cli",
    "ds4_common",
    "ds4_expert_node",
    "ds4_proto",
    "hyper",
    "rayon",
    "tokio",
    "tonic",
];

/// What ARCHITECTURE.md says of a module: what it imports of its own crate, and of `WATCHED`.
type Row = (String, BTreeSet<String>, BTreeSet<String>);

/// The section of the map below the heading "### `folder`".
fn section_of(folder: &str) -> String {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map");
    let heading = format!("### `{folder}`");
    let section = text
        .split(&heading)
        .nth(1)
        .unwrap_or_else(|| panic!("no section {heading}"));
    section.split("\n#").next().unwrap_or_default().to_owned()
}

/// The words in backquotes.
fn words(text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// The rows of a section's table, in order.
fn map_of(folder: &str) -> Vec<Row> {
    let section = section_of(folder);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|line| {
        let cells: Vec<&str> = line.split('|').collect();
        let [_, module, _, imports, libraries, _] = cells[..] else {
            panic!("{folder}: not four cells: {line}");
        };
        let module = words(module).pop_first().expect("a module");
        (module, words(imports), words(libraries))
    });
    rows.collect()
}

const CRATES: [&str; 5] = [
    "common/src",
    "common/cli/src",
    "proto/src",
    "expert-node/src",
    "coordinator/src",
];

/// The module of a crate that a file belongs to.
fn top(source: &Source) -> &str {
    source.module.first().map_or("lib", String::as_str)
}

#[test]
fn every_module_imports_what_the_map_says_and_only_what_stands_below_it() {
    let mut faults = Vec::new();
    for folder in CRATES {
        let mut found: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
        let sources = sources(folder);
        let modules: BTreeSet<&str> = sources.iter().map(top).collect();
        let shipped = |source: &&Source| !source.test && top(source) != "lib";
        for source in sources.iter().filter(shipped) {
            let (imports, libraries) = found.entry(top(source).to_owned()).or_default();
            let paths = local_paths(&source.module, &source.code);
            let others = paths.into_iter().filter_map(|path| path.into_iter().next());
            imports.extend(others.filter(|m| modules.contains(&m[..]) && m != top(source)));
            let used = |library: &&&str| source.code.contains(&format!("{library}::"));
            libraries.extend(
                WATCHED
                    .iter()
                    .filter(used)
                    .map(|&library| library.to_owned()),
            );
        }
        let map = map_of(folder);
        for (at, (module, imports, libraries)) in map.iter().enumerate() {
            let below: BTreeSet<_> = map[at + 1..].iter().map(|row| row.0.clone()).collect();
            for import in imports.difference(&below) {
                faults.push(format!(
                    "the map of {folder}: {import} does not stand below {module}"
                ));
            }
            match found.remove(module) {
                None => faults.push(format!("the map of {folder}: there is no module {module}")),
                Some(real) if real != (imports.clone(), libraries.clone()) => faults.push(format!(
                    "{folder}/{module} uses {real:?}, and the map says {:?}",
                    (imports, libraries)
                )),
                Some(_) => {}
            }
        }
        faults.extend(
            found
                .keys()
                .map(|module| format!("{folder}: {module} is not on the map")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_two_modules_import_each_other() {
    for folder in CRATES {
        let sources = sources(folder);
        // Of tests, only what they name of each other: they may stand below what they test.
        let modules: BTreeMap<&[String], bool> =
            sources.iter().map(|s| (&s.module[..], s.test)).collect();
        // Between siblings at every depth, with the file that ties them.
        let mut ties: BTreeMap<Vec<String>, BTreeMap<Vec<String>, String>> = BTreeMap::new();
        for source in &sources {
            for path in local_paths(&source.module, &source.code) {
                let known = (1..=path.len())
                    .rev()
                    .find(|&n| modules.get(&path[..n]) == Some(&source.test));
                let target = &path[..known.unwrap_or(0)];
                let shared = source
                    .module
                    .iter()
                    .zip(target)
                    .take_while(|(a, b)| a == b)
                    .count();
                if shared < source.module.len() && shared < target.len() {
                    let from = source.module[..=shared].to_vec();
                    let to = target[..=shared].to_vec();
                    let tie = format!("{} names {}", source.path.display(), path.join("::"));
                    ties.entry(from).or_default().insert(to, tie);
                }
            }
        }
        // A module without remaining imports or importers is not part of a circle.
        loop {
            let before = ties.len();
            let importers: BTreeSet<_> = ties.keys().cloned().collect();
            ties.values_mut()
                .for_each(|to| to.retain(|module, _| importers.contains(module)));
            let imported: BTreeSet<_> = ties.values().flat_map(|to| to.keys().cloned()).collect();
            ties.retain(|module, to| !to.is_empty() && imported.contains(module));
            if ties.len() == before {
                break;
            }
        }
        let circles: Vec<String> = ties.into_values().flat_map(BTreeMap::into_values).collect();
        assert!(
            circles.is_empty(),
            "circles in {folder}:\n{}",
            circles.join("\n")
        );
    }
}

#[test]
fn unsafe_code_stands_in_kernels_and_mapping_alone() {
    for source in CRATES.into_iter().flat_map(sources) {
        let path = source.path.to_string_lossy();
        let words = source
            .code
            .split(|c: char| !c.is_alphanumeric() && c != '_');
        let found = words.filter(|&word| word == "unsafe").count();
        assert!(
            found == 0 || UNSAFE.iter().any(|place| path.starts_with(place)),
            "{path}"
        );
    }
}

#[test]
fn functions_fit_on_a_screen() {
    for source in CRATES.into_iter().flat_map(sources) {
        let lines: Vec<&str> = source.code.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let indent = &line[..line.len() - code.len()];
            let ends = |line: &&str| {
                let rest = line.strip_prefix(indent).unwrap_or_default();
                let whole = rest.ends_with([';', '}']) && !rest.starts_with(' ');
                rest.starts_with('}') || whole
            };
            let length = lines[at..].iter().position(ends).map_or(0, |end| end + 1);
            assert!(
                !(code.starts_with("fn ") || code.contains(" fn ")) || length <= LONGEST_FUNCTION,
                "{}:{}: a function of {length} lines",
                source.path.display(),
                at + 1
            );
        }
    }
}

#[test]
fn a_crate_links_what_the_map_says() {
    for folder in CRATES {
        let path = root().join(folder).with_file_name("Cargo.toml");
        let manifest = std::fs::read_to_string(&path).expect("a manifest");
        let tables = manifest.split("\n[").filter(|table| {
            let name = table.split(']').next().unwrap_or_default();
            name.ends_with("dependencies") && !name.contains("dev-")
        });
        let lines = tables.flat_map(|table| table.lines().skip(1));
        let names = lines.filter_map(|line| line.split(['.', ' ']).next());
        let linked: BTreeSet<String> = names.filter(|n| !n.is_empty()).map(str::to_owned).collect();
        let section = section_of(folder);
        let links = section.split("Links ").nth(1).unwrap_or_default();
        let mapped = words(links.split("\n\n").next().unwrap_or_default());
        assert_eq!(linked, mapped, "what {folder} links, and what the map says");
    }
}

#[test]
fn the_lowest_floor_opens_no_socket() {
    for source in ["common/src", "coordinator/src/engine"]
        .into_iter()
        .flat_map(sources)
    {
        assert!(
            !source.code.contains("std::net"),
            "{}",
            source.path.display()
        );
    }
}
