//! Elementary functions on the CPU, written so that the compiler vectorizes a loop over them. They are our own also
//! because the platforms' differ in their last bit, and a seed shall mean the same everywhere.

/// eˣ within 2e-7 relative for x from −87 to 88; 0 below, and no more than e⁸⁸ above. NaN stays NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, so eˣ = 2ⁿ·eʳ: the power of two goes into the exponent bits, eʳ is its
/// Taylor polynomial of degree 7 (next term below 6e-9). ln 2 is split in two so that n·ln 2 loses nothing
/// (W. J. Cody and W. Waite, "Software Manual for the Elementary Functions", 1980).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the integer nearest to a small number in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    // Nine bits, so that n times it is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    // comparisons and no `min`, so that NaN passes
    let x = if x > 88.0 { 88.0 } else { x };
    let nothing = x < -87.0;
    let x = if nothing { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut polynomial = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        polynomial = polynomial * r + coefficient;
    }
    // 127 is the exponent bias of f32, 23 its mantissa's width.
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let power = f32::from_bits(exponent << 23) * polynomial;
    if nothing { 0.0 } else { power }
}

/// The value of an f16 in little-endian bytes, for which there is always the same arithmetic: `half` asks each time what the CPU can do, and
/// the call that might follow leaves a kernel no vector in its register.
#[inline(always)]
pub(crate) fn f16_to_f32(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (exponent, fraction) = (bits >> 10 & 31, bits & 0x3ff);
    // the exponents' biases are 127 and 15; infinities and NaN have the largest exponent of either format
    let bias = if exponent == 31 { 2 * 112 } else { 112 };
    let normal = (bits & 0x7fff) << 13;
    let normal = normal + (bias << 23);
    let subnormal = (fraction as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    f32::from_bits(if exponent == 0 { subnormal } else { normal } | (bits & 0x8000) << 16)
}

/// tanh x = (1 − e) / (1 + e) with e = e^(−2 |x|) and the sign of x, within 4e-7 relative. Near zero, where 1 − e cancels, it
/// is the Taylor polynomial of degree 9 (next term below 1e-8): a cap of scores may be so high that all of them lie there.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    let square = x * x;
    let mut series = 62.0 / 2835.0;
    for coefficient in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        series = series * square + coefficient;
    }
    if x.abs() < 0.25 { x + x * (series * square) } else { far }
}

/// The Taylor coefficients of artanh z / z in z², the highest power first.
pub(crate) const ARTANH: [f32; 8] =
    [1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0];

/// softplus x = log (1 + eˣ) = max(x, 0) + log (1 + e^(−|x|)), within 4e-7 relative down to −87. The logarithm is
/// log (1 + t) = 2 artanh(t / (2 + t)), whose argument is at most 1/3, by its series (next term below 2e-9): adding t to 1 first
/// would lose as many digits as t has zeros.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let t = exp(-x.abs());
    let z = t / (2.0 + t);
    let square = z * z;
    let mut series = 0.0;
    for coefficient in ARTANH {
        series = series * square + coefficient;
    }
    // a comparison and no `max`, so that NaN passes
    let linear = if x < 0.0 { 0.0 } else { x };
    linear + 2.0 * z * series
}

/// `cap · tanh(x / cap)`, the soft cap of logits and of scores (Gemma 2 report, section 2).
#[inline(always)]
pub fn softcap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// gelu x in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415), `½ x (1 + tanh u) = x / (1 + e^(−2u))` with
/// `u = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    const ROOT_2_OVER_PI: f32 = 0.797_884_6;
    let u = ROOT_2_OVER_PI * (x + 0.044715 * x * x * x);
    // `exp` does not grow without limit, but this far down nothing is left; times zero, infinity still shows
    let kept = if x < -1e4 { x * 0.0 } else { x };
    kept / (1.0 + exp(-2.0 * u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_halves_have_their_values() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (f16_to_f32(bits.to_le_bytes()), half::f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{bits:#x}: {found}");
        }
    }

    #[test]
    fn functions_agree_with_f64_over_their_range() {
        let (mut worst_exp, mut worst_tanh, mut worst_softplus) = (0f64, 0f64, 0f64);
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst_exp = worst_exp.max((f64::from(exp(x)) - exact).abs() / exact);
            // on both sides of zero e^(-|x|) is what matters
            let exact = f64::from(x).max(0.0) + (-f64::from(x).abs()).exp().ln_1p();
            worst_softplus = worst_softplus.max((f64::from(softplus(x)) - exact).abs() / exact);
            let exact = f64::from(x).tanh();
            if exact != 0.0 {
                worst_tanh = worst_tanh.max(((f64::from(tanh(x)) - exact) / exact).abs());
            }
        }
        assert!(worst_exp < 2e-7, "{worst_exp}");
        assert!(worst_tanh < 4e-7, "{worst_tanh}");
        assert!(worst_softplus < 4e-7, "{worst_softplus}");
        for tiny in [1e-5, -3e-8, 1e-20, f32::MIN_POSITIVE] {
            assert_eq!(tanh(tiny), tiny);
        }
    }

    #[test]
    fn the_ends_are_what_they_should_be() {
        assert_eq!([exp(f32::NEG_INFINITY), exp(-1e30), exp(0.0)], [0.0, 0.0, 1.0]);
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::INFINITY) > 1e38);
        assert_eq!([tanh(f32::INFINITY), tanh(f32::NEG_INFINITY), tanh(0.0)], [1.0, -1.0, 0.0]);
        assert_eq!([softplus(f32::INFINITY), softplus(f32::NEG_INFINITY), softplus(1e30)], [f32::INFINITY, 0.0, 1e30]);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan() && softplus(f32::NAN).is_nan());
    }
}
