//! The items of a trace, and their lines.

use std::fmt::Write;

use ds4_common::expert::Route;
use ds4_common::slice::Hasher;
use serde_json::{Value, json};

/// Hex digits of a digest: enough that no two values of a trace share them by chance.
const DIGEST_DIGITS: usize = 16;

/// The start of the BLAKE3 hash of the values' bytes, least significant first.
pub(super) fn digest(values: &[f32]) -> String {
    let mut hasher = Hasher::new();
    for value in values {
        hasher.update(&value.to_le_bytes());
    }
    hasher.finalize().to_hex()[..DIGEST_DIGITS].to_owned()
}

/// Something that was computed.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// `None` before the first layer and after the last.
    pub(super) layer: Option<usize>,
    pub(super) name: String,
    pub(super) digest: String,
    /// For a choice of the router.
    expert: Option<u32>,
    values: Vec<f32>,
}

impl Item {
    pub(super) fn values(layer: Option<usize>, name: &str, values: &[f32]) -> Self {
        Item {
            layer,
            name: name.to_owned(),
            digest: digest(values),
            expert: None,
            values: values.to_vec(),
        }
    }

    pub(super) fn route(layer: usize, slot: usize, route: Route) -> Self {
        let name = format!("route[{slot}]");
        Item {
            expert: Some(route.expert),
            ..Self::values(Some(layer), &name, &[route.weight])
        }
    }

    fn line(&self, all_values: bool) -> String {
        let layer = self.layer.map_or("-".to_owned(), |layer| layer.to_string());
        let mut line = format!("{layer:>3} {:<20}", self.name);
        match self.expert {
            // A single weight is shown whole, which says more than its digest.
            Some(expert) => {
                let weight = self.values.first().copied().unwrap_or_default();
                let _ = write!(line, " expert {expert} weight {weight:e}");
            }
            None => {
                let _ = write!(line, " {} {} values", self.digest, self.values.len());
                for value in self.values.iter().filter(|_| all_values) {
                    // Writing to a String cannot fail.
                    let _ = write!(line, " {value:e}");
                }
            }
        }
        line
    }

    fn json(&self, all_values: bool) -> Value {
        let mut object = json!({"layer": self.layer, "name": self.name});
        match self.expert {
            Some(expert) => {
                object["expert"] = json!(expert);
                object["weight"] = json!(self.values.first());
            }
            None => {
                object["digest"] = json!(self.digest);
                object["count"] = json!(self.values.len());
                if all_values {
                    object["values"] = json!(self.values);
                }
            }
        }
        object
    }
}

/// All items of one token, in the order of the forward pass.
#[derive(Debug)]
pub(super) struct Report {
    position: usize,
    token: u32,
    items: Vec<Item>,
}

impl Report {
    pub(super) fn new(position: usize, token: u32) -> Self {
        Report {
            position,
            token,
            items: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, item: Item) {
        self.items.push(item);
    }

    /// Line by line, as text or as JSON.
    pub(super) fn text(&self, as_json: bool, all_values: bool) -> String {
        let head = match as_json {
            true => json!({"position": self.position, "token": self.token}).to_string(),
            false => format!("position {} token {}", self.position, self.token),
        };
        let lines = self.items.iter().map(|item| match as_json {
            true => item.json(all_values).to_string(),
            false => item.line(all_values),
        });
        let lines = std::iter::once(head).chain(lines);
        lines.map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_changes_the_line_and_the_json() {
        let item = |value: f32| Item::values(Some(3), "experts.in", &[1.0, value]);
        let (a, b) = (item(2.0), item(2.0_f32.next_up()));
        assert_ne!(a.line(false), b.line(false));
        assert_ne!(a.json(false), b.json(false));
        assert!(
            b.line(true).ends_with(" 1e0 2.0000002e0"),
            "{}",
            b.line(true)
        );
        let route = Route {
            expert: 17,
            weight: 0.25,
        };
        let line = Item::route(0, 1, route).line(false);
        assert_eq!(line, "  0 route[1]             expert 17 weight 2.5e-1");
        let mut report = Report::new(4, 9);
        report.add(a);
        assert_eq!(report.text(false, false).lines().count(), 2);
        let json = report.text(true, true);
        let last: Value = serde_json::from_str(json.lines().last().expect("a line")).expect("json");
        assert_eq!(last["values"], json!([1.0, 2.0]));
    }
}
