//! Products of few tokens with weights in blocks of 256 (Q2_K to Q6_K, IQ4_XS, IQ3 and IQ2), in integers.
//!
//! The parts of such a block, 16 or 32 values each, have a scale and an addend of their own, while 32 activations share
//! a scale: a part's sum over integers is exact, and is turned into f32 once.
//!
//! For each instruction set there is one loop, and a trait `Block` that says how the blocks of a format are taken apart; the formats
//! below four bits are in `low_bits`. What the instruction sets share of the formats with code books is in [`grids`].

/// `$call` with the type `$block` that takes the blocks of a format apart: of those in scope that are named as formats are, with
/// `Signed` for the ones with a code book.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! with_block {
    ($format:expr, $block:ident => $call:expr) => {
        match $format {
            Format::Iq4Xs => {
                type $block = Iq4Xs;
                $call
            }
            format => with_block_below_128!(format, $block => $call),
        }
    };
}

/// The same for formats whose numbers are less than 128; on x86, where they are unsigned, none is negative.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! with_block_below_128 {
    ($format:expr, $block:ident => $call:expr) => {
        with_block_below_128!($format, $block => $call; Q2K Q2K, Q3K Q3K, Q4K Q4K, Q5K Q5K, Q6K Q6K, Iq3Xxs Signed<Iq3Xxs>,
            Iq3S Signed<Iq3S>, Iq2Xxs Signed<Iq2Xxs>, Iq2Xs Signed<Iq2Xs>, Iq2S Signed<Iq2S>)
    };
    ($format:expr, $block:ident => $call:expr; $($name:ident $type:ty),*) => {
        match $format {
            $(Format::$name => {
                type $block = $type;
                $call
            })*
            other => unreachable!("{other} has no such blocks"),
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod avx2;
mod grids;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod vnni;

use crate::Format;

#[cfg(target_arch = "aarch64")]
pub(in crate::cpu) use neon::{bytes, has_addends, take_apart, words};
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) use vnni::{rows, split};

/// Values of a block.
const BLOCK: usize = 256;

/// Whether there are kernels here for this format.
pub(in crate::cpu) fn has(format: Format) -> bool {
    use Format::*;
    matches!(format, Q2K | Q3K | Q4K | Q5K | Q6K | Iq4Xs | Iq3Xxs | Iq3S | Iq2Xxs | Iq2Xs | Iq2S)
}

/// Values of a block that share a scale.
pub(in crate::cpu) const fn part(format: Format) -> usize {
    match format {
        Format::Q2K | Format::Q3K | Format::Q6K | Format::Iq2Xs | Format::Iq2S => 16,
        _ => 32,
    }
}
