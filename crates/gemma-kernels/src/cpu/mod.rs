//! The operations on the CPU: slices in, slices out, for the ndarray and the flex backend alike.
//!
//! `level` finds out what the processor can do, `lanes` is the vector type of each instruction set, `linear` and
//! `attention` are written once over it.

mod attention;
mod lanes;
mod level;
mod linear;

pub(crate) use attention::{AttendShape, Keys, attend};
pub use level::{Level, cpu_level};
pub(crate) use linear::{linear, rows};
