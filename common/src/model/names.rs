//! Tensor names in messages.

use std::collections::BTreeMap;

/// Names in one line, those that differ only in the block number as one: `blk.{0-3,7}.x.weight`.
pub(super) fn summary(names: &[String]) -> String {
    let mut blocks: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut parts: Vec<String> = Vec::new();
    for name in names {
        match split_block(name) {
            Some((block, rest)) => blocks.entry(rest).or_default().push(block),
            None => parts.push(name.clone()),
        }
    }
    for (rest, mut numbers) in blocks {
        numbers.sort_unstable();
        numbers.dedup();
        parts.push(match numbers[..] {
            [only] => format!("blk.{only}.{rest}"),
            _ => format!("blk.{{{}}}.{rest}", ranges(&numbers)),
        });
    }
    parts.join(", ")
}

/// The block number of `blk.N.rest` and the rest.
pub(super) fn split_block(name: &str) -> Option<(usize, &str)> {
    let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((block.parse().ok()?, rest))
}

/// `blk.N.rest`.
pub(super) fn block_name(block: usize, rest: &str) -> String {
    format!("blk.{block}.{rest}")
}

fn ranges(sorted: &[usize]) -> String {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for &n in sorted {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => out.push((n, n)),
        }
    }
    let text = |(a, b): &(usize, usize)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    };
    out.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_numbers_are_folded_and_nothing_is_lost() {
        let names: Vec<String> = ["output.weight", "blk.0.a.weight", "blk.2.a.weight"]
            .into_iter()
            .chain(["blk.3.a.weight", "blk.1.b.weight"])
            .map(str::to_owned)
            .collect();
        let text = summary(&names);
        assert_eq!(text, "output.weight, blk.{0,2-3}.a.weight, blk.1.b.weight");
    }
}
