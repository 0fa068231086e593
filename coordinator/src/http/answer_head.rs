//! The JSON objects of one answer: a head that all of them repeat, choices, and usage.

use std::sync::Arc;

use serde_json::{Value, json};

use super::app::{App, unix_seconds};
use super::identity::Identity;

/// The fields that every object of one answer begins with. They are serialised once, since a stream
/// has an object per token.
#[derive(Debug)]
pub(super) struct AnswerHead {
    pub(super) app: Arc<App>,
    /// Tells the answer from all others.
    number: String,
    /// The fields as JSON, without the closing brace.
    json: String,
}

impl AnswerHead {
    /// The head of the answer to the request of `identity`; `object` is the type of its objects.
    pub(super) fn new(app: Arc<App>, identity: Identity, object: &str) -> Self {
        let Identity { number, id, .. } = identity;
        let json = open_object(&json!({
            "id": id,
            "object": object,
            "created": unix_seconds(),
            "model": app.card.id,
            "system_fingerprint": app.card.fingerprint,
        }));
        AnswerHead { app, number, json }
    }

    /// One object of the answer as JSON.
    pub(super) fn object(&self, choices: &Value, usage: Option<&Value>) -> String {
        object(&self.json, choices, usage)
    }

    /// The id of one tool call. Ids sort in the order of the calls, as prompts require.
    pub(super) fn call_id(&self, index: usize) -> String {
        format!("call_{index:03}_{}", self.number)
    }
}

/// The JSON of an object with fields, without its closing brace.
fn open_object(fields: &Value) -> String {
    let mut json = fields.to_string();
    json.pop();
    json
}

/// Appends the last fields to an open object and closes it.
fn object(head: &str, choices: &Value, usage: Option<&Value>) -> String {
    match usage {
        None => format!("{head},\"choices\":{choices}}}"),
        Some(usage) => format!("{head},\"choices\":{choices},\"usage\":{usage}}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_the_bytes_of_one_that_is_serialised_whole() {
        let head = json!({"id": "cmpl-1", "created": 7, "model": "a \"quoted\" näme\n"});
        let choices = json!([{"index": 0, "text": "{}\u{1}", "finish_reason": null}]);
        for usage in [None, Some(Value::Null), Some(json!({"total_tokens": 3}))] {
            let mut whole = head.clone();
            whole["choices"] = choices.clone();
            if let Some(usage) = &usage {
                whole["usage"] = usage.clone();
            }
            let found = object(&open_object(&head), &choices, usage.as_ref());
            assert_eq!(found, whole.to_string());
        }
    }
}
