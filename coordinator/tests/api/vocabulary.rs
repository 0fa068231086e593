//! A vocabulary of single bytes and the markers of chats: every token is known by its looks.

use std::sync::Arc;

use ds4_coordinator::prompt::markers::{
    ASSISTANT, BOS, DSML, END_THINK, EOS, LATEST_REMINDER, THINK, USER,
};
use ds4_coordinator::prompt::{Segment, Tokenizer};
use ds4_coordinator::scheduler::Vocabulary;

const MARKERS: [&str; 8] = [
    BOS,
    EOS,
    USER,
    ASSISTANT,
    THINK,
    END_THINK,
    DSML,
    LATEST_REMINDER,
];
const CONTROL: i32 = 3;
const NORMAL: i32 = 1;

/// Number of tokens.
pub(crate) const SIZE: usize = MARKERS.len() + 256;

pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let stand_ins = printable.chain('Ā'..='Ń').map(String::from);
    let tokens: Vec<String> = MARKERS
        .into_iter()
        .map(str::to_owned)
        .chain(stand_ins)
        .collect();
    assert_eq!(tokens.len(), SIZE);
    let types: Vec<i32> = (0..SIZE)
        .map(|id| if id < MARKERS.len() { CONTROL } else { NORMAL })
        .collect();
    let tokenizer = Tokenizer::new(tokens, &types, &[], 0, 1).expect("the vocabulary is sound");
    Arc::new(Vocabulary::new(tokenizer).expect("all markers are there"))
}

/// The tokens of an answer as a model would draw them: markers count.
pub(crate) fn answer_tokens(vocabulary: &Vocabulary, text: &str) -> Vec<u32> {
    vocabulary
        .tokenizer
        .encode_segments(&[Segment::template(text)])
}
