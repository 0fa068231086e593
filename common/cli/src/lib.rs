//! What the command lines of `ds4-coord` and `ds4-expert` share: flags, their parsers, the version,
//! the log, standard output, signals and the end of the process.

mod flags;
mod log;
mod output;
pub mod parse;
mod signals;
mod tls;
mod version;

pub use flags::{IsaArg, ModelFlag, ThreadArgs};
pub use log::LogArg;
pub use output::{OutputError, exit_code, print};
pub use signals::Signals;
pub use tls::TlsArgs;
pub use version::long_version;
