//! A plan as a report for people.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::plan::{CHUNK, NodeLoss, PROMPT, PlacementPlan};

/// The report. `model` and `out` are the paths in the slicing commands at its end.
pub(super) fn text(plan: &PlacementPlan, model: Option<&[PathBuf]>, out: Option<&Path>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = summary(&mut text, plan)
        .and_then(|()| nodes(&mut text, plan))
        .and_then(|()| losses(&mut text, plan))
        .and_then(|()| commands(&mut text, plan, model, out));
    text
}

fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.1} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} kB", bytes / 1e3),
    }
}

fn summary(text: &mut String, plan: &PlacementPlan) -> std::fmt::Result {
    let demand = &plan.demand;
    writeln!(text, "model      {}", demand.name)?;
    writeln!(
        text,
        "experts    {} in {} layers of {}; the coordinator keeps {}",
        size(demand.routed_bytes()),
        demand.layers.len(),
        demand.grid,
        size(demand.dense_bytes),
    )?;
    match plan.cut {
        Some(cut) => writeln!(
            text,
            "cut        {}x{}, the same in every layer",
            cut.groups, cut.strips
        )?,
        None => writeln!(text, "cut        uneven, by the nodes' speed and memory")?,
    }
    let share = 100.0 * plan.replicated_tiles as f64 / plan.tiles.max(1) as f64;
    writeln!(
        text,
        "replicas   {} of {} tiles have a second replica ({share:.0}%)",
        plan.replicated_tiles, plan.tiles
    )?;
    let decode = &plan.decode;
    writeln!(
        text,
        "decode     {:.2} tokens/s; {:.1} ms per token, {:.1} ms of it waiting for nodes",
        1.0 / decode.seconds,
        decode.seconds * 1e3,
        decode.waiting * 1e3,
    )?;
    writeln!(
        text,
        "prefill    {:.1} tokens/s in chunks of {CHUNK}; first token of a {PROMPT}-token prompt after {:.1} s",
        CHUNK as f64 / plan.prefill.seconds,
        plan.first_token,
    )?;
    writeln!(
        text,
        "network    {:.0} kB per token to the nodes, {:.0} kB back",
        decode.requests / 1e3,
        decode.replies / 1e3,
    )?;
    if !plan.cluster.assumed.is_empty() {
        writeln!(text, "assumed    {}", plan.cluster.assumed.join(", "))?;
    }
    Ok(())
}

fn nodes(text: &mut String, plan: &PlacementPlan) -> std::fmt::Result {
    writeln!(text, "\nnodes")?;
    for (share, node) in plan.nodes.iter().zip(&plan.cluster.nodes) {
        let held = share.primary_bytes + share.replica_bytes;
        writeln!(
            text,
            "  {}: {} of weights, including {} of replicas; room for {}",
            node.machine.name,
            size(held),
            size(share.replica_bytes),
            size(node.room),
        )?;
        if held > 0 {
            writeln!(text, "    {}", share.holdings)?;
        }
    }
    Ok(())
}

fn losses(text: &mut String, plan: &PlacementPlan) -> std::fmt::Result {
    writeln!(text, "\nif a node is lost")?;
    for (loss, node) in plan.losses.iter().zip(&plan.cluster.nodes) {
        let rate = 1.0 / loss.decode.seconds;
        writeln!(
            text,
            "  {}: {}{rate:.2} tokens/s",
            node.machine.name,
            successors(plan, loss)
        )?;
    }
    Ok(())
}

fn successors(plan: &PlacementPlan, loss: &NodeLoss) -> String {
    let mut said = String::new();
    if !loss.successors.is_empty() {
        let names = loss
            .successors
            .iter()
            .map(|&i| &plan.cluster.nodes[i].machine.name[..]);
        let names: Vec<&str> = names.collect();
        said += &format!("taken over by {}; ", names.join(", "));
    }
    if loss.uncovered > 0 {
        let from = if loss.cached { "memory" } else { "its disk" };
        said += &format!(
            "the coordinator computes {} of tiles from {from}; ",
            size(loss.uncovered_bytes)
        );
    }
    said
}

fn commands(
    text: &mut String,
    plan: &PlacementPlan,
    model: Option<&[PathBuf]>,
    out: Option<&Path>,
) -> std::fmt::Result {
    writeln!(text, "\nslices")?;
    let Some(out) = out else {
        return writeln!(
            text,
            "  pass --out PLAN.toml to write the plan that `slice` and `share` use"
        );
    };
    let paths = model.unwrap_or_default().iter();
    let paths: Vec<String> = paths.map(|path| path.display().to_string()).collect();
    let model = match (&paths[..], plan.demand.fingerprint) {
        ([], None) => "-m MODEL.gguf ".to_owned(),
        ([], Some(_)) => String::new(),
        (paths, _) => format!("-m {} ", quoted(&paths.join(","))),
    };
    let out = quoted(&out.display().to_string());
    for (share, node) in plan.nodes.iter().zip(&plan.cluster.nodes) {
        if !share.holdings.is_empty() {
            let name = &node.machine.name;
            writeln!(
                text,
                "  ds4-coord slice {model}--plan {out} --node {name} --out slices"
            )?;
        }
    }
    Ok(())
}

/// `word` as a shell reads it: one word, in quotes if it needs them.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=+:@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_a_fitting_unit() {
        assert_eq!(size(155_800_000_000), "155.8 GB");
        assert_eq!(size(4_718_592), "4.7 MB");
        assert_eq!(size(0), "0.0 kB");
    }

    #[test]
    fn paths_are_one_word_of_a_shell() {
        assert_eq!(quoted("/a/b-1.gguf"), "/a/b-1.gguf");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
