//! The operations on the CPU: slices in, slices out, for the ndarray and the flex backend alike.
//!
//! `level` finds out what the processor can do, `lanes` is the vector type of each instruction set, `pool` the
//! threads. `linear` decides how a product is computed: `stream` or `integer` for few tokens, `blocked` or `bytes` for
//! many.
//! `attention` is one algorithm for both. The innermost loops of the last two are in `tile`.

mod attention;
mod blocked;
mod buffer;
#[cfg(target_arch = "x86_64")]
mod bytes;
mod decode;
mod fused;
mod integer;
mod lanes;
mod level;
mod linear;
mod math;
mod pool;
mod quantize;
mod stream;
mod tile;

pub(crate) use attention::{AttendShape, Keys, attend};
pub(crate) use fused::{geglu, rms_norm, rotate};
pub use level::{Level, cpu_level};
pub(crate) use linear::{linear, rows};
