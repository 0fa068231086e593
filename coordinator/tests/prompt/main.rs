//! Prompts and tokens against those of DeepSeek's own encoder and vocabulary.

mod fixtures;
mod long_words;
mod render;
mod tokenize;
mod vocabulary;
