//! The sources of a crate as text: its modules, and what each of them names of the others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of a crate, without its tests.
pub(super) struct Source {
    /// From the root of the repository.
    pub(super) path: PathBuf,
    /// `["cluster", "dispatch", "health"]` for `src/cluster/dispatch/health.rs`.
    pub(super) module: Vec<String>,
    /// Only code: comments, literals' contents and unit tests are blanked, lines stay in place.
    pub(super) code: String,
    /// Whether it is compiled for tests alone.
    pub(super) test: bool,
}

/// The files below `folder`, tests and generated code left out.
pub(super) fn sources(folder: &str) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).expect("a folder of sources");
        for entry in entries.map(|entry| entry.expect("an entry").path()) {
            let name = entry.file_stem().expect("a name").to_string_lossy();
            if entry.is_dir() && !["gen", "tests"].contains(&&*name) {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") && name != "tests" {
                found.push(entry);
            }
        }
    }
    found.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a source");
        let path = path.strip_prefix(&root).expect("below the root").to_owned();
        let module = path
            .strip_prefix(folder)
            .expect("below it")
            .with_extension("");
        let mut module: Vec<String> = module.iter().map(|s| s.to_string_lossy().into()).collect();
        module.pop_if(|last| ["mod", "lib"].contains(&last.as_str()));
        Source {
            path,
            module,
            code: code_of(&text),
            test: false,
        }
    };
    let mut sources: Vec<Source> = found.into_iter().map(read).collect();
    let tests: Vec<Vec<String>> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        source.test = tests.iter().any(|test| source.module.starts_with(test));
    }
    sources
}

/// The modules that this one declares for tests alone.
fn test_modules(source: &Source) -> Vec<Vec<String>> {
    let declarations = source.code.split("#[cfg(test)]\nmod ").skip(1);
    let names = declarations.filter_map(|rest| rest.split_once(';'));
    let child = |name: &str| [&source.module[..], &[name.to_owned()]].concat();
    names.map(|(name, _)| child(name)).collect()
}

/// The repository.
pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Blanks comments, the contents of literals and everything from the unit tests on.
fn code_of(text: &str) -> String {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '"' => string_length(rest),
            'r' if rest.starts_with("r#\"") => rest.find("\"#").map_or(rest.len(), |at| at + 2),
            '\'' if rest.starts_with("'\"'") => 3,
            _ => {
                code.push(next);
                rest = &rest[next.len_utf8()..];
                continue;
            }
        };
        code.extend(rest[..length].chars().filter(|&c| c == '\n'));
        rest = &rest[length..];
    }
    code
}

/// Bytes of the string literal that `text` starts with.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |at| at + 2)
}

/// Every path in `code` that starts with `crate::` or `super::`, whole: groups in braces are
/// spread, and each is told from the crate's root for a file of the module `module`.
pub(super) fn local_paths(module: &[String], code: &str) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    for word in ["crate::", "super::"] {
        for (at, _) in code.match_indices(word) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                let mut ends = Vec::new();
                spread(&code[at..], &mut Vec::new(), &mut ends);
                paths.extend(ends.into_iter().map(|path| absolute(module, path)));
            }
        }
    }
    paths
}

/// Reads one path of a tree of paths; adds each of its ends and returns what follows it.
fn spread<'t>(text: &'t str, path: &mut Vec<String>, ends: &mut Vec<Vec<String>>) -> &'t str {
    let text = text.trim_start();
    let depth = path.len();
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.trim_start().starts_with('}') && !rest.is_empty() {
            rest = spread(rest, path, ends).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        return rest.trim_start().strip_prefix('}').unwrap_or(rest);
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (word, mut rest) = text.split_at(end);
    path.push(word.to_owned());
    if let Some(deeper) = rest.strip_prefix("::").filter(|_| !word.is_empty()) {
        rest = spread(deeper, path, ends);
    } else {
        ends.push(path.clone());
        // `as` and `*` end a path too; what follows up to a comma or brace is not read.
        let end = rest.find([',', '}', ';', '\n']).unwrap_or(rest.len());
        rest = &rest[end..];
    }
    path.truncate(depth);
    rest
}

fn absolute(module: &[String], path: Vec<String>) -> Vec<String> {
    let supers = path.iter().take_while(|word| *word == "super").count();
    let base = match supers {
        0 => &[][..],
        _ => &module[..module.len().saturating_sub(supers)],
    };
    let rest = path.into_iter().skip(supers.max(1));
    base.iter().cloned().chain(rest).collect()
}

#[test]
fn paths_are_found_in_code_alone() {
    let text =
        "use super::{b::{C, d as e}, f};\n// crate::no\nlet x = crate::g::h(\"crate::i\");\n";
    let module = ["a".to_owned(), "z".to_owned()];
    let paths = local_paths(&module, &code_of(text));
    let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["a::b::C", "a::b::d", "a::f", "g::h"]);
}
