//! Learning which texts belong together: pairs of a query and the text that answers it, for models that embed texts.
//!
//! The loss is InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4) over the texts of a batch, which
//! sentence-transformers calls `MultipleNegativesRankingLoss`: of all texts of the batch, the query's own is to be the
//! nearest. The gradient with respect to the vectors is computed for the whole batch at once, and then taken through the
//! encoder a few texts at a time (Gao et al. 2021, arXiv:2101.06983), so that a large batch takes no more memory than a
//! small one.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use gemma_generate::TokenId;
use gemma_model::Encoder;
use gemma_nn::{Phase, Segment};

use crate::gradients::{BatchGradients, NamedValues};
use crate::trainer::{Forward, Stretch, parts};
use crate::{Error, StepReport, Trainer};

/// A query, the text that belongs to it, and texts that do not. All are tokens as the encoder reads them, `<bos>`, prefix
/// and `<eos>` included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pair {
    /// What is searched for.
    pub query: Vec<TokenId>,
    /// What is to be found.
    pub positive: Vec<TokenId>,
    /// What is not to be found. The texts of other pairs of a batch are such ones, too.
    pub negatives: Vec<Vec<TokenId>>,
}

/// How a batch of pairs fares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ranking {
    /// The mean loss, in nats per query.
    pub loss: f64,
    /// The part of the queries whose own text is the nearest.
    pub accuracy: f64,
}

/// The texts of a batch: all queries, then all texts that are compared with them.
struct Texts<'p> {
    tokens: Vec<&'p [TokenId]>,
    /// The pair of each.
    owners: Vec<usize>,
    queries: usize,
}

impl<'p> Texts<'p> {
    fn of(pairs: &'p [Pair]) -> Self {
        let mut texts = Self { tokens: Vec::new(), owners: Vec::new(), queries: pairs.len() };
        let mut add = |owner: usize, text: &'p [TokenId]| {
            texts.tokens.push(text);
            texts.owners.push(owner);
        };
        pairs.iter().enumerate().for_each(|(owner, pair)| add(owner, &pair.query));
        pairs.iter().enumerate().for_each(|(owner, pair)| add(owner, &pair.positive));
        for (owner, pair) in pairs.iter().enumerate() {
            pair.negatives.iter().for_each(|negative| add(owner, negative));
        }
        texts
    }

    /// Whether candidate `candidate` counts against query `query`, or is its own text. The same text as another pair's is
    /// as good as its own, and counts for nothing.
    fn counts(&self, query: usize, candidate: usize) -> bool {
        let text = |candidate: usize| self.tokens[self.queries + candidate];
        candidate == query || text(candidate) != text(query)
    }
}

impl<M: Encoder + Module> Trainer<M> {
    /// One step on `pairs`; `scale` multiplies cosines before the softmax (the inverse of its temperature).
    ///
    /// # Errors
    /// As [`Trainer::step_on`].
    pub fn pair_step(&mut self, pairs: &[Pair], scale: f64) -> Result<StepReport, Error> {
        self.step_on(|trainer| trainer.pair_gradients(pairs, scale))
    }

    /// How `pairs` fare, in batches of `batch` in their order; nothing is differentiated.
    ///
    /// # Errors
    /// When there are no pairs.
    pub fn ranking(&self, pairs: &[Pair], batch: usize, scale: f64) -> Result<Ranking, Error> {
        let (mut loss, mut hits) = (0.0, 0);
        for pairs in pairs.chunks(batch.max(1)) {
            let texts = Texts::of(pairs);
            let all: Vec<usize> = (0..texts.tokens.len()).collect();
            let mut vectors = vec![Vec::new(); all.len()];
            for part in self.text_parts(&texts, &all) {
                let forward = self.forward(&stretch(&texts, part));
                self.vectors_of(&forward, &texts, part, &mut vectors);
            }
            let found = info_nce(&vectors, &texts, scale);
            loss += found.losses.iter().sum::<f64>();
            hits += found.hits;
        }
        match pairs.len() {
            0 => Err(Error::EmptyBatch { step: self.steps() }),
            count => Ok(Ranking { loss: loss / count as f64, accuracy: hits as f64 / count as f64 }),
        }
    }

    /// The loss of a batch and its gradient, summed over its pairs. Of several processes, each computes the vectors of its
    /// share; all see those of all, so that the loss does not depend on how many they are.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn pair_gradients(&self, pairs: &[Pair], scale: f64) -> Result<BatchGradients, Error> {
        let texts = Texts::of(pairs);
        let share = self.share(pairs.len());
        let own: Vec<usize> = (0..texts.tokens.len()).filter(|text| share.contains(&texts.owners[*text])).collect();
        let parts = self.text_parts(&texts, &own);
        let mut vectors = vec![Vec::new(); texts.tokens.len()];
        // what is read in one part need not be read again
        let mut kept: Option<Forward> = None;
        for part in &parts {
            let forward = self.forward(&stretch(&texts, part));
            self.vectors_of(&forward, &texts, part, &mut vectors);
            kept = (parts.len() == 1).then_some(forward);
        }
        self.exchange(&mut vectors)?;
        let found = info_nce(&vectors, &texts, scale);
        let mut gradients = NamedValues::new();
        for part in parts {
            let stretch = stretch(&texts, part);
            let forward = kept.take().unwrap_or_else(|| self.forward(&stretch));
            forward.differentiate(self, &stretch, &mut gradients, |x| {
                let vectors = self.model().vectors(self.model().forward_norm(x), &stretch.segments);
                let values = part.iter().flat_map(|text| found.gradients[*text].iter().map(|value| *value as f32));
                let values = TensorData::new(values.collect::<Vec<f32>>(), vectors.dims());
                let upstream = Tensor::<2>::from_data(values, &vectors.device());
                (vectors * upstream).sum()
            });
        }
        Ok(BatchGradients {
            loss: share.clone().map(|query| found.losses[query]).sum(),
            count: share.len(),
            tokens: own.iter().map(|text| texts.tokens[*text].len()).sum(),
            gradients,
        })
    }

    /// Some texts in parts that are read at once.
    fn text_parts<'t>(&self, texts: &Texts<'_>, some: &'t [usize]) -> Vec<&'t [usize]> {
        parts(some, self.options().pack_tokens, |text| texts.tokens[*text].len())
    }

    /// Puts the vectors of the texts of a part into their places.
    fn vectors_of(&self, forward: &Forward, texts: &Texts<'_>, part: &[usize], vectors: &mut [Vec<f64>]) {
        let plain = self.trained();
        let stretch = stretch(texts, part);
        let rows = plain.vectors(plain.forward_norm(forward.last.clone()), &stretch.segments);
        let dimensions = rows.dims()[1];
        let values: Vec<f32> = rows.into_data().try_into_vec().expect("activations are f32");
        for (text, row) in part.iter().zip(values.chunks_exact(dimensions)) {
            vectors[*text] = row.iter().map(|value| f64::from(*value)).collect();
        }
    }

    /// Fills in the vectors that other processes have computed.
    fn exchange(&self, vectors: &mut [Vec<f64>]) -> Result<(), Error> {
        if self.communicator().size() == 1 {
            return Ok(());
        }
        // a rank without a share of its own learns the size from the others
        let mut dimensions = vec![0.0; self.communicator().size()];
        dimensions[self.communicator().rank()] = vectors.iter().map(Vec::len).max().unwrap_or(0) as f64;
        self.communicator().sum(&mut dimensions)?;
        let dimensions = dimensions.into_iter().fold(0.0, f64::max) as usize;
        let mut all = vec![0.0; vectors.len() * dimensions];
        for (row, vector) in all.chunks_exact_mut(dimensions.max(1)).zip(vectors.iter()) {
            row[..vector.len()].copy_from_slice(vector);
        }
        self.communicator().sum(&mut all)?;
        for (row, vector) in all.chunks_exact(dimensions.max(1)).zip(vectors) {
            *vector = row.to_vec();
        }
        Ok(())
    }
}

/// Some texts, one after the other.
fn stretch(texts: &Texts<'_>, some: &[usize]) -> Stretch {
    let some = || some.iter().map(|text| texts.tokens[*text]);
    Stretch {
        tokens: some().flatten().copied().collect(),
        images: Vec::new(),
        segments: some().map(|text| Segment::causal(0, text.len()).in_phase(Phase::Prefill)).collect(),
    }
}

/// The losses of a batch and what its vectors should change by.
struct InfoNce {
    /// Of each query, in nats.
    losses: Vec<f64>,
    /// Queries whose own text is the nearest.
    hits: usize,
    /// The gradient of the sum of the losses with respect to each vector, before it is normalised.
    gradients: Vec<Vec<f64>>,
}

/// The least length that a vector is divided by.
const LEAST_LENGTH: f64 = 1e-12;

/// InfoNCE of vectors that are not normalised yet: with `q̂ = q / ‖q‖`, `ĉ = c / ‖c‖` and `s_ij = scale · q̂_i · ĉ_j`, the
/// loss of query i is `log Σ_j exp(s_ij) - s_ii`. Its gradient: `∂L/∂s_ij = softmax_j(s_i) - [i = j]`, and through the
/// normalisation `∂L/∂q = (g - q̂ (q̂ · g)) / ‖q‖` for the gradient `g` with respect to `q̂`.
fn info_nce(vectors: &[Vec<f64>], texts: &Texts<'_>, scale: f64) -> InfoNce {
    let lengths: Vec<f64> = vectors.iter().map(|vector| dot(vector, vector).sqrt().max(LEAST_LENGTH)).collect();
    let units: Vec<Vec<f64>> = vectors
        .iter()
        .zip(&lengths)
        .map(|(vector, length)| vector.iter().map(|value| value / length).collect())
        .collect();
    let (queries, candidates) = units.split_at(texts.queries);
    let mut slopes: Vec<Vec<f64>> = units.iter().map(|unit| vec![0.0; unit.len()]).collect();
    let (mut losses, mut hits) = (Vec::with_capacity(queries.len()), 0);
    for (query, unit) in queries.iter().enumerate() {
        let counted: Vec<(usize, f64)> = (0..candidates.len())
            .filter(|candidate| texts.counts(query, *candidate))
            .map(|candidate| (candidate, scale * dot(unit, &candidates[candidate])))
            .collect();
        let largest = counted.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = counted.iter().map(|(_, score)| (score - largest).exp()).sum();
        let own = scale * dot(unit, &candidates[query]);
        losses.push(largest + sum.ln() - own);
        hits += usize::from(own >= largest);
        for (candidate, score) in counted {
            let slope = scale * ((score - largest).exp() / sum - f64::from(u8::from(candidate == query)));
            add(&mut slopes[query], slope, &candidates[candidate]);
            add(&mut slopes[texts.queries + candidate], slope, unit);
        }
    }
    let gradients = slopes
        .into_iter()
        .zip(units.iter().zip(&lengths))
        .map(|(mut slope, (unit, length))| {
            let along = dot(unit, &slope);
            add(&mut slope, -along, unit);
            slope.iter_mut().for_each(|value| *value /= length);
            slope
        })
        .collect();
    InfoNce { losses, hits, gradients }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], factor: f64, values: &[f64]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<f64> {
        (0..len as u64).map(|i| ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed) as f64 * 0.7).sin()).collect()
    }

    fn pair(number: TokenId, negatives: usize) -> Pair {
        Pair {
            query: vec![2, number],
            positive: vec![2, number, 9],
            negatives: (0..negatives).map(|other| vec![2, number, other as TokenId]).collect(),
        }
    }

    #[test]
    fn the_loss_is_the_cross_entropy_of_the_own_text() {
        // two queries along the axes, three texts: by hand
        let pairs = [Pair { negatives: vec![vec![5]], ..pair(3, 0) }, pair(4, 0)];
        let vectors = [[2.0, 0.0], [0.0, 0.5], [3.0, 0.0], [0.0, 7.0], [1.0, 1.0]].map(Vec::from);
        let found = info_nce(&vectors, &Texts::of(&pairs), 20.0);
        let third = 20.0 / 2f64.sqrt();
        let expected = ((20f64 - 20.0).exp() + (-20f64).exp() + (third - 20.0).exp()).ln();
        assert!((found.losses[0] - expected).abs() < 1e-12 && (found.losses[1] - expected).abs() < 1e-12);
        assert_eq!(found.hits, 2);
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let pairs = [pair(3, 2), pair(4, 0), pair(5, 1)];
        let texts = Texts::of(&pairs);
        let vectors: Vec<Vec<f64>> = (0..texts.tokens.len() as u64).map(|text| noise(5, text)).collect();
        let found = info_nce(&vectors, &texts, 7.0);
        let loss = |vectors: &[Vec<f64>]| info_nce(vectors, &texts, 7.0).losses.iter().sum::<f64>();
        for text in 0..vectors.len() {
            for place in 0..5 {
                let moved = |by: f64| {
                    let mut vectors = vectors.clone();
                    vectors[text][place] += by;
                    loss(&vectors)
                };
                let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let gradient = found.gradients[text][place];
                assert!((difference - gradient).abs() < 1e-8, "text {text}, {place}: {gradient}, not {difference}");
            }
        }
    }

    #[test]
    fn the_same_text_of_another_pair_is_not_wrong() {
        let twice = [pair(3, 0), Pair { query: vec![2, 8], ..pair(3, 0) }];
        let vectors = vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 0.0], vec![1.0, 0.0]];
        let found = info_nce(&vectors, &Texts::of(&twice), 20.0);
        assert_eq!(found.losses, [0.0, 0.0], "nothing is left to be told apart");
        assert!(found.gradients.iter().flatten().all(|value| *value == 0.0));
    }

    #[test]
    fn a_vector_without_length_gives_numbers() {
        let pairs = [pair(3, 0), pair(4, 0)];
        let vectors = vec![vec![0.0; 3], vec![1.0, 0.0, 0.0], vec![0.0, 1.0, 0.0], vec![1.0, 0.0, 0.0]];
        let found = info_nce(&vectors, &Texts::of(&pairs), 20.0);
        assert!(found.losses.iter().chain(found.gradients.iter().flatten()).all(|value| value.is_finite()));
    }
}
