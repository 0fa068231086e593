//! The commands that `deploy/README.md` tells people to type.

use super::manifests::read;

/// The commands of the shell blocks, in words; a line that ends in `\` continues on the next.
pub(super) fn commands() -> Vec<Vec<String>> {
    let text = read("README.md");
    let mut commands = Vec::new();
    let mut current = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        if !inside {
            continue;
        }
        let (line, goes_on) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        let words = line.split_whitespace().take_while(|word| *word != "#");
        current.extend(words.map(str::to_owned));
        if !goes_on && !current.is_empty() {
            commands.push(std::mem::take(&mut current));
        }
    }
    commands
}

#[test]
fn blocks_are_read_as_a_shell_would() {
    let commands = commands();
    let starts = |words: &[&str]| {
        let begins = |command: &&Vec<String>| command.iter().zip(words).all(|(a, b)| a == b);
        commands.iter().filter(begins).count()
    };
    assert_eq!(starts(&["ds4-coord", "certs"]), 1);
    assert_eq!(starts(&["kubectl", "create", "secret"]), 2);
}
