//! Resizing as Pillow does it, to the last bit.
//!
//! Two passes, rows first, then columns; a pass that would not change the size is left out. Each output value is a
//! weighted sum of the inputs under a window that widens when the image shrinks (so that shrinking averages instead
//! of skipping). Images of bytes are summed in fixed point and rounded to bytes between the passes; maps of f32 are
//! summed in f64 and rounded to f32.
//!
//! Source: the Pillow library's `Resample.c`, as described in its documentation; checked against its output.

use std::ops::Range;

/// The shape of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The triangle `1 - |t|`: Pillow's `BILINEAR`.
    Bilinear,
    /// Keys' cubic with `a = -1/2` (Keys 1981, eq. 15): Pillow's `BICUBIC`.
    Bicubic,
}

impl Filter {
    /// Half the width of the window, in input pixels when the size does not shrink.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, t: f64) -> f64 {
        let t = t.abs();
        match self {
            Self::Bilinear => (1.0 - t).max(0.0),
            Self::Bicubic => {
                let a = -0.5;
                if t < 1.0 {
                    ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
                } else if t < 2.0 {
                    (((t - 5.0) * t + 8.0) * t - 4.0) * a
                } else {
                    0.0
                }
            }
        }
    }
}

/// Fractional bits of the weights for bytes: what is left of 32 after eight for the pixel and two for the sign and for
/// sums that overshoot.
const BITS: u32 = 32 - 8 - 2;

/// For each output of a pass, the inputs under its window and their weights, which sum to one.
struct Windows {
    windows: Vec<(Range<usize>, Vec<f64>)>,
}

impl Windows {
    fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let window = |index: usize| {
            let centre = (index as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weight = |x: usize| filter.at((x as f64 - centre + 0.5) * (1.0 / stretch));
            let mut weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                let inverse = 1.0 / sum;
                weights.iter_mut().for_each(|weight| *weight *= inverse);
            }
            (first..end, weights)
        };
        Self { windows: (0..to).map(window).collect() }
    }

    /// The weights in fixed point, rounded half away from zero.
    fn fixed(self) -> Vec<(Range<usize>, Vec<i32>)> {
        let fixed = |weight: &f64| (weight * f64::from(1 << BITS)).round() as i32;
        self.windows.into_iter().map(|(range, weights)| (range, weights.iter().map(fixed).collect())).collect()
    }
}

/// Resizes interleaved RGB bytes of `[height, width, 3]` to `[to_height, to_width, 3]`.
///
/// # Panics
/// When a size is zero or `rgb` does not have the size of its shape.
pub fn resize_rgb(
    rgb: &[u8],
    width: usize,
    height: usize,
    to_width: usize,
    to_height: usize,
    filter: Filter,
) -> Vec<u8> {
    assert!(width * height * to_width * to_height > 0, "an image has pixels");
    assert_eq!(rgb.len(), width * height * 3, "three bytes per pixel");
    let sum = |weights: &[i32], pixel: &dyn Fn(usize) -> [u8; 3]| {
        let mut sums = [1i32 << (BITS - 1); 3];
        for (tap, weight) in weights.iter().enumerate() {
            for (sum, value) in sums.iter_mut().zip(pixel(tap)) {
                *sum += weight * i32::from(value);
            }
        }
        sums.map(|sum| (sum >> BITS).clamp(0, 255) as u8)
    };
    let rows: std::borrow::Cow<'_, [u8]> = if width == to_width {
        rgb.into()
    } else {
        let windows = Windows::new(width, to_width, filter).fixed();
        let mut out = Vec::with_capacity(height * to_width * 3);
        for row in rgb.chunks_exact(width * 3) {
            for (range, weights) in &windows {
                let taps = row[range.start * 3..range.end * 3].as_chunks::<3>().0;
                out.extend(sum(weights, &|tap| taps[tap]));
            }
        }
        out.into()
    };
    if height == to_height {
        return rows.into_owned();
    }
    let windows = Windows::new(height, to_height, filter).fixed();
    let pixels = rows.as_chunks::<3>().0;
    let mut out = Vec::with_capacity(to_height * to_width * 3);
    for (range, weights) in &windows {
        for x in 0..to_width {
            out.extend(sum(weights, &|tap| pixels[(range.start + tap) * to_width + x]));
        }
    }
    out
}

/// Resizes a map of f32 values, `[height, width]` to `[to_height, to_width]`.
///
/// # Panics
/// When a size is zero or `map` does not have the size of its shape.
pub fn resize_map(
    map: &[f32],
    width: usize,
    height: usize,
    to_width: usize,
    to_height: usize,
    filter: Filter,
) -> Vec<f32> {
    assert!(width * height * to_width * to_height > 0, "a map has values");
    assert_eq!(map.len(), width * height, "one value per place");
    let sum = |weights: &[f64], value: &dyn Fn(usize) -> f32| {
        weights.iter().enumerate().map(|(tap, weight)| f64::from(value(tap)) * weight).sum::<f64>() as f32
    };
    let rows: std::borrow::Cow<'_, [f32]> = if width == to_width {
        map.into()
    } else {
        let windows = Windows::new(width, to_width, filter).windows;
        let row = |row: &[f32]| -> Vec<f32> {
            windows.iter().map(|(range, weights)| sum(weights, &|tap| row[range.start + tap])).collect()
        };
        map.chunks_exact(width).flat_map(row).collect()
    };
    if height == to_height {
        return rows.into_owned();
    }
    let windows = Windows::new(height, to_height, filter).windows;
    let column = |(range, weights): &(Range<usize>, Vec<f64>), x: usize| {
        sum(weights, &|tap| rows[(range.start + tap) * to_width + x])
    };
    windows.iter().flat_map(|window| (0..to_width).map(move |x| column(window, x))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Vec<u8> {
        (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect()
    }

    #[test]
    fn one_size_is_a_copy_and_one_colour_stays_itself() {
        let image = ramp(7, 5);
        assert_eq!(resize_rgb(&image, 7, 5, 7, 5, Filter::Bicubic), image);
        for (width, height) in [(1, 1), (3, 90), (211, 2), (50, 50)] {
            let plain = vec![143; width * height * 3];
            let out = resize_rgb(&plain, width, height, 14, 14, Filter::Bicubic);
            assert!(out.iter().all(|value| *value == 143), "{width} x {height}");
        }
    }

    /// Values that Pillow 13.0.0 gives.
    #[test]
    fn a_row_is_resized_as_pillow_does() {
        let row: Vec<u8> = [0u8, 255, 10, 200, 60].into_iter().flat_map(|v| [v, v, v]).collect();
        let first = |out: Vec<u8>| out.into_iter().step_by(3).collect::<Vec<u8>>();
        assert_eq!(first(resize_rgb(&row, 5, 1, 3, 1, Filter::Bicubic)), PILLOW_BICUBIC_5_TO_3);
        assert_eq!(first(resize_rgb(&row, 5, 1, 8, 1, Filter::Bicubic)), PILLOW_BICUBIC_5_TO_8);
        assert_eq!(first(resize_rgb(&row, 5, 1, 3, 1, Filter::Bilinear)), PILLOW_BILINEAR_5_TO_3);
    }

    #[test]
    fn a_map_is_resized_as_pillow_does() {
        let map: Vec<f32> = (0..6).map(|i| (i * i) as f32 * 0.37 - 1.0).collect();
        assert_eq!(resize_map(&map, 3, 2, 5, 3, Filter::Bilinear), PILLOW_MAP_3X2_TO_5X3);
    }

    const PILLOW_BICUBIC_5_TO_3: [u8; 3] = [108, 116, 116];
    const PILLOW_BICUBIC_5_TO_8: [u8; 8] = [0, 113, 253, 71, 48, 196, 125, 50];
    const PILLOW_BILINEAR_5_TO_3: [u8; 3] = [109, 107, 120];
    const PILLOW_MAP_3X2_TO_5X3: [f32; 15] = [
        -1.0,
        -0.852,
        -0.63,
        0.036000013,
        0.48000002,
        0.66499996,
        1.257,
        2.145,
        3.4770002,
        4.365,
        2.33,
        3.366,
        4.92,
        6.918,
        8.25,
    ];
}
