//! What the command lines of `ds4-coord` and `ds4-expert` share: flags, their parsers, the version,
//! the log, standard output, the async runtime, signals, what is read again on SIGHUP, what systemd is
//! told, and the end of the process.

mod flags;
mod log;
mod output;
pub mod parse;
mod reload;
mod runtime;
mod signals;
mod systemd;
mod tls;
mod version;

pub use flags::{IsaArg, ModelFlag, ThreadArgs};
pub use log::{LogArg, LogFilter};
pub use output::{OutputError, exit_code, print};
pub use reload::Reloaders;
pub use runtime::block_on;
pub use signals::{Signal, Signals};
pub use systemd::ServiceManager;
pub use tls::TlsArgs;
pub use version::long_version;
