//! Text to token ids and back, with the vocabulary that a model file carries.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use thiserror::Error;

use super::bpe::{Merge, Merger, Merges};
use super::byte_alphabet::{ByteAlphabet, to_char};
use super::markers::{ASSISTANT, DSML, END_THINK, LATEST_REMINDER, THINK, USER};
use super::pretokenize::pieces;
use super::segment::Segment;
use super::special_matcher::SpecialMatcher;

/// `tokenizer.ggml.token_type` of tokens that are made by merging bytes.
const TYPE_NORMAL: i32 = 1;
/// ... of tokens that are matched by name and do not print.
const TYPE_CONTROL: i32 = 3;
/// ... of tokens that are matched by name.
const TYPE_USER_DEFINED: i32 = 4;

/// A byte-level BPE vocabulary.
#[derive(Debug)]
pub struct Tokenizer {
    /// What each token stands for.
    bytes: Vec<Vec<u8>>,
    /// Tokens that are matched by name.
    special: Vec<bool>,
    specials: HashMap<String, u32>,
    matcher: SpecialMatcher,
    byte_tokens: [u32; 256],
    merges: Merges,
    bos: u32,
    eos: u32,
}

/// Why a vocabulary was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TokenizerError {
    /// There are more tokens than ids.
    #[error("the vocabulary has {0} tokens, too many to number")]
    TooLong(usize),
    /// Not one type for each token.
    #[error("the vocabulary has {tokens} tokens but {types} token types")]
    TypeCount {
        /// Number of tokens.
        tokens: usize,
        /// Number of types.
        types: usize,
    },
    /// Two tokens have the same text.
    #[error("tokens {first} and {second} of the vocabulary are both `{text}`")]
    Duplicate {
        /// Their text.
        text: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A byte has no token, so not every text could be encoded.
    #[error("the vocabulary has no token for the byte 0x{0:02x}")]
    MissingByte(u8),
    /// A merge is not two tokens with one space between them.
    #[error("merge {index} is `{text}`, not two tokens with a space between them")]
    BadMerge {
        /// Its place in the list.
        index: usize,
        /// What it is.
        text: String,
    },
    /// A merge needs a token that does not exist.
    #[error("merge {index} needs the token `{token}`, which the vocabulary lacks")]
    UnknownMergeToken {
        /// Its place in the list.
        index: usize,
        /// The token.
        token: String,
    },
    /// The same pair is merged twice.
    #[error("merge {index}, `{text}`, is in the list twice")]
    DuplicateMerge {
        /// The second place in the list.
        index: usize,
        /// The merge.
        text: String,
    },
    /// The begin or end token is not in the vocabulary.
    #[error("the {role} token has the id {id}, but the vocabulary has {tokens} tokens")]
    IdOutOfRange {
        /// `begin` or `end`.
        role: &'static str,
        /// The id.
        id: u32,
        /// Number of tokens.
        tokens: usize,
    },
    /// A token that chat prompts are built from is missing.
    #[error("the vocabulary lacks the special token `{0}`, without which there is no chat")]
    MissingSpecial(&'static str),
}

impl Tokenizer {
    /// Builds a tokenizer from `tokenizer.ggml.tokens`, `.token_type`, `.merges`,
    /// `.bos_token_id` and `.eos_token_id`.
    ///
    /// `token_types` may be empty: then the tokens are special that no merge makes.
    ///
    /// # Errors
    /// See [`TokenizerError`].
    pub fn new(
        tokens: Vec<String>,
        token_types: &[i32],
        merges: &[String],
        bos: u32,
        eos: u32,
    ) -> Result<Self, TokenizerError> {
        let count = tokens.len();
        // The highest number marks joined tokens while merging.
        if u32::try_from(count).is_err() {
            return Err(TokenizerError::TooLong(count));
        }
        if !token_types.is_empty() && token_types.len() != count {
            return Err(TokenizerError::TypeCount {
                tokens: count,
                types: token_types.len(),
            });
        }
        for (role, id) in [("begin", bos), ("end", eos)] {
            if id as usize >= count {
                return Err(TokenizerError::IdOutOfRange {
                    role,
                    id,
                    tokens: count,
                });
            }
        }
        let ids = number(&tokens)?;
        let (merges, merged) = read_merges(merges, &ids, count)?;
        let alphabet = ByteAlphabet::new();
        let byte_tokens = find_byte_tokens(&ids)?;
        let mut special = vec![false; count];
        let mut bytes = Vec::with_capacity(count);
        for (id, text) in tokens.iter().enumerate() {
            let kind = token_types.get(id).copied();
            let spelled = alphabet.decode(text);
            let made = merged[id] || text.chars().count() == 1;
            special[id] = match kind {
                Some(kind) => matches!(kind, TYPE_CONTROL | TYPE_USER_DEFINED),
                None => !made,
            } || is_marker(text);
            let plain = !special[id] && kind.is_none_or(|kind| kind == TYPE_NORMAL);
            bytes.push(match spelled {
                Some(spelled) if plain => spelled,
                _ => text.clone().into_bytes(),
            });
        }
        let specials: HashMap<String, u32> = ids
            .iter()
            .filter(|(_, id)| special[**id as usize])
            .map(own_entry)
            .collect();
        let matcher = SpecialMatcher::new(specials.iter().map(|(text, id)| (*id, text.as_str())));
        Ok(Self {
            bytes,
            special,
            specials,
            matcher,
            byte_tokens,
            merges,
            bos,
            eos,
        })
    }

    /// Number of tokens.
    pub fn vocabulary_size(&self) -> usize {
        self.bytes.len()
    }

    /// The token that begins a prompt.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The token that ends an answer.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The id of the special token of this name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.get(name).copied()
    }

    /// Whether a token is a special one.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The ids of a text in which nothing is special.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        self.merge_pieces(&mut Merger::default(), text, &mut out);
        out
    }

    /// The ids of a prompt.
    ///
    /// The name of a special token counts only if it lies within one template segment. What is
    /// between special tokens is encoded as one text, whoever wrote its parts.
    pub fn encode_segments(&self, segments: &[Segment]) -> Vec<u32> {
        let mut merger = Merger::default();
        let mut out = Vec::new();
        let mut run = String::new();
        for segment in segments {
            let mut rest = segment.text.as_str();
            while segment.is_template()
                && let Some((at, length, token)) = self.matcher.find(rest)
            {
                run.push_str(&rest[..at]);
                self.merge_pieces(&mut merger, &run, &mut out);
                run.clear();
                out.push(token);
                rest = &rest[at + length..];
            }
            run.push_str(rest);
        }
        self.merge_pieces(&mut merger, &run, &mut out);
        out
    }

    /// What a token stands for: the bytes of a plain one, the name of a special one. An id
    /// outside the vocabulary stands for nothing.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The bytes of `ids`, one after the other.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter()
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect()
    }

    fn merge_pieces(&self, merger: &mut Merger, text: &str, out: &mut Vec<u32>) {
        for piece in pieces(text) {
            let bytes = piece
                .as_bytes()
                .iter()
                .map(|&byte| self.byte_tokens[usize::from(byte)]);
            merger.merge(&self.merges, bytes, out);
        }
    }
}

/// The special tokens that chats are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTokens {
    /// Opens a user turn.
    pub user: u32,
    /// Opens an assistant turn.
    pub assistant: u32,
    /// Opens the reasoning.
    pub think: u32,
    /// Ends the reasoning.
    pub end_think: u32,
    /// Marks the tags of tool calls. Small vocabularies lack it.
    pub dsml: Option<u32>,
    /// Opens a reminder. Small vocabularies lack it.
    pub latest_reminder: Option<u32>,
    /// Tokens that end an answer: the end token and those that open somebody else's turn.
    pub stop: Vec<u32>,
}

impl ChatTokens {
    /// Looks them up by name.
    ///
    /// # Errors
    /// [`TokenizerError::MissingSpecial`] if one of the first four is missing.
    pub fn find(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let need = |name| {
            tokenizer
                .special(name)
                .ok_or(TokenizerError::MissingSpecial(name))
        };
        let (user, assistant) = (need(USER)?, need(ASSISTANT)?);
        let latest_reminder = tokenizer.special(LATEST_REMINDER);
        let mut stop = vec![tokenizer.eos(), user, assistant];
        stop.extend(latest_reminder);
        Ok(Self {
            user,
            assistant,
            think: need(THINK)?,
            end_think: need(END_THINK)?,
            dsml: tokenizer.special(DSML),
            latest_reminder,
            stop,
        })
    }
}

/// These are special whatever a file says about them: prompts could not be built otherwise.
fn is_marker(text: &str) -> bool {
    [USER, ASSISTANT, LATEST_REMINDER, THINK, END_THINK, DSML].contains(&text)
}

fn own_entry((text, id): (&&str, &u32)) -> (String, u32) {
    ((*text).to_owned(), *id)
}

fn number(tokens: &[String]) -> Result<HashMap<&str, u32>, TokenizerError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, text) in (0u32..).zip(tokens) {
        match ids.entry(text.as_str()) {
            Entry::Vacant(entry) => {
                entry.insert(id);
            }
            Entry::Occupied(entry) => {
                return Err(TokenizerError::Duplicate {
                    text: text.clone(),
                    first: *entry.get(),
                    second: id,
                });
            }
        }
    }
    Ok(ids)
}

/// The merges by pair, and for each token whether some merge makes it.
fn read_merges(
    list: &[String],
    ids: &HashMap<&str, u32>,
    count: usize,
) -> Result<(Merges, Vec<bool>), TokenizerError> {
    let mut merges = Merges::default();
    let mut merged = vec![false; count];
    for ((index, text), rank) in list.iter().enumerate().zip(0u32..) {
        let bad = || TokenizerError::BadMerge {
            index,
            text: text.clone(),
        };
        let (left, right) = text.split_once(' ').ok_or_else(bad)?;
        if left.is_empty() || right.is_empty() || right.contains(' ') {
            return Err(bad());
        }
        let find = |token: &str| {
            let unknown = || TokenizerError::UnknownMergeToken {
                index,
                token: token.to_owned(),
            };
            ids.get(token).copied().ok_or_else(unknown)
        };
        let token = find(&format!("{left}{right}"))?;
        if !merges.insert(find(left)?, find(right)?, Merge { rank, token }) {
            return Err(TokenizerError::DuplicateMerge {
                index,
                text: text.clone(),
            });
        }
        merged[token as usize] = true;
    }
    Ok((merges, merged))
}

fn find_byte_tokens(ids: &HashMap<&str, u32>) -> Result<[u32; 256], TokenizerError> {
    let mut tokens = [0; 256];
    for byte in 0..=u8::MAX {
        let name = to_char(byte).to_string();
        tokens[usize::from(byte)] = ids
            .get(name.as_str())
            .copied()
            .ok_or(TokenizerError::MissingByte(byte))?;
    }
    Ok(tokens)
}
