//! Rendered prompts.

use ds4_coordinator::prompt::{Dialect, render};
use sha2::{Digest, Sha256};

use crate::fixtures::{FIXTURES, conversation, ids, list, text};
use crate::vocabulary::TOKENIZER;

#[test]
fn every_fixture_is_rendered_and_encoded_as_the_reference_does() {
    let fixtures = list(&FIXTURES, "render");
    assert_eq!(fixtures.len(), 22);
    for fixture in fixtures {
        let prompt = render(&conversation(&fixture["request"]), Dialect::V0731).unwrap();
        assert_eq!(
            prompt.text(),
            text(&fixture["prompt"]),
            "{}",
            fixture["name"]
        );
        let encoded = TOKENIZER.encode_segments(&prompt.segments);
        assert_eq!(encoded, ids(fixture), "{}", fixture["name"]);
    }
}

#[test]
fn the_fixed_texts_are_the_published_ones() {
    for (name, bytes, sha256) in [
        ("effort_x", 476, "f7a24f3b3050d4a8"),
        ("effort_y", 528, "53fb31b8392ec5b4"),
        ("tools_head", 890, "c7c9042638154a23"),
        ("tools_foot", 98, "3f9ac63d8e9ea516"),
        ("json_note", 102, "a786ffd2d77d3105"),
        ("schema_note", 80, "5200f58413f49f39"),
    ] {
        let file = format!("{}/src/prompt/data/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let data = std::fs::read(file).unwrap();
        assert_eq!(data.len(), bytes, "{name}");
        assert_eq!(
            format!("{:x}", Sha256::digest(&data))[..16],
            *sha256,
            "{name}"
        );
        if let Some(published) = FIXTURES["constants"].get(name) {
            assert_eq!(*published, String::from_utf8(data).unwrap());
        }
    }
}
