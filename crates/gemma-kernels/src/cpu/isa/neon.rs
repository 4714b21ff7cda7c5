//! The vectors of 64-bit ARM: NEON, two registers at a time, as wide as the blocks' halves allow.

use super::lanes::Lanes;
use std::arch::aarch64::*;
use std::arch::asm;

/// Two registers of four values.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Neon(float32x4_t, float32x4_t);

impl From<[float32x4_t; 2]> for Neon {
    fn from([first, second]: [float32x4_t; 2]) -> Self {
        Self(first, second)
    }
}

impl Neon {
    /// Signed bytes, each in a lane.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn widen(bytes: int8x8_t) -> Self {
        // SAFETY: as required of the caller.
        unsafe {
            let words = vmovl_s8(bytes);
            let [low, high] = [vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)];
            Self(vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        }
    }

    /// Four bits of each byte, from bit `shift` on.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn nibbles(from: *const u8, shift: u32) -> uint8x8_t {
        // SAFETY: as required of the caller.
        unsafe { vand_u8(moved(vld1_u8(from), shift), vdup_n_u8(15)) }
    }
}

/// Bytes moved down by `shift` bits.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn moved(bytes: uint8x8_t, shift: u32) -> uint8x8_t {
    // SAFETY: as required of the caller.
    unsafe { vshl_u8(bytes, vdup_n_s8(-(shift as i8))) }
}

// SAFETY (for every block below): `Lanes` demands the instruction set and readable pointers of its callers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
impl Lanes for Neon {
    const N: usize = 8;
    const TILE: (usize, usize) = (6, 2);

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(from));
            let wide = |halves| vreinterpretq_f32_u32(vshlq_n_u32::<16>(halves));
            Self(wide(vmovl_u16(vget_low_u16(halves))), wide(vmovl_high_u16(halves)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe {
            let halves = vld1q_u8(from);
            let (low, high): (float32x4_t, float32x4_t);
            // the conversions are NEON's, and round nothing
            asm!(
                "fcvtl {low:v}.4s, {halves:v}.4h",
                "fcvtl2 {high:v}.4s, {halves:v}.8h",
                halves = in(vreg) halves,
                low = out(vreg) low,
                high = lateout(vreg) high,
                options(pure, nomem, nostack, preserves_flags),
            );
            Self(low, high)
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        unsafe { Self::widen(vreinterpret_s8_u8(vld1_u8(from))) }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        unsafe {
            let nibbles = vreinterpret_s8_u8(Self::nibbles(from, 0));
            Self::widen(vsub_s8(nibbles, vdup_n_s8(8)))
        }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        unsafe {
            let nibbles = vreinterpret_s8_u8(vshr_n_u8::<4>(vld1_u8(from)));
            Self::widen(vsub_s8(nibbles, vdup_n_s8(8)))
        }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8, shift: u32) -> Self {
        unsafe { Self::widen(vreinterpret_s8_u8(Self::nibbles(from, shift))) }
    }

    #[inline(always)]
    unsafe fn load_five_bits(from: *const u8, shift: u32, fifth: u32) -> Self {
        unsafe {
            let nibbles = Self::nibbles(from, shift);
            // each lane looks at its own bit
            let bits = vcreate_u8(0x8040_2010_0804_0201);
            let sixteen = vand_u8(vtst_u8(vdup_n_u8(fifth as u8), bits), vdup_n_u8(16));
            Self::widen(vreinterpret_s8_u8(vorr_u8(nibbles, sixteen)))
        }
    }

    #[inline(always)]
    unsafe fn load_split<const MASK: i32>(low: *const u8, shift: u32, high: *const u8, high_shift: u32) -> Self {
        unsafe {
            let (low, high) = (Self::nibbles(low, shift), vld1_u8(high));
            let high = vshl_n_u8::<4>(vand_u8(moved(high, high_shift), vdup_n_u8(MASK as u8)));
            Self::widen(vreinterpret_s8_u8(vorr_u8(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        unsafe { Self(vmulq_f32(self.0, factor.0), vmulq_f32(self.1, factor.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(vfmaq_f32(addend.0, self.0, factor.0), vfmaq_f32(addend.1, self.1, factor.1)) }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        unsafe { Self(vaddq_f32(self.0, addend.0), vaddq_f32(self.1, addend.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        unsafe {
            // quarters of four by four
            for (i, j) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
                let rows = {
                    let at = from.add(i * from_step + j);
                    [0, 1, 2, 3].map(|row| vld1q_f32(at.add(row * from_step)))
                };
                // pairs of rows interleaved, then pairs of pairs
                let [a, b, c, d] = [
                    vtrn1q_f32(rows[0], rows[1]),
                    vtrn2q_f32(rows[0], rows[1]),
                    vtrn1q_f32(rows[2], rows[3]),
                    vtrn2q_f32(rows[2], rows[3]),
                ]
                .map(|pairs| vreinterpretq_f64_f32(pairs));
                let columns = [vtrn1q_f64(a, c), vtrn1q_f64(b, d), vtrn2q_f64(a, c), vtrn2q_f64(b, d)];
                for (row, column) in columns.into_iter().enumerate() {
                    vst1q_f32(to.add((j + row) * to_step + i), vreinterpretq_f32_f64(column));
                }
            }
        }
    }
}

/// Asks for the cache line at `from`; never faults.
#[inline(always)]
pub(in crate::cpu) fn prefetch(from: *const u8) {
    // SAFETY: a prefetch is a hint; the address need not be valid.
    unsafe { asm!("prfm pldl1keep, [{from}]", from = in(reg) from, options(nostack, readonly, preserves_flags)) };
}

/// `sum[lane] + Σ_i a[4 lane + i] b[4 lane + i]`.
///
/// # Safety
/// The CPU must have dot products, and the function in which this is expanded their target feature.
#[inline(always)]
pub(in crate::cpu) unsafe fn dot(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: as required of the caller; registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// `sum[lane] + Σ_i x[4 lane + i] four[4 L + i]`: four bytes for all lanes.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
pub(in crate::cpu) unsafe fn dot_lane<const L: i32>(sum: int32x4_t, x: int8x16_t, four: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: as required of the caller; registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {x:v}.16b, {four:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            x = in(vreg) x,
            four = in(vreg) four,
            lane = const L,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
