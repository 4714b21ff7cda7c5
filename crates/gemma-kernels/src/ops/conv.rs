//! The short convolution over time of a recurrent block, each channel on its own.

use crate::traffic::{indices, words};
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Tensor;

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do for [`causal_conv`](super::causal_conv), which is the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait ConvOps: Backend {
        /// See [`causal_conv`](super::causal_conv).
        fn causal_conv(
            line: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            firsts: IntTensor<Self>,
        ) -> FloatTensor<Self>;
    }
}

pub use extension::ConvOps;

/// `y[r] = b + Σ w[k] ⊙ line[firsts[r] + k]`, the sum over the taps: `line` `[rows, channels]`, `weight` `[channels, taps]` in
/// row-major order, `bias` `[channels]`; the result is `[firsts, channels]`. One pass, one launch on a GPU; on autodiff
/// devices this is [`reference::causal_conv`](crate::reference::causal_conv).
///
/// # Panics
/// When the shapes do not match, or a tap would lie outside the line.
pub fn causal_conv(line: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, firsts: Vec<u32>) -> Tensor<2> {
    let [rows, channels] = line.dims();
    let [values] = weight.dims();
    assert!(values.is_multiple_of(channels) && bias.dims() == [channels], "a bias and as many taps for every channel");
    let taps = values / channels;
    assert!(firsts.iter().all(|first| *first as usize + taps <= rows), "taps outside {rows} rows");
    let device = line.device();
    if [line.is_autodiff(), weight.is_autodiff(), bias.is_autodiff()].contains(&true) {
        return reference_causal_conv(line, weight, bias, firsts);
    }
    let firsts = words(firsts, &device).into_dispatch();
    let [weight, bias] = [weight, bias].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as ConvOps>::causal_conv(line.into_dispatch(), weight, bias, firsts))
}

/// The reference implementation of [`causal_conv`]: a tap is a shift of the line.
pub fn reference_causal_conv(line: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, firsts: Vec<u32>) -> Tensor<2> {
    let [rows, channels] = line.dims();
    let taps = weight.dims()[0] / channels;
    let places = rows + 1 - taps;
    let weight = weight.reshape([channels, taps]);
    let mut y: Tensor<2> = bias.unsqueeze::<2>();
    for tap in 0..taps {
        let factor = weight.clone().slice([0..channels, tap..tap + 1]).reshape([1, channels]);
        y = y + line.clone().slice([tap..tap + places, 0..channels]) * factor;
    }
    if firsts.iter().copied().eq(0..places as u32) {
        return y;
    }
    let firsts = indices(firsts.into_iter().map(|first| first as i32).collect(), &y.device());
    y.select(0, firsts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};

    #[test]
    fn every_row_sums_its_taps() {
        for (backend, device) in devices() {
            for (rows, channels, taps, firsts) in [
                (4, 1, 4, vec![0]),
                (9, 5, 4, (0..6).collect()),
                (20, 70, 4, vec![0, 4, 5, 12, 16]),
                (3, 300, 1, vec![2, 0]),
            ] {
                let line = tensor([rows, channels], 1, &device);
                let [weight, bias] =
                    [(channels * taps, 2), (channels, 3)].map(|(len, seed)| tensor([len], seed, &device));
                let found = values(causal_conv(line.clone(), weight.clone(), bias.clone(), firsts.clone()));
                let [line, weight, bias] = [values(line), values(weight), values(bias)];
                let mut expected = Vec::new();
                for first in firsts {
                    for channel in 0..channels {
                        let tap = |tap: usize| {
                            weight[channel * taps + tap] * line[(first as usize + tap) * channels + channel]
                        };
                        expected.push(bias[channel] + (0..taps).map(tap).sum::<f32>());
                    }
                }
                assert_close(&found, &expected, 2e-6, &format!("{backend}, {rows} x {channels}, {taps} taps"));
            }
        }
    }
}
