//! Rotary position embedding, half-split.

use crate::RmsNorm;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_kernels::{Way, norm_and_rotate, note};

/// Which part of a head rotates, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeSpec {
    /// How many leading dimensions of a head rotate; even. The rest pass through.
    pub rotary_dim: usize,
    /// Base of the frequencies, `theta`.
    pub theta: f32,
    /// Linear scaling: positions are divided by it. 1 in models that were not stretched to a longer context.
    pub factor: f32,
}

impl RopeSpec {
    /// A rotary embedding without scaling.
    pub fn new(rotary_dim: usize, theta: f32) -> Self {
        Self { rotary_dim, theta, factor: 1.0 }
    }
}

/// Cosines and sines of the angles of a call's tokens; made once, used by every layer.
///
/// Dimension pair `i` of position `p` turns by `p / factor · theta^(-2i / rotary_dim)` (Su et al. 2021,
/// arXiv:2104.09864, eq. 15; the factor: Chen et al. 2023, arXiv:2306.15595). Frequencies and angles are f32 whatever the model's dtype: rounding them moves the logits visibly.
#[derive(Clone, Debug)]
pub struct RopeTable {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl RopeTable {
    /// The table for tokens at `positions`.
    pub fn new(spec: RopeSpec, positions: &[usize], device: &Device) -> Self {
        let half = spec.rotary_dim / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / spec.theta.powf((2 * i) as f32 / spec.rotary_dim as f32) / spec.factor).collect();
        let angles = || positions.iter().flat_map(|p| frequencies.iter().map(move |f| *p as f32 * f));
        let table = |values: Vec<f32>| {
            note(Way::Up, 4 * values.len());
            Tensor::from_data(TensorData::new(values, [positions.len(), 1, half]), device)
        };
        Self { cos: table(angles().map(f32::cos).collect()), sin: table(angles().map(f32::sin).collect()) }
    }

    /// Rotates queries `[tokens, heads, head_dim]` and keys `[tokens, kv_heads, head_dim]`: with halves `(a, b)` of the rotating dimensions,
    /// `(a cos - b sin, b cos + a sin)`. Where there are norms, of queries and of keys, each head is normed before.
    pub fn rotate_heads(&self, q: Tensor<3>, k: Tensor<3>, norms: Option<(&RmsNorm, &RmsNorm)>) -> [Tensor<3>; 2] {
        let norms = norms.map(|(q, k)| [q.to_weight(), k.to_weight()]);
        norm_and_rotate(q, k, norms, self.cos.clone(), self.sin.clone())
    }
}

/// A table for each rotary embedding that the layers of a model have: two in Gemma 3, one in the others.
#[derive(Clone, Debug)]
pub struct RopeTables {
    tables: Vec<(RopeSpec, RopeTable)>,
}

impl RopeTables {
    /// The tables of layers with these embeddings, for tokens at `positions`.
    pub fn new(specs: impl IntoIterator<Item = RopeSpec>, positions: &[usize], device: &Device) -> Self {
        let mut tables: Vec<(RopeSpec, RopeTable)> = Vec::new();
        for spec in specs {
            if tables.iter().all(|(known, _)| *known != spec) {
                tables.push((spec, RopeTable::new(spec, positions, device)));
            }
        }
        Self { tables }
    }

    /// The table of a layer with this embedding.
    ///
    /// # Panics
    /// When no layer has it.
    pub fn of(&self, spec: RopeSpec) -> &RopeTable {
        let found = self.tables.iter().find(|(known, _)| *known == spec);
        &found.expect("a table for every layer").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;

    #[test]
    fn a_factor_divides_positions_and_belongs_to_its_layers() {
        for device in test_device::all() {
            let (plain, scaled) = (RopeSpec::new(4, 100.0), RopeSpec { factor: 8.0, ..RopeSpec::new(4, 100.0) });
            let tables = RopeTables::new([plain, scaled, plain], &[16], &device);
            let x = Tensor::<3>::from_data([[[1.0f32, 2.0, 3.0, 4.0]]], &device);
            let turned = |table: &RopeTable| -> Vec<f32> {
                table.rotate_heads(x.clone(), x.clone(), None)[1].to_data().try_into_vec().unwrap()
            };
            assert_eq!(turned(tables.of(scaled)), turned(&RopeTable::new(plain, &[2], &device)));
            assert_eq!(turned(tables.of(plain)), turned(&RopeTable::new(plain, &[16], &device)));
        }
    }

    #[test]
    fn halves_turn_together_and_the_rest_passes() {
        for device in test_device::all() {
            let spec = RopeSpec::new(4, 100.0);
            let table = RopeTable::new(spec, &[0, 3], &device);
            let row = [1.0f32, 2.0, 3.0, 4.0, 5.0];
            let x = Tensor::<3>::from_data([[row], [row]], &device);
            let y: Vec<f32> = table.rotate_heads(x.clone(), x, None)[0].to_data().try_into_vec().unwrap();
            assert_eq!(y[..5], row, "position 0 does not turn");
            let (slow, fast) = (0.3f32, 3.0f32); // theta^(-2/4) = 0.1
            let expected = [
                fast.cos() - 3.0 * fast.sin(),
                2.0 * slow.cos() - 4.0 * slow.sin(),
                3.0 * fast.cos() + fast.sin(),
                4.0 * slow.cos() + 2.0 * slow.sin(),
                5.0,
            ];
            for (a, b) in y[5..].iter().zip(expected) {
                assert!((a - b).abs() < 1e-5, "{y:?} {expected:?}");
            }
        }
    }
}
