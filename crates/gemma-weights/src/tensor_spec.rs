//! The tensors that a model needs.

use gemma_nn::ParameterList;

use crate::Precision;

/// The name and shape of a tensor that a model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape, as stored: `[out, in]` for the matrix of a linear layer.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A spec from its parts.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into() }
    }

    /// What a network asked a parameter list for, in its order.
    pub fn list(parameters: ParameterList) -> Vec<Self> {
        parameters.into_list().into_iter().map(|(name, shape)| Self { name, shape }).collect()
    }

    /// How many values it has.
    pub fn values(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product()
    }

    /// Bytes that it takes in memory where matrices are held in `precision`: a matrix whose rows are whole blocks of that
    /// format; other matrices are held as bf16, everything else as f32.
    pub fn bytes(&self, precision: Precision) -> u64 {
        match self.shape[..] {
            [rows, columns] => {
                let row = precision.format().row_bytes(columns).unwrap_or(2 * columns);
                rows as u64 * row as u64
            }
            _ => 4 * self.values(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_counts_blocks_and_leaves_vectors_f32() {
        let tensors = [TensorSpec::new("a", [4, 64]), TensorSpec::new("b", [3, 10]), TensorSpec::new("c", [5])];
        let bytes = |precision| tensors.iter().map(|tensor| tensor.bytes(precision)).sum::<u64>();
        assert_eq!(bytes(Precision::F32), 4 * (256 + 30 + 5));
        assert_eq!(bytes(Precision::Bf16), 2 * (256 + 30) + 20);
        assert_eq!(bytes(Precision::Q8_0), 4 * 2 * 34 + 60 + 20);
    }
}
