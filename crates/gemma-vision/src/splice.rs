//! Images among the tokens of a text: the rows that take the places of image tokens.

use burn::tensor::Tensor;
use gemma_generate::{CausalModel, Inputs, TokenId};

/// The inputs of tokens among which images stand: rows of text as the decoder embeds them; each token `image` the next
/// row of `features`, which are *not* scaled.
///
/// # Panics
/// When there is no token, or not one row per image token.
pub fn embed_with_images(
    decoder: &impl CausalModel,
    tokens: &[TokenId],
    image: TokenId,
    features: &[Tensor<2>],
) -> Inputs {
    let embeddings = splice(tokens, image, features, |run| decoder.embed(run).embeddings);
    Inputs { token_ids: tokens.to_vec(), embeddings }
}

/// Embeddings of tokens, `[tokens, hidden_size]`: of text what `embed` gives; each token `image` the next row of
/// `features`, as it is.
///
/// # Panics
/// When there is no token, or not one row per image token.
fn splice(
    tokens: &[TokenId],
    image: TokenId,
    features: &[Tensor<2>],
    embed: impl Fn(&[TokenId]) -> Tensor<2>,
) -> Tensor<2> {
    let mut features = features.iter();
    let (mut current, mut used) = (None::<&Tensor<2>>, 0);
    let mut parts = Vec::new();
    for run in tokens.chunk_by(|a, b| (*a == image) == (*b == image)) {
        if run[0] != image {
            parts.push(embed(run));
            continue;
        }
        let mut wanted = run.len();
        while wanted > 0 {
            let rows = match current.filter(|rows| used < rows.dims()[0]) {
                Some(rows) => rows,
                None => {
                    used = 0;
                    current = features.next();
                    current.expect("as many rows of features as image tokens")
                }
            };
            let count = wanted.min(rows.dims()[0] - used);
            parts.push(if count == rows.dims()[0] { rows.clone() } else { rows.clone().narrow(0, used, count) });
            (used, wanted) = (used + count, wanted - count);
        }
    }
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}
