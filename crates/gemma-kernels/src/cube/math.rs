//! Functions whose forms in shaders are not to be relied on: some drivers know no infinity, and their `tanh` has no relative
//! accuracy near zero.

use crate::math::ARTANH;
use cubecl::prelude::*;

/// The largest power of e taken: `1 / (1 + exp(80))` is 0 beside 1 in f32.
const LARGEST_POWER: f32 = 80.0;

/// `tanh x`, by its series near zero.
#[cube]
pub(super) fn tanh(x: f32) -> f32 {
    let power = min(x.abs() * 2.0f32, LARGEST_POWER).exp();
    let far = 1.0f32 - 2.0f32 / (power + 1.0f32);
    let square = x * x;
    // 1/3, 2/15, 17/315
    let near = x - x * square * (0.333_333_34f32 - square * (0.133_333_34f32 - square * 0.053_968_254f32));
    select(square < 0.01f32, near, select(x < 0.0f32, -far, far))
}

/// `1 / (1 + exp(-x))`.
#[cube]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + min(-x, LARGEST_POWER).exp())
}

/// `2 √(2/π)`, twice the factor in the tanh form of GELU, whose `½ (1 + tanh(u))` is `1 / (1 + exp(-2 u))`.
const TWICE_ROOT: f32 = 1.595_769;
/// Its factor of the cube.
const CUBIC: f32 = 0.044_715;

/// `gelu x` in its tanh form, as [`crate::math::gelu`].
#[cube]
pub(super) fn gelu(x: f32) -> f32 {
    x * sigmoid(TWICE_ROOT * (x + CUBIC * x * x * x))
}

/// `log (1 + eˣ)`, with the series of [`crate::math::softplus`]: drivers' logarithms have no relative accuracy near 1.
#[cube]
#[allow(clippy::needless_range_loop, reason = "a kernel unrolls loops over an index")]
pub(super) fn softplus(x: f32) -> f32 {
    let t = (-min(x.abs(), LARGEST_POWER)).exp();
    let z = t / (2.0f32 + t);
    let square = z * z;
    let mut series = 0.0f32;
    #[unroll]
    for i in 0..comptime!(ARTANH.len()) {
        series = series * square + comptime!(ARTANH[i]);
    }
    max(x, 0.0f32) + 2.0f32 * z * series
}
