//! Standard output, and the end of a process.
//!
//! A reader that leaves early, as in `ds4-coord inspect | head -1`, is not an error: the command
//! ends in silence.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether the reader of a pipe has closed it.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

/// Prints a text at once, without a line break behind it. Unlike `print!`, it does not panic.
///
/// # Errors
/// Standard output is closed, or a file that is full.
pub fn print(text: impl Display) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints a line of formatted text to standard output; yields a `Result` of [`OutputError`].
#[macro_export]
macro_rules! print_line {
    ($($text:tt)*) => {
        $crate::print(::std::format_args!("{}\n", ::std::format_args!($($text)*)))
    };
}

/// The exit code of a program whose command ended with `result`: an error is one line on standard
/// error and code 1, a closed pipe is a success.
pub fn exit_code(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let output = error.downcast_ref::<OutputError>();
    if output.is_some_and(OutputError::is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    // Without standard error there is nowhere left to report to.
    let line = format!("{program}: {error:#}\n");
    let _ = io::stderr().write_all(line.as_bytes());
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn only_a_closed_pipe_is_forgiven() {
        let failed = |kind: ErrorKind| Err(OutputError(kind.into()));
        let code = |kind| exit_code("ds4-test", failed(kind).context("the report"));
        assert_eq!(code(ErrorKind::BrokenPipe), ExitCode::SUCCESS);
        assert_eq!(code(ErrorKind::StorageFull), ExitCode::FAILURE);
        // Another pipe's end is an error.
        let socket: anyhow::Error = io::Error::from(ErrorKind::BrokenPipe).into();
        assert_eq!(exit_code("ds4-test", Err(socket)), ExitCode::FAILURE);
        assert_eq!(exit_code("ds4-test", Ok(())), ExitCode::SUCCESS);
    }
}
