//! Runs the examples, and compares what they print: the bits are the same on every CPU.

use std::process::Command;

fn run(program: &str) -> String {
    let output = Command::new(program).output().expect("started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_engine_continues_a_prompt() {
    let printed = run(env!("CARGO_BIN_EXE_engine_in_process"));
    assert!(printed.contains("361  13.9130"), "{printed}");
    let continuation = "continuation: [361, 427, 413, 305, 110, 131, 418, 82]\n";
    assert!(printed.ends_with(continuation), "{printed}");
}

#[test]
fn a_node_answers_a_call() {
    let printed = run(env!("CARGO_BIN_EXE_call_expert_node"));
    assert!(
        printed.ends_with("checksum: 08ea7fb44b21333f\n"),
        "{printed}"
    );
}
