//! Words longer than the tokenizer merges at a time, with the real vocabulary.

use std::collections::{BTreeSet, HashMap};

use ds4_coordinator::prompt::{EncodeError, EncodeLimits, Segment};

use crate::vocabulary::{TOKENIZER, Vocabulary};

/// The definition of byte pair encoding on a whole word: the pair of lowest rank, the leftmost of
/// those, until there is none.
struct Definition {
    ids: HashMap<Vec<u8>, u32>,
    ranks: HashMap<(u32, u32), (usize, u32)>,
}

impl Definition {
    fn new() -> Self {
        let vocabulary = Vocabulary::unpack();
        let by_text: HashMap<&str, u32> = vocabulary
            .tokens
            .iter()
            .map(String::as_str)
            .zip(0..)
            .collect();
        let mut ranks = HashMap::new();
        for (rank, merge) in vocabulary.merges.iter().enumerate() {
            let (left, right) = merge.split_once(' ').expect("two parts");
            let joined = by_text[format!("{left}{right}").as_str()];
            ranks.insert((by_text[left], by_text[right]), (rank, joined));
        }
        let bytes = (0..=255u8).map(|byte| vec![byte]);
        let ids =
            (0..vocabulary.tokens.len() as u32).map(|id| (TOKENIZER.token_bytes(id).to_vec(), id));
        let ids: HashMap<Vec<u8>, u32> = ids.collect();
        assert!(bytes.into_iter().all(|byte| ids.contains_key(&byte)));
        Definition { ids, ranks }
    }

    fn encode(&self, word: &[u8]) -> Vec<u32> {
        let mut tokens: Vec<Option<u32>> = word
            .iter()
            .map(|byte| Some(self.ids[&vec![*byte]]))
            .collect();
        let mut next: Vec<usize> = (1..=word.len()).collect();
        let mut previous: Vec<usize> = (0..word.len()).map(|at| at.wrapping_sub(1)).collect();
        let mut queue = BTreeSet::new();
        let rank = |tokens: &[Option<u32>], at: usize, next: usize| {
            let pair = (tokens[at]?, (*tokens.get(next)?)?);
            self.ranks
                .get(&pair)
                .map(|&(rank, joined)| (rank, at, joined))
        };
        queue.extend((0..word.len()).filter_map(|at| rank(&tokens, at, next[at])));
        while let Some((was, at, joined)) = queue.pop_first() {
            if tokens[at].is_none() || rank(&tokens, at, next[at]) != Some((was, at, joined)) {
                continue;
            }
            tokens[at] = Some(joined);
            tokens[next[at]] = None;
            next[at] = next[next[at]];
            if next[at] < word.len() {
                previous[next[at]] = at;
            }
            queue.extend(rank(&tokens, at, next[at]));
            if let Some(before) = tokens.get(previous[at]).and(Some(previous[at])) {
                queue.extend(rank(&tokens, before, at));
            }
        }
        tokens.into_iter().flatten().collect()
    }
}

#[test]
fn long_words_are_merged_as_a_whole() {
    let definition = Definition::new();
    let mut state = 7u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    let random_letters: String = (0..70_000)
        .map(|_| char::from(b'a' + random(26) as u8))
        .collect();
    let words = [
        "the",
        "and",
        "ing",
        "tion",
        "straw",
        "berry",
        "zz",
        "International",
        "q",
    ];
    let joined: String = (0..20_000).map(|_| words[random(9) as usize]).collect();
    for (name, word) in [
        ("random letters", random_letters),
        ("words without blanks", joined),
        ("one letter", "a".repeat(70_001)),
        ("two letters", "ha".repeat(35_001)),
        ("accents", "éà".repeat(20_000)),
        ("ideographs", "語日本一二三".repeat(4_000)),
        ("blanks", " ".repeat(70_001)),
        ("symbols", "=-".repeat(35_000)),
    ] {
        let found = TOKENIZER.encode(&word);
        assert!(found == definition.encode(word.as_bytes()), "{name}");
    }
}

#[test]
fn a_text_with_too_many_tokens_is_counted_to_a_limit() {
    let encode = |text: &str, limits| TOKENIZER.encode_within(&[Segment::guest(text)], limits);
    let wanted = &|| true;
    let limits = EncodeLimits {
        keep: 100,
        count: 1000,
        wanted,
    };
    let text = "one two three ".repeat(30);
    let whole = TOKENIZER.encode(&text);
    assert!(whole.len() < 100);
    assert_eq!(encode(&text, limits), Ok(whole));
    let text = "one two three ".repeat(100);
    let tokens = TOKENIZER.encode(&text).len();
    assert!((101..1000).contains(&tokens));
    assert_eq!(
        encode(&text, limits),
        Err(EncodeError::TooLong {
            tokens,
            exact: true
        })
    );
    // Neither many words nor a long one are read to the end.
    for text in ["one two three ".repeat(10_000), "zq".repeat(1_000_000)] {
        match encode(&text, limits) {
            Err(EncodeError::TooLong {
                tokens,
                exact: false,
            }) => assert!((1001..20_000).contains(&tokens)),
            other => panic!("{other:?}"),
        }
    }
    let wanted = &|| false;
    let unwanted = EncodeLimits {
        wanted,
        ..EncodeLimits::default()
    };
    assert_eq!(
        encode(&"one two three ".repeat(10_000), unwanted),
        Err(EncodeError::Unwanted)
    );
}
