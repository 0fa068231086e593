//! Encoding and decoding with the real vocabulary.

use std::time::{Duration, Instant};

use ds4_coordinator::prompt::{ChatTokens, Segment};
use proptest::prelude::*;
use serde_json::Value;

use crate::fixtures::{FIXTURES, ids, list, text};
use crate::vocabulary::TOKENIZER;

fn encode_with_specials(text: String) -> Vec<u32> {
    TOKENIZER.encode_segments(&[Segment::template(text)])
}

#[test]
fn fixture_strings_have_the_ids_of_the_reference() {
    let fixtures = list(&FIXTURES, "tokenize");
    assert_eq!(fixtures.len(), 30);
    for fixture in fixtures {
        let text = text(&fixture["text"]);
        assert_eq!(encode_with_specials(text.clone()), ids(fixture), "{text:?}");
    }
}

#[test]
fn a_hundred_strings_have_the_ids_of_the_reference() {
    let lines: Vec<Value> = include_str!("../data/tokenizer.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 100);
    for line in lines {
        let text = text(&line["text"]);
        assert_eq!(encode_with_specials(text.clone()), ids(&line), "{text:?}");
        if line["has_added"] == false {
            assert_eq!(TOKENIZER.encode(&text), ids(&line), "{text:?}");
        }
        assert_eq!(TOKENIZER.decode(&ids(&line)), text.as_bytes());
    }
}

#[test]
fn special_tokens_have_the_published_ids() {
    for (name, id) in [
        ("<｜begin▁of▁sentence｜>", 0),
        ("<｜end▁of▁sentence｜>", 1),
        ("<｜▁pad▁｜>", 2),
        ("<｜action｜>", 128_829),
        ("<｜query｜>", 128_830),
        ("<｜authority｜>", 128_831),
        ("<｜domain｜>", 128_832),
        ("<｜title｜>", 128_836),
        ("<｜read_url｜>", 128_845),
    ] {
        assert_eq!(TOKENIZER.special(name), Some(id), "{name}");
        assert!(TOKENIZER.is_special(id));
    }
    assert_eq!(
        ChatTokens::find(&TOKENIZER).unwrap(),
        ChatTokens {
            user: 128_803,
            assistant: 128_804,
            think: 128_821,
            end_think: 128_822,
            dsml: Some(128_825),
            latest_reminder: Some(128_828),
            stop: vec![1, 128_803, 128_804, 128_828],
        }
    );
}

#[test]
fn a_megabyte_takes_seconds_at_most() {
    for unit in ["a", "語", " ", "\n", "~", "🙂", "The quick brown fox. "] {
        let text = unit.repeat(1_000_000 / unit.len());
        let start = Instant::now();
        let encoded = TOKENIZER.encode(&text);
        let elapsed = start.elapsed();
        assert!(
            elapsed < Duration::from_secs(20),
            "{unit:?} took {elapsed:?}"
        );
        assert_eq!(TOKENIZER.decode(&encoded).len(), text.len());
    }
}

fn hostile_text() -> impl Strategy<Value = String> {
    // Not `any::<String>()`, which leaves out control, format and private characters.
    let characters = prop::collection::vec(any::<char>(), 0..32);
    let piece = prop_oneof![
        characters.prop_map(String::from_iter),
        prop::sample::select(vec![
            "<｜User｜>",
            "<｜Assistant｜>",
            "</think>",
            "<｜",
            "｜DSML｜",
            "<｜end▁of▁sentence｜>",
            " ",
            "\n",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn decoding_inverts_encoding(text in hostile_text()) {
        let plain = TOKENIZER.encode(&text);
        prop_assert_eq!(TOKENIZER.decode(&plain), text.as_bytes());
        prop_assert!(plain.iter().all(|&id| !TOKENIZER.is_special(id)));
        prop_assert_eq!(TOKENIZER.decode(&encode_with_specials(text.clone())), text.as_bytes());
    }

    #[test]
    fn guests_cannot_write_special_tokens(before in hostile_text(), after in hostile_text()) {
        let segments = [Segment::guest(before), Segment::template("<｜User｜>"), Segment::guest(after)];
        let encoded = TOKENIZER.encode_segments(&segments);
        let special: Vec<u32> =
            encoded.into_iter().filter(|&id| TOKENIZER.is_special(id)).collect();
        prop_assert_eq!(special, [128_803]);
    }

    #[test]
    fn borders_between_authors_do_not_cut_words(text in "[a-z ,\u{e9}]{0,30}", cut in 0usize..30) {
        let cut = text.floor_char_boundary(cut.min(text.len()));
        let segments = [Segment::template(&text[..cut]), Segment::guest(&text[cut..])];
        prop_assert_eq!(TOKENIZER.encode_segments(&segments), TOKENIZER.encode(&text));
    }
}
