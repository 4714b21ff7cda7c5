//! The operations on the CPU: slices in, slices out, for the ndarray and the flex backend alike.
//!
//! `level` finds out what the processor can do, `lanes` is the vector type of each instruction set, `pool` the
//! threads. `linear` decides how a product is computed: `stream` or `integer`, which hands blocks of 256 to
//! `superblocks`, for few tokens, `blocked`, `pairs` or `bytes` for many, with blocks of parts taken apart by `parts`.
//! `attention` is one algorithm for both; its innermost loop, and that of `blocked`, is in `tile`. `recurrence` and
//! `gates` are RecurrentGemma's.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod blocked;
#[cfg(all(test, unix))]
mod bounds;
mod buffer;
#[cfg(target_arch = "x86_64")]
mod bytes;
mod decode;
mod fused;
mod gates;
mod integer;
mod lanes;
mod level;
mod linear;
mod math;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod parts;
mod pool;
mod quantize;
mod recurrence;
mod stream;
#[cfg(target_arch = "x86_64")]
mod superblocks;
mod tile;

pub(crate) use attention::{AttendShape, Keys, Stored, attend};
pub(crate) use fused::{geglu, rms_norm, rotate};
pub(crate) use gates::{Gates, gated_decay};
pub use level::{Level, cpu_level};
pub(crate) use linear::{linear, rows};
pub(crate) use recurrence::{Recurrence, linear_recurrence};
