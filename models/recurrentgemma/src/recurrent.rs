//! The recurrent block: two branches, one of which remembers.

use crate::cache::RecurrentState;
use crate::conv::CausalConv;
use crate::rg_lru::RgLru;
use burn::module::Module;
use burn::tensor::Tensor;
use gemma_kernels::geglu;
use gemma_nn::{Projection, Rows, Saver, Segment, Source};

/// `out( rg_lru(conv(x(u))) ⊙ gelu(y(u)) )` (De et al. 2024, arXiv:2402.19427, §2.3).
#[derive(Module, Debug)]
pub struct RecurrentBlock {
    /// Into the branch that remembers, `[channels, hidden_size]`.
    pub linear_x: Projection,
    /// Into the branch that gates it, `[channels, hidden_size]`.
    pub linear_y: Projection,
    /// Back to the model, `[hidden_size, channels]`.
    pub linear_out: Projection,
    /// Looks at the last few inputs.
    pub conv_1d: CausalConv,
    /// Looks at all of them.
    pub rg_lru: RgLru,
}

/// What a recurrent block needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurrentSpec {
    /// Channels of the recurrence; need not be the hidden size.
    pub channels: usize,
    /// Blocks of the gates; divides `channels`.
    pub blocks: usize,
    /// Inputs that the convolution looks at, the newest included.
    pub taps: usize,
}

impl RecurrentBlock {
    /// The block whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, hidden_size: usize, spec: RecurrentSpec) -> Self {
        let RecurrentSpec { channels, blocks, taps } = spec;
        Self {
            linear_x: Projection::load(source, &format!("{name}.linear_x"), hidden_size, channels, true),
            linear_y: Projection::load(source, &format!("{name}.linear_y"), hidden_size, channels, true),
            linear_out: Projection::load(source, &format!("{name}.linear_out"), channels, hidden_size, true),
            conv_1d: CausalConv::load(source, &format!("{name}.conv_1d"), channels, taps),
            rg_lru: RgLru::load(source, &format!("{name}.rg_lru"), channels, blocks),
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.linear_x.save(saver, &format!("{name}.linear_x"));
        self.linear_y.save(saver, &format!("{name}.linear_y"));
        self.linear_out.save(saver, &format!("{name}.linear_out"));
        self.conv_1d.save(saver, &format!("{name}.conv_1d"));
        self.rg_lru.save(saver, &format!("{name}.rg_lru"));
    }

    /// Reads each segment after what its state holds, `[tokens, hidden_size]` to the same shape; the states move on.
    ///
    /// # Panics
    /// When segments, states and `x` do not match.
    pub fn forward(&self, x: Tensor<2>, segments: &[Segment], states: &mut [&mut RecurrentState]) -> Tensor<2> {
        let rows = Rows::of(segments);
        let [gate, x] = Projection::forward_all([&self.linear_y, &self.linear_x], x, &rows);
        let mut tails: Vec<_> = states.iter_mut().map(|state| state.tail.take()).collect();
        let mut hidden: Vec<_> = states.iter_mut().map(|state| state.hidden.take()).collect();
        let mixed = self.conv_1d.forward(x, segments, &mut tails);
        let remembered = self.rg_lru.forward(mixed, segments, &mut hidden);
        for (state, (tail, hidden)) in states.iter_mut().zip(tails.into_iter().zip(hidden)) {
            **state = RecurrentState { hidden, tail };
        }
        self.linear_out.forward_in(geglu(gate, remembered), &rows)
    }
}
