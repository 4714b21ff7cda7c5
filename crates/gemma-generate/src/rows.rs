//! The logits that a token is sampled from: a whole row on the host or, where the model computes on a GPU and the sampler
//! reads no more, the largest of it.

use std::ops::Range;

use burn::tensor::Tensor;
use gemma_kernels::{Largest, MOST_LARGEST, indices, is_apart, largest};
use gemma_tokenizer::TokenId;

use crate::saturation::{is_ordered, order_saturated};
use crate::sequence::{check_shape, device_error, to_host};
use crate::softmax::log_sum_exp;
use crate::{CausalModel, Error};

/// What a sampler reads of a row of logits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Row<'a> {
    /// All of them, `[vocab]`.
    Whole(&'a [f32]),
    /// The largest, of which at least one is a number, and none of the row is NaN or +inf.
    Largest(&'a Largest),
}

impl Row<'_> {
    /// What to subtract from a logit to have its log-probability.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a logit is NaN or +inf, [`Error::NoToken`] when all are -inf.
    pub(crate) fn log_sum_exp(self) -> Result<f64, Error> {
        match self {
            Row::Whole(logits) => log_sum_exp(logits),
            Row::Largest(largest) => Ok(largest.log_sum_exp),
        }
    }

    /// The logit of a token that was chosen from the row.
    pub(crate) fn logit(self, token: TokenId) -> f32 {
        match self {
            Row::Whole(logits) => logits[token as usize],
            Row::Largest(largest) => {
                let place = largest.tokens.iter().position(|other| *other == token);
                largest.logits[place.expect("a token is chosen among those that are there")]
            }
        }
    }
}

/// Rows of one forward pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    vocab: usize,
    whole: Vec<f32>,
    largest: Vec<Largest>,
    places: Vec<Place>,
}

/// Where a row is kept, and which of those that are kept there it is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Whole(usize),
    Largest(usize),
}

impl Rows {
    /// Whole rows, one after the other.
    fn whole(logits: Vec<f32>, vocab: usize) -> Self {
        let places = (0..logits.len() / vocab).map(Place::Whole).collect();
        Self { vocab, whole: logits, largest: Vec::new(), places }
    }

    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        match self.places[index] {
            Place::Whole(row) => Row::Whole(&self.whole[row * self.vocab..][..self.vocab]),
            Place::Largest(row) => Row::Largest(&self.largest[row]),
        }
    }

    /// A copy of some rows.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        let mut part = Self { vocab: self.vocab, ..Self::default() };
        for row in rows {
            part.places.push(match self.row(row) {
                Row::Whole(logits) => {
                    part.whole.extend_from_slice(logits);
                    Place::Whole(part.whole.len() / self.vocab - 1)
                }
                Row::Largest(largest) => {
                    part.largest.push(largest.clone());
                    Place::Largest(part.largest.len() - 1)
                }
            });
        }
        part
    }

    /// Puts the saturated logits of whole rows in the order that they had before the cap.
    fn order_saturated<M: CausalModel>(&mut self, model: &M, hidden_states: &Tensor<2>) -> Result<(), Error> {
        let Some(cap) = model.final_softcap() else { return Ok(()) };
        let vocab = self.vocab;
        for (index, place) in self.places.iter().enumerate() {
            let Place::Whole(row) = *place else { continue };
            let uncapped = || to_host(model.uncapped_logits(hidden_states.clone().narrow(0, index, 1)), 1, vocab);
            order_saturated(&mut self.whole[row * vocab..][..vocab], cap, uncapped)?;
        }
        Ok(())
    }
}

/// The logits of hidden states, a row for each of `reads`, which says how many of the largest the row's sampler reads;
/// `None`: all. Saturated logits keep the order that they had before the cap.
///
/// A row is brought to the host as a whole where its sampler reads all, where the largest do not tell what it would do (a
/// logit is not a number, or several are saturated), and where that costs nothing. What a row gives depends on
/// nothing else in the call.
///
/// # Errors
/// When the device fails, or the model gives another shape.
pub(crate) fn rows<M: CausalModel>(
    model: &M,
    hidden_states: Tensor<2>,
    reads: &[Option<usize>],
) -> Result<Rows, Error> {
    let vocab = model.vocab();
    let few = |reads: &Option<usize>| reads.filter(|count| *count < MOST_LARGEST);
    let far = is_apart(&hidden_states.device());
    let logits = model.logits(hidden_states.clone());
    check_shape(&logits, [reads.len(), vocab])?;
    let mut rows = Rows { vocab, ..Rows::default() };
    if !far || reads.iter().all(|reads| few(reads).is_none()) {
        rows = Rows::whole(to_host(logits, reads.len(), vocab)?, vocab);
        rows.order_saturated(model, &hidden_states)?;
        return Ok(rows);
    }
    let by_few: Vec<usize> = (0..reads.len()).filter(|row| few(&reads[*row]).is_some()).collect();
    // one more than is read tells whether more than that are saturated
    let own = |row: usize| {
        few(&reads[row]).map_or(0, |count| (count + usize::from(model.final_softcap().is_some())).clamp(1, vocab))
    };
    let count = (0..reads.len()).map(own).max().unwrap_or(1);
    let found = largest(select_rows(&logits, &by_few), count).map_err(device_error)?;
    let mut found = by_few.into_iter().zip(found).peekable();
    let mut wanted = Vec::new();
    for row in 0..reads.len() {
        // a row that reads fewer than another one gets what it gets alone
        let largest = found.next_if(|(other, _)| *other == row).map(|(_, largest)| largest.first(own(row)));
        rows.places.push(match largest.filter(|largest| tells_all(largest, model.final_softcap(), vocab)) {
            Some(largest) => {
                rows.largest.push(largest);
                Place::Largest(rows.largest.len() - 1)
            }
            None => {
                wanted.push(row);
                Place::Whole(wanted.len() - 1)
            }
        });
    }
    if !wanted.is_empty() {
        rows.whole = to_host(select_rows(&logits, &wanted), wanted.len(), vocab)?;
        rows.order_saturated(model, &hidden_states)?;
    }
    Ok(rows)
}

/// Whether a sampler does with the largest what it would do with the whole row: none of it is NaN or +inf, as many as asked
/// for are possible, and no saturated ones changed places.
fn tells_all(largest: &Largest, cap: Option<f32>, vocab: usize) -> bool {
    let (Some(first), Some(last)) = (largest.logits.first(), largest.logits.last()) else { return false };
    let ordered = cap.is_none_or(|cap| is_ordered(&largest.logits, cap, vocab));
    first.is_finite() && last.is_finite() && ordered
}

/// Rows of a matrix, which are in order.
pub(crate) fn select_rows(x: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
    if rows.len() == x.dims()[0] {
        return x.clone();
    }
    let index = indices(rows.iter().map(|row| *row as i32).collect(), &x.device());
    x.clone().select(0, index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use gemma_backend::Backend;
    use gemma_kernels::watch;

    /// The rows that a model gives after histories, and the bytes that came back.
    fn given(model: &Fake, histories: &[&[TokenId]], reads: &[Option<usize>]) -> (Rows, usize) {
        let hidden_states = model.tensor(histories.iter().map(|history| model.after(history)).collect());
        let (rows, traffic) = watch(|| rows(model, hidden_states, reads).unwrap());
        (rows, traffic.downloaded)
    }

    fn is_whole(rows: &Rows, index: usize) -> bool {
        matches!(rows.row(index), Row::Whole(_))
    }

    #[test]
    fn each_row_comes_back_as_far_as_it_is_read() {
        for backend in Backend::compiled() {
            let device = backend.device().unwrap();
            let far = is_apart(&device);
            let model = Fake::new(300).on(device);
            let histories: [&[TokenId]; 3] = [&[2, 5], &[9], &[2, 7, 7]];
            let (found, bytes) = given(&model, &histories, &[Some(3), None, Some(5)]);
            let whole = [0, 1, 2].map(|row| is_whole(&found, row));
            assert_eq!(whole, [!far, true, !far], "{backend}");
            // five of two rows, and all of one
            assert_eq!(bytes, if far { 4 * (2 * 11 + 300) } else { 0 }, "{backend}");
            for (row, history) in histories.iter().enumerate() {
                let expected = model.after(history);
                let best = crate::sampler::top_of_row(found.row(row), 3).unwrap();
                let sorted = crate::top_logprobs(&expected, 3).unwrap();
                for ((token, logprob), (expected, its)) in best.into_iter().zip(sorted) {
                    assert!(token == expected && (logprob - its).abs() < 1e-5, "{backend}");
                }
            }
            let part = found.part(1..3);
            assert_eq!([0, 1].map(|row| is_whole(&part, row)), [true, !far], "{backend}");
            assert_eq!(part.row(1).logit(part_best(&part)), found.row(2).logit(part_best(&part)), "{backend}");
        }
    }

    /// A row with few possible tokens is read as it is alone, also beside one that reads more.
    #[test]
    fn company_does_not_change_how_a_row_is_read() {
        for backend in Backend::compiled() {
            let device = backend.device().unwrap();
            let far = is_apart(&device);
            let model = Fake::new(9).on(device);
            let mut few = vec![f32::NEG_INFINITY; 9];
            few[3] = 1.0;
            let read = |hidden_states: Vec<Vec<f32>>, reads: &[Option<usize>]| {
                rows(&model, model.tensor(hidden_states), reads).unwrap()
            };
            let (alone, beside) =
                (read(vec![few.clone()], &[Some(1)]), read(vec![few, vec![0.5; 9]], &[Some(1), Some(4)]));
            assert_eq!([is_whole(&alone, 0), is_whole(&beside, 0)], [!far; 2], "{backend}");
            let sums = [&alone, &beside].map(|rows| rows.row(0).log_sum_exp().unwrap().to_bits());
            assert_eq!(sums[0], sums[1], "{backend}");
        }
    }

    fn part_best(part: &Rows) -> TokenId {
        crate::sampler::top_of_row(part.row(1), 1).unwrap()[0].0
    }

    #[test]
    fn a_row_that_is_broken_is_brought_back_to_be_named() {
        for backend in Backend::compiled() {
            let model = Fake::new(300).on(backend.device().unwrap()).breaking_at(3);
            let (found, _) = given(&model, &[&[2], &[2, 3, 4, 5]], &[Some(1), Some(1)]);
            assert!(found.row(0).log_sum_exp().is_ok(), "{backend}");
            assert!(is_whole(&found, 1), "{backend}");
            let error = found.row(1).log_sum_exp().unwrap_err();
            assert!(matches!(error, Error::NotFinite { token: 0, .. }), "{backend}: {error}");
        }
    }

    #[test]
    fn the_largest_do_not_tell_what_is_excluded_or_saturated() {
        let largest = |logits: &[f32]| Largest { logits: logits.to_vec(), ..Largest::default() };
        assert!(tells_all(&largest(&[3.0, 3.0, 1.0]), None, 9));
        assert!(tells_all(&largest(&[4.0, 1.0]), Some(4.0), 9));
        for logits in [&[f32::INFINITY, 1.0][..], &[1.0, f32::NEG_INFINITY], &[f32::NEG_INFINITY; 2]] {
            assert!(!tells_all(&largest(logits), None, 9), "{logits:?}");
        }
        assert!(!tells_all(&largest(&[4.0, 4.0, 1.0]), Some(4.0), 9));
    }
}
