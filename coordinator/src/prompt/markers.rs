//! The strings that structure prompts and answers. All are protocol constants of the models.

/// Begin of the prompt.
pub const BOS: &str = "<｜begin▁of▁sentence｜>";
/// End of an assistant turn.
pub const EOS: &str = "<｜end▁of▁sentence｜>";
/// Opens a user turn.
pub const USER: &str = "<｜User｜>";
/// Opens an assistant turn.
pub const ASSISTANT: &str = "<｜Assistant｜>";
/// Opens a reminder.
pub const LATEST_REMINDER: &str = "<｜latest_reminder｜>";
/// Opens the reasoning.
pub const THINK: &str = "<think>";
/// Ends the reasoning.
pub const END_THINK: &str = "</think>";
/// The special token inside every tag of a tool call.
pub const DSML: &str = "｜DSML｜";
