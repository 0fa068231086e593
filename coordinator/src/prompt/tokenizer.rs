//! Encodes text as token ids and decodes ids, with the vocabulary of a model file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::iter;

use thiserror::Error;

use super::bpe::{Merge, Merges};
use super::byte_alphabet::{ByteAlphabet, to_char};
use super::encoder::{EncodeError, EncodeLimits, Encoder};
use super::markers::{ASSISTANT, DSML, END_THINK, LATEST_REMINDER, THINK, USER};
use super::segment::Segment;
use super::special_matcher::SpecialMatcher;

/// `tokenizer.ggml.token_type` of tokens that result from merging bytes.
const TYPE_NORMAL: i32 = 1;
/// `tokenizer.ggml.token_type` of tokens that are matched by name and do not print.
const TYPE_CONTROL: i32 = 3;
/// `tokenizer.ggml.token_type` of tokens that are matched by name.
const TYPE_USER_DEFINED: i32 = 4;

/// A byte-level BPE tokenizer; token ids are indices into its vocabulary.
#[derive(Debug)]
pub struct Tokenizer {
    /// By id: the bytes of a plain token, the name of a special one.
    bytes: Vec<Vec<u8>>,
    /// By id: whether the token is matched by name.
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
    /// More tokens than a 32-bit id can number.
    #[error("the vocabulary has {0} tokens, more than 32-bit ids can number")]
    TooLong(usize),
    /// The lists of tokens and of types differ in length.
    #[error("the vocabulary has {tokens} tokens but {types} token types")]
    TypeCount {
        /// Length of `tokenizer.ggml.tokens`.
        tokens: usize,
        /// Length of `tokenizer.ggml.token_type`.
        types: usize,
    },
    /// Two ids have the same text.
    #[error("tokens {first} and {second} of the vocabulary are both `{text}`")]
    Duplicate {
        /// The text, as the vocabulary spells it.
        text: String,
        /// The lower of the two ids.
        first: u32,
        /// The higher of the two ids.
        second: u32,
    },
    /// A byte has no token, so not every text could be encoded.
    #[error("the vocabulary has no token for the byte 0x{0:02x}")]
    MissingByte(u8),
    /// A merge is not two tokens with one space between them.
    #[error("merge {index} is `{text}`, not two tokens with a space between them")]
    BadMerge {
        /// Index into `tokenizer.ggml.merges`.
        index: usize,
        /// The whole entry.
        text: String,
    },
    /// A merge needs a token that does not exist.
    #[error("merge {index} needs the token `{token}`, which the vocabulary lacks")]
    UnknownMergeToken {
        /// Index into `tokenizer.ggml.merges`.
        index: usize,
        /// The token that the vocabulary lacks: the left, the right or the joined one.
        token: String,
    },
    /// The same pair is merged twice.
    #[error("merge {index}, `{text}`, is a duplicate")]
    DuplicateMerge {
        /// Index of the second occurrence in `tokenizer.ggml.merges`.
        index: usize,
        /// The whole entry.
        text: String,
    },
    /// The begin or end token is not in the vocabulary.
    #[error("the {role} token has the id {id}, but the vocabulary has {tokens} tokens")]
    IdOutOfRange {
        /// `begin` or `end`.
        role: &'static str,
        /// Its id, which is not below `tokens`.
        id: u32,
        /// Length of the vocabulary.
        tokens: usize,
    },
    /// A token that chat prompts consist of is missing.
    #[error("the vocabulary lacks the special token `{0}`, which chat prompts need")]
    MissingSpecial(&'static str),
}

impl Tokenizer {
    /// Builds a tokenizer from `tokenizer.ggml.tokens`, `.token_type`, `.merges`,
    /// `.bos_token_id` and `.eos_token_id`.
    ///
    /// `token_types` may be empty: then those tokens are special that are longer than one
    /// character and result from no merge.
    ///
    /// # Errors
    /// [`TokenizerError`] if the lists do not make a complete and unambiguous vocabulary.
    pub fn new(
        tokens: Vec<String>,
        token_types: &[i32],
        merges: &[String],
        bos: u32,
        eos: u32,
    ) -> Result<Self, TokenizerError> {
        let count = tokens.len();
        // The highest 32-bit number is not an id: it marks joined tokens during merging.
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

    /// Length of the vocabulary; all ids are below it.
    pub fn vocabulary_size(&self) -> usize {
        self.bytes.len()
    }

    /// Id of the token that begins a prompt.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of the token that ends an answer.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Id of the special token called `name`.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.get(name).copied()
    }

    /// Whether `id` is matched by name; false outside the vocabulary.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Encodes a text in which no special token is recognised.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        // Without limits nothing ends it early.
        self.encode_within(&[Segment::guest(text)], EncodeLimits::default())
            .unwrap_or_default()
    }

    /// Encodes a prompt.
    ///
    /// The name of a special token is recognised only within one template segment. The text between
    /// special tokens is encoded as a whole, even if its parts have different authors.
    pub fn encode_segments(&self, segments: &[Segment]) -> Vec<u32> {
        // Without limits nothing ends it early.
        self.encode_within(segments, EncodeLimits::default())
            .unwrap_or_default()
    }

    /// As [`Self::encode_segments`], within limits: beside the tokens it takes memory for one
    /// stretch of text that several segments share, and for a few kilobytes of one word.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn encode_within(
        &self,
        segments: &[Segment],
        limits: EncodeLimits<'_>,
    ) -> Result<Vec<u32>, EncodeError> {
        let mut encoder = Encoder::new(&self.merges, &self.byte_tokens, limits);
        // The stretch before the next special token. Borrowed as long as one segment has all of it.
        let mut run = Cow::Borrowed("");
        for segment in segments {
            let mut rest = segment.text.as_str();
            while segment.is_template()
                && let Some((at, length, token)) = self.matcher.find(rest)
            {
                run += &rest[..at];
                encoder.merge_pieces(&run)?;
                run = Cow::Borrowed("");
                encoder.take(&mut iter::once(token));
                rest = &rest[at + length..];
            }
            run += rest;
        }
        encoder.merge_pieces(&run)?;
        encoder.finish()
    }

    /// The bytes of a plain token, or the name of a special one; empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The concatenation of [`Self::token_bytes`] for all `ids`, which need not be valid UTF-8.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter()
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect()
    }
}

/// The ids of the special tokens in chat prompts and answers.
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
    /// Marks the tags of tool calls; absent from small vocabularies.
    pub dsml: Option<u32>,
    /// Opens a reminder; absent from small vocabularies.
    pub latest_reminder: Option<u32>,
    /// Tokens that end an answer: the end token and those that open another turn.
    pub stop: Vec<u32>,
}

impl ChatTokens {
    /// Looks the tokens up by name.
    ///
    /// # Errors
    /// [`TokenizerError::MissingSpecial`] if one of the four required ones is missing.
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

/// Whether `text` is special even if its token type says otherwise, because prompts are built from
/// it.
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

/// The merges by pair, and for each token whether a merge results in it.
fn read_merges(
    list: &[String],
    ids: &HashMap<&str, u32>,
    count: usize,
) -> Result<(Merges, Vec<bool>), TokenizerError> {
    let mut pairs = Vec::with_capacity(list.len());
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
        pairs.push(((find(left)?, find(right)?), Merge { rank, token }));
        merged[token as usize] = true;
    }
    let merges = Merges::new(pairs).map_err(|index| TokenizerError::DuplicateMerge {
        index,
        text: list[index].clone(),
    })?;
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

#[cfg(test)]
mod tests;
