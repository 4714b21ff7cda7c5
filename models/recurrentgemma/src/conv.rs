//! A causal depthwise convolution over time, whose past crosses the borders between chunks.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use gemma_kernels::causal_conv;
use gemma_nn::{Saver, Segment, Source, total_tokens};

/// `y[t] = b + Σ_k w[K-1-k] ⊙ x[t-k]`, `k = 0..K-1`, each channel on its own (De et al. 2024, arXiv:2402.19427,
/// §2.4). Before the start of a sequence stand zeros; before a later chunk, the last `K-1` inputs of the one before.
///
/// All in f32.
#[derive(Module, Debug)]
pub struct CausalConv {
    /// `[channels, 1, K]` in row-major order, the newest input at the last tap.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    taps: usize,
}

impl CausalConv {
    /// The convolution whose parameters begin with `{name}.`, over `taps` inputs, the newest included.
    pub fn load(source: &mut dyn Source, name: &str, channels: usize, taps: usize) -> Self {
        Self {
            weight: source.tensor(&format!("{name}.weight"), &[channels, 1, taps]),
            bias: source.vector(&format!("{name}.bias"), channels),
            taps,
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        let [channels] = self.bias.dims();
        saver.tensor(&format!("{name}.weight"), &[channels, 1, self.taps], &self.weight);
        saver.vector(&format!("{name}.bias"), &self.bias);
    }

    /// `[tokens, channels]` to the same shape. `tails` holds the last `K-1` inputs of each segment's sequence,
    /// `[K-1, channels]`, the oldest first, and takes up the new ones; `None` stands for zeros.
    ///
    /// # Panics
    /// When segments, tails and `x` do not match.
    pub fn forward(&self, x: Tensor<2>, segments: &[Segment], tails: &mut [Option<Tensor<2>>]) -> Tensor<2> {
        let [tokens, _] = x.dims();
        assert_eq!(segments.len(), tails.len(), "one tail per segment");
        assert_eq!(total_tokens(segments), tokens, "the segments are all tokens");
        let past = self.taps - 1;
        // each segment behind its tail, all on one axis: a tap is then a shift of that axis
        let line = if past == 0 { x } else { self.behind_tails(x, segments, tails, past) };
        // between two segments stand the rows that look from one into the other
        let firsts = segments.iter().scan(0, |first, segment| {
            let rows = *first..*first + segment.len as u32;
            *first = rows.end + past as u32;
            Some(rows)
        });
        causal_conv(line, self.weight.val(), self.bias.val(), firsts.flatten().collect())
    }

    /// Every segment of `x` behind the `past` inputs before it, one after the other; the tails become those of the
    /// segments' ends.
    fn behind_tails(
        &self,
        x: Tensor<2>,
        segments: &[Segment],
        tails: &mut [Option<Tensor<2>>],
        past: usize,
    ) -> Tensor<2> {
        let [tokens, channels] = x.dims();
        let mut parts = Vec::with_capacity(2 * segments.len());
        let mut first = 0;
        for (segment, tail) in segments.iter().zip(tails.iter_mut()) {
            parts.push(tail.take().unwrap_or_else(|| Tensor::zeros([past, channels], &x.device())));
            parts.push(match segment.len == tokens {
                true => x.clone(),
                false => x.clone().slice([first..first + segment.len, 0..channels]),
            });
            first += segment.len;
        }
        let line = Tensor::cat(parts, 0);
        let mut first = 0;
        for (segment, tail) in segments.iter().zip(tails) {
            first += segment.len;
            *tail = Some(line.clone().slice([first..first + past, 0..channels]));
            first += past;
        }
        line
    }
}
