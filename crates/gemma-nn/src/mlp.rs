//! The gated feed-forward layer.

use crate::{Projection, Sink, Source};
use burn::module::Module;
use burn::tensor::Tensor;
use gemma_kernels::geglu;

/// `down(gelu(gate(x)) · up(x))` with the tanh form of GELU (GeGLU, Shazeer 2020, arXiv:2002.05202, eq. 6).
#[derive(Module, Debug)]
pub struct GeGlu {
    /// `[hidden, width]`.
    pub gate_proj: Projection,
    /// `[hidden, width]`.
    pub up_proj: Projection,
    /// `[width, hidden]`.
    pub down_proj: Projection,
}

impl GeGlu {
    /// The layer whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, width: usize, hidden: usize, bias: bool) -> Self {
        Self {
            gate_proj: Projection::load(source, &format!("{name}.gate_proj"), width, hidden, bias),
            up_proj: Projection::load(source, &format!("{name}.up_proj"), width, hidden, bias),
            down_proj: Projection::load(source, &format!("{name}.down_proj"), hidden, width, bias),
        }
    }

    /// Hands the parameters to a sink, under the names they were loaded by.
    pub fn save(&self, sink: &mut dyn Sink, name: &str) {
        self.gate_proj.save(sink, &format!("{name}.gate_proj"));
        self.up_proj.save(sink, &format!("{name}.up_proj"));
        self.down_proj.save(sink, &format!("{name}.down_proj"));
    }

    /// `[tokens, width]` to the same shape.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone());
        self.down_proj.forward(geglu(gate, self.up_proj.forward(x)))
    }
}
