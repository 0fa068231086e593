//! What the serving side needs to know of a model's vocabulary.

use crate::prompt::{ChatTokens, Tokenizer, TokenizerError};

/// The tokenizer with the ids of the tokens that structure chats.
#[derive(Debug)]
pub struct Vocabulary {
    pub tokenizer: Tokenizer,
    pub chat: ChatTokens,
}

impl Vocabulary {
    /// Looks the special tokens up.
    ///
    /// # Errors
    /// The vocabulary lacks one without which there is no chat.
    pub fn new(tokenizer: Tokenizer) -> Result<Self, TokenizerError> {
        let chat = ChatTokens::find(&tokenizer)?;
        Ok(Vocabulary { tokenizer, chat })
    }
}
