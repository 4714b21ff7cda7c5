//! A vector of f32 lanes, for each instruction set.
//!
//! The kernels are written once, over this trait. Its methods are `unsafe` for two reasons that hold for all of
//! them: the CPU must have the instruction set of the type, and pointers must be readable for the lanes.

use crate::math::f16_to_f32;

/// `N` f32 values that are computed with together.
///
/// # Safety
/// Every method requires that the CPU has the instruction set of the implementing type. Methods that take a
/// pointer read `N` values of the named kind from it, at any alignment.
pub(in crate::cpu) trait Lanes: Copy {
    /// Number of lanes.
    const N: usize;
    /// Values of a lane that are multiplied together.
    const EACH: usize = 1;
    /// Rows, then vectors per row, of the register tile of a product: as many sums as there are registers, less
    /// those for the operands.
    const TILE: (usize, usize);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn load_f16(from: *const u8) -> Self;
    unsafe fn load_i8(from: *const u8) -> Self;
    /// The low four bits of `N` bytes, minus 8.
    unsafe fn load_low_nibbles(from: *const u8) -> Self;
    /// The high four bits of `N` bytes, minus 8.
    unsafe fn load_high_nibbles(from: *const u8) -> Self;
    /// Four bits of each of `N` bytes, from bit `shift` on: 0 to 15.
    unsafe fn load_nibbles(from: *const u8, shift: u32) -> Self;
    /// The same, and 16 more in the lanes whose bit of `fifth` is set.
    unsafe fn load_five_bits(from: *const u8, shift: u32, fifth: u32) -> Self;
    /// The same nibbles of `low`, and above them the bits of `MASK` of each of `N` bytes at `high`, from bit
    /// `high_shift` on.
    unsafe fn load_split<const MASK: i32>(low: *const u8, shift: u32, high: *const u8, high_shift: u32) -> Self;
    /// `self * factor`.
    unsafe fn mul(self, factor: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `self + addend`.
    unsafe fn add(self, addend: Self) -> Self;
    unsafe fn sum(self) -> f32;
    /// Writes the transpose of an `N` x `N` square: value `j` of row `i` goes to place `i` of row `j`. Rows of the
    /// source and of the target lie `from_step` and `to_step` values apart.
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize);
}

/// Plain Rust: eight values in an array.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Plain([f32; 8]);

impl Plain {
    #[inline(always)]
    unsafe fn from_bytes(from: *const u8, value: impl Fn(u8) -> f32) -> Self {
        // SAFETY: the caller gives eight readable bytes.
        let bytes = unsafe { from.cast::<[u8; 8]>().read_unaligned() };
        Self(bytes.map(value))
    }
}

impl Lanes for Plain {
    const N: usize = 8;
    const TILE: (usize, usize) = (4, 1);

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives eight readable values.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for eight values.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller gives eight readable values.
        let halves = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Self(halves.map(|half| f32::from_bits(u32::from(u16::from_le(half)) << 16)))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller gives eight readable values.
        Self(unsafe { from.cast::<[[u8; 2]; 8]>().read() }.map(f16_to_f32))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        // SAFETY: as required of the caller.
        unsafe { Self::from_bytes(from, |byte| f32::from(byte.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        // SAFETY: as required of the caller.
        unsafe { Self::from_bytes(from, |byte| f32::from(byte & 15) - 8.0) }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        // SAFETY: as required of the caller.
        unsafe { Self::from_bytes(from, |byte| f32::from(byte >> 4) - 8.0) }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8, shift: u32) -> Self {
        // SAFETY: as required of the caller.
        unsafe { Self::from_bytes(from, |byte| f32::from(byte >> shift & 15)) }
    }

    #[inline(always)]
    unsafe fn load_five_bits(from: *const u8, shift: u32, fifth: u32) -> Self {
        // SAFETY: the caller gives eight readable bytes.
        let bytes = unsafe { from.cast::<[u8; 8]>().read_unaligned() };
        Self(std::array::from_fn(|i| f32::from((bytes[i] >> shift & 15) | ((fifth >> i & 1) as u8) << 4)))
    }

    #[inline(always)]
    unsafe fn load_split<const MASK: i32>(low: *const u8, shift: u32, high: *const u8, high_shift: u32) -> Self {
        // SAFETY: the caller gives eight readable bytes at both places.
        let [low, high] = unsafe { [low, high].map(|from| from.cast::<[u8; 8]>().read_unaligned()) };
        Self(std::array::from_fn(|i| f32::from((low[i] >> shift & 15) | (high[i] >> high_shift & MASK as u8) << 4)))
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // `f32::mul_add` only where it is an instruction: elsewhere it is a library call
        let one = |i: usize| {
            if cfg!(target_arch = "aarch64") {
                self.0[i].mul_add(factor.0[i], addend.0[i])
            } else {
                self.0[i] * factor.0[i] + addend.0[i]
            }
        };
        Self(std::array::from_fn(one))
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + addend.0[i]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0.iter().sum()
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        for i in 0..Self::N {
            for j in 0..Self::N {
                // SAFETY: the caller gives two squares of that size.
                unsafe { *to.add(j * to_step + i) = *from.add(i * from_step + j) };
            }
        }
    }
}
