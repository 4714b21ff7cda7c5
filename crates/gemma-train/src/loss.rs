//! How wrong a model is.

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
use gemma_generate::TokenId;

/// The mean cross-entropy, in nats, of the rows of `logits` `[tokens, vocab]` that have a target; rows whose target
/// is `None` do not count. `[1]`.
///
/// # Panics
/// When there is not one target per row, or none at all.
pub fn cross_entropy(logits: Tensor<2>, targets: &[Option<TokenId>]) -> Tensor<1> {
    let [tokens, _] = logits.dims();
    assert_eq!(targets.len(), tokens, "one target per row of logits");
    let (rows, ids): (Vec<i32>, Vec<i32>) =
        targets.iter().enumerate().filter_map(|(row, target)| target.map(|id| (row as i32, id as i32))).unzip();
    let count = rows.len();
    assert!(count > 0, "a loss needs at least one target");
    let device = logits.device();
    let index = |values: Vec<i32>| Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device);
    let logits = if count == tokens { logits } else { logits.select(0, index(rows)) };
    let picked = log_softmax(logits, 1).gather(1, index(ids).unsqueeze_dim::<2>(1));
    picked.mean().neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemma_backend::Backend;

    #[test]
    fn rows_without_a_target_do_not_count() {
        for backend in Backend::compiled() {
            let device = backend.device().unwrap();
            let logits = Tensor::<2>::from_data([[0.0, 2f32.ln(), 0.0], [9.0, -9.0, 0.0], [0.0, 0.0, 0.0]], &device);
            let loss = cross_entropy(logits, &[Some(1), None, Some(2)]).into_scalar::<f32>();
            // -ln(2/4) and -ln(1/3), averaged
            let expected = (2f32.ln() + 3f32.ln()) / 2.0;
            assert!((loss - expected).abs() < 1e-5, "{backend:?}: {loss} {expected}");
        }
    }
}
