//! Float functions with one meaning on every platform: no call reaches the system's libm, nothing
//! is fused, and every sum has a fixed order.

mod functions;
mod hadamard;
mod norm;
mod rounding;
mod sum;

pub use functions::{exp, sigmoid, silu, sin_cos, softplus};
pub use hadamard::hadamard;
pub use norm::{rms_norm, rms_scale};
pub use rounding::{round_e4m3_blocks, round_f16, round_fp4_blocks};
pub use sum::{add_row, add_row_within};
