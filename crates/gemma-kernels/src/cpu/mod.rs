//! The operations on the CPU: slices in, slices out, for the ndarray and the flex backend alike.
//!
//! `level` finds out what the processor can do, `lanes` is the vector type of each instruction set, `linear`,
//! `attention`, `recurrence` and `gates` are written once over it.

mod attention;
mod gates;
mod lanes;
mod level;
mod linear;
mod recurrence;

pub(crate) use attention::{AttendShape, Keys, attend};
pub(crate) use gates::{Gates, gated_decay};
pub use level::{Level, cpu_level};
pub(crate) use linear::{linear, rows};
pub(crate) use recurrence::{Recurrence, linear_recurrence};
