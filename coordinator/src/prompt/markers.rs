//! The strings that structure prompts and answers. The models were trained on them.

/// Begins a prompt.
pub const BOS: &str = "<｜begin▁of▁sentence｜>";
/// Ends an assistant turn.
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
