//! The real vocabulary, from its compact form (see `tests/data/README.md`).

use std::io::Read;
use std::sync::LazyLock;

use ds4_coordinator::prompt::Tokenizer;
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

const MERGES: usize = 127_741;
/// Begin, end and padding tokens and 256 bytes come before the first merged token.
const FIRST_MERGED: usize = 259;

pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
}

pub(crate) static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let Vocabulary {
        tokens,
        types,
        merges,
    } = Vocabulary::unpack();
    Tokenizer::new(tokens, &types, &merges, 0, 1).expect("the vocabulary is sound")
});

impl Vocabulary {
    pub(crate) fn unpack() -> Self {
        let mut data = Vec::new();
        GzDecoder::new(&include_bytes!("../data/vocabulary.gz")[..])
            .read_to_end(&mut data)
            .expect("the file is a gzip file");
        let (planes, added) = data.split_at(6 * MERGES);
        let id = |plane: usize, merge: usize| {
            let byte = |i: usize| usize::from(planes[(plane + i) * MERGES + merge]);
            byte(0) | byte(1) << 8 | byte(2) << 16
        };
        let added = std::str::from_utf8(added).expect("the names are text");
        let mut tokens = vec![String::new(); 3];
        tokens.extend(byte_stand_ins().iter().map(char::to_string));
        let mut merges = Vec::new();
        for merge in 0..MERGES {
            let (left, right) = (&tokens[id(0, merge)], &tokens[id(3, merge)]);
            merges.push(format!("{left} {right}"));
            tokens.push(format!("{left}{right}"));
        }
        assert_eq!(tokens.len(), FIRST_MERGED + MERGES);
        let mut types = vec![1; tokens.len()];
        for line in added.lines() {
            let mut fields = line.splitn(3, ' ');
            let mut field = || fields.next().expect("a line has three fields");
            let id: usize = field().parse().expect("an id");
            let kind = field().parse().expect("a type");
            if id == tokens.len() {
                tokens.push(String::new());
                types.push(0);
            }
            tokens[id] = field().to_owned();
            types[id] = kind;
        }
        Self {
            tokens,
            types,
            merges,
        }
    }
}

fn byte_stand_ins() -> Vec<char> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let mut all: Vec<char> = printable.chain('Ā'..='Ń').collect();
    all.sort_unstable();
    all
}

#[test]
fn the_compact_form_unpacks_to_the_published_vocabulary() {
    let Vocabulary { tokens, merges, .. } = Vocabulary::unpack();
    assert_eq!((tokens.len(), merges.len()), (129_280, MERGES));
    let mut text = tokens.join("\n");
    text.push('\n');
    text.push_str(&merges.join("\n"));
    let hash = Sha256::digest(text);
    assert_eq!(
        format!("{hash:x}"),
        "5e39ef097e4033f5656a1ccf9bb253453284ac02ddf2529862f5c9fcc17e96a0"
    );
}
