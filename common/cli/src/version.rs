//! What `--version` prints.

use std::sync::LazyLock;

use ds4_common::kernels::Kernels;

/// The version of the programs, and the kernels that this CPU can run.
#[must_use]
pub fn long_version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let kernels = Kernels::summary();
        format!("{}\nkernels {kernels}", env!("CARGO_PKG_VERSION"))
    });
    &TEXT
}
