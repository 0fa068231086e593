use super::{ChatTokens, Tokenizer, TokenizerError};
use crate::prompt::byte_alphabet::to_char;
use crate::prompt::segment::Segment;

/// `names` first, then all bytes, then `merged`.
fn vocabulary(names: &[&str], merged: &[&str]) -> Vec<String> {
    let bytes = (0..=u8::MAX).map(|byte| to_char(byte).to_string());
    names
        .iter()
        .map(|name| (*name).to_owned())
        .chain(bytes)
        .chain(merged.iter().map(|token| (*token).to_owned()))
        .collect()
}

fn merges(list: &[&str]) -> Vec<String> {
    list.iter().map(|merge| (*merge).to_owned()).collect()
}

fn error(tokens: Vec<String>, types: &[i32], list: &[&str]) -> TokenizerError {
    Tokenizer::new(tokens, types, &merges(list), 0, 0).unwrap_err()
}

#[test]
fn merged_tokens_and_names_and_bytes() {
    let tokens = vocabulary(&["<s>", "<think>"], &["ab", "abc"]);
    let tokenizer = Tokenizer::new(tokens, &[], &merges(&["a b", "ab c"]), 0, 0).unwrap();
    let byte = |b: u8| 2 + u32::from(b);
    let expected = [259, 258, byte(b' '), byte(b'<'), byte(b's'), byte(b'>')];
    assert_eq!(tokenizer.encode("abcab <s>"), expected);
    assert_eq!(tokenizer.decode(&expected), b"abcab <s>");
    let segments = [Segment::template("<s>a"), Segment::guest("bc<think>")];
    let ids = tokenizer.encode_segments(&segments);
    assert_eq!(ids[..2], [0, 259]);
    assert!(!ids.contains(&1));
    assert_eq!(tokenizer.special("<think>"), Some(1));
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(259));
    assert_eq!(tokenizer.token_bytes(9999), b"");
}

#[test]
fn types_decide_which_tokens_are_matched_by_name() {
    let tokens = vocabulary(&["<s>", "<t>", "<think>"], &[]);
    let mut types = vec![1; tokens.len()];
    types[0] = 3;
    let tokenizer = Tokenizer::new(tokens, &types, &[], 0, 0).unwrap();
    let ids = tokenizer.encode_segments(&[Segment::template("<s><t><think>")]);
    // `<t>` is three bytes; `<think>` is special whatever its type.
    assert_eq!((ids[0], ids[ids.len() - 1], ids.len()), (0, 2, 5));
}

#[test]
fn broken_vocabularies_are_refused() {
    let good = || vocabulary(&["<s>"], &["ab"]);
    assert!(matches!(
        error(vec![], &[], &[]),
        TokenizerError::IdOutOfRange { .. }
    ));
    assert!(matches!(
        error(good(), &[1], &[]),
        TokenizerError::TypeCount { types: 1, .. }
    ));
    let twice = error(vocabulary(&["<s>", "x1", "x1"], &[]), &[], &[]);
    assert!(matches!(
        twice,
        TokenizerError::Duplicate {
            first: 1,
            second: 2,
            ..
        }
    ));
    let mut no_a = good();
    no_a[1 + usize::from(b'a')] = "<no a>".to_owned();
    assert_eq!(error(no_a, &[], &[]), TokenizerError::MissingByte(b'a'));
    for bad in ["ab", " a", "a ", "a b c", ""] {
        assert!(
            matches!(error(good(), &[], &[bad]), TokenizerError::BadMerge { .. }),
            "{bad}"
        );
    }
    for unknown in ["a c", "a zz", "zz a"] {
        let refused = error(good(), &[], &[unknown]);
        assert!(
            matches!(refused, TokenizerError::UnknownMergeToken { .. }),
            "{unknown}"
        );
    }
    let again = error(good(), &[], &["a b", "a b"]);
    assert!(matches!(
        again,
        TokenizerError::DuplicateMerge { index: 1, .. }
    ));
}

#[test]
fn chats_need_four_special_tokens() {
    let names = [
        "<s>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<think>",
        "</think>",
    ];
    let find = |names: &[&str]| {
        ChatTokens::find(&Tokenizer::new(vocabulary(names, &[]), &[], &[], 0, 0).unwrap())
    };
    let found = find(&names).unwrap();
    assert_eq!((found.dsml, found.latest_reminder), (None, None));
    assert_eq!(found.stop, [0, 1, 2]);
    assert_eq!(
        find(&names[..4]),
        Err(TokenizerError::MissingSpecial("</think>"))
    );
}
