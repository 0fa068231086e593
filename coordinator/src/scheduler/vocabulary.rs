//! The tokenizer and the tokens that structure chats, together.

use crate::prompt::{ChatTokens, Tokenizer, TokenizerError};

/// The tokenizer with the ids of the tokens that structure chats.
#[derive(Debug)]
pub struct Vocabulary {
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// The ids of turn, reasoning and end markers.
    pub chat: ChatTokens,
}

impl Vocabulary {
    /// Looks up the special tokens.
    ///
    /// # Errors
    /// The vocabulary lacks a token that chat prompts need.
    pub fn new(tokenizer: Tokenizer) -> Result<Self, TokenizerError> {
        let chat = ChatTokens::find(&tokenizer)?;
        Ok(Vocabulary { tokenizer, chat })
    }
}
