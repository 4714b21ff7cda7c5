//! The gated feed-forward layer.

use crate::{Projection, Rows, Saver, Source};
use burn::module::Module;
use burn::tensor::Tensor;
use gemma_kernels::{FeedForward, feed_forward, geglu};

/// `down(gelu(gate(x)) · up(x))` with the tanh form of GELU (GeGLU, Shazeer 2020, arXiv:2002.05202, eq. 6).
#[derive(Module, Debug)]
pub struct GeGlu {
    /// `[intermediate_size, hidden_size]`.
    pub gate_proj: Projection,
    /// `[intermediate_size, hidden_size]`.
    pub up_proj: Projection,
    /// `[hidden_size, intermediate_size]`.
    pub down_proj: Projection,
}

impl GeGlu {
    /// The layer whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, hidden_size: usize, intermediate_size: usize, bias: bool) -> Self {
        Self {
            gate_proj: Projection::load(source, &format!("{name}.gate_proj"), hidden_size, intermediate_size, bias),
            up_proj: Projection::load(source, &format!("{name}.up_proj"), hidden_size, intermediate_size, bias),
            down_proj: Projection::load(source, &format!("{name}.down_proj"), intermediate_size, hidden_size, bias),
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.gate_proj.save(saver, &format!("{name}.gate_proj"));
        self.up_proj.save(saver, &format!("{name}.up_proj"));
        self.down_proj.save(saver, &format!("{name}.down_proj"));
    }

    /// `[tokens, hidden_size]` to the same shape, for the rows of any number of requests.
    pub fn forward(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let frozen = [&self.gate_proj, &self.up_proj, &self.down_proj].map(Projection::frozen);
        if let [Some(gate), Some(up), Some(down)] = frozen
            && let Some(phase) = rows.phase()
        {
            return feed_forward(x, FeedForward { gate, up: Some(up), down }, phase);
        }
        let [gate, up] = Projection::forward_all([&self.gate_proj, &self.up_proj], x, rows);
        self.down_proj.forward_in(geglu(gate, up), rows)
    }
}
