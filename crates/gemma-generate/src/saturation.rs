//! Logits that a soft cap made equal, and the order that they had before.
//!
//! `cap · tanh(x / cap)` rises with `x`, but in f32 it is exactly `cap` from about `9 · cap` on. A checkpoint whose output
//! head was trained apart from the embedding table can get there, and a greedy choice among equals would be one by token
//! number. The logits before the cap tell which is the likeliest.

use crate::Error;

/// The part of the cap above which f32 tells too few values apart.
const SATURATED: f32 = 1.0 - 1.0 / (1 << 20) as f32;
/// How many logits are put in order, the highest first; the others stay equal.
const MOST: usize = 4096;

/// Whether [`order_saturated`] changes nothing in a row of `vocab` logits, of which these are the largest in their order.
pub(crate) fn is_ordered(largest: &[f32], cap: f32, vocab: usize) -> bool {
    let bar = cap * SATURATED;
    let are_all = largest.len() == vocab || largest.last().is_some_and(|last| *last < bar);
    let saturated = largest.iter().take_while(|logit| **logit >= bar).count();
    are_all && largest[..saturated].windows(2).all(|pair| pair[0] != pair[1])
}

/// Lowers equal saturated logits of a row by a few units in the last place, so that they stand in the order of the logits
/// before the cap. `uncapped` is asked only where some are equal.
///
/// # Errors
/// Those of `uncapped`.
pub(crate) fn order_saturated(
    row: &mut [f32],
    cap: f32,
    uncapped: impl FnOnce() -> Result<Vec<f32>, Error>,
) -> Result<(), Error> {
    let bar = cap * SATURATED;
    let mut saturated: Vec<usize> = (0..row.len()).filter(|token| row[*token] >= bar).collect();
    let mut values: Vec<f32> = saturated.iter().map(|token| row[*token]).collect();
    values.sort_by(f32::total_cmp);
    if values.windows(2).all(|pair| pair[0] != pair[1]) {
        return Ok(());
    }
    let uncapped = uncapped()?;
    saturated.sort_by(|a, b| uncapped[*b].total_cmp(&uncapped[*a]).then(a.cmp(b)));
    let mut above = f32::INFINITY;
    for (place, token) in saturated.into_iter().enumerate() {
        let highest = if place < MOST { above.next_down() } else { above };
        above = row[token].min(highest);
        row[token] = above;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capped(uncapped: &[f32], cap: f32) -> Vec<f32> {
        uncapped.iter().map(|logit| cap * (logit / cap).tanh()).collect()
    }

    #[test]
    fn saturated_logits_keep_the_order_they_had_before_the_cap() {
        let (cap, uncapped) = (4.0, [50.0, 1.0, 90.0, 60.0, -90.0, 90.0, 3.0]);
        let before = capped(&uncapped, cap);
        assert_eq!([before[0], before[2], before[3]], [cap; 3], "f32 does not tell these apart");
        let mut after = before.clone();
        order_saturated(&mut after, cap, || Ok(uncapped.to_vec())).unwrap();
        let mut tokens: Vec<usize> = (0..uncapped.len()).collect();
        tokens.sort_by(|a, b| after[*b].total_cmp(&after[*a]));
        assert_eq!(tokens, [2, 5, 3, 0, 6, 1, 4]);
        assert!(before.iter().zip(&after).all(|(before, after)| (before - after).abs() < 1e-5));
    }

    #[test]
    fn the_largest_tell_whether_saturated_logits_change_their_order() {
        for (logits, expected) in [
            (&[3.0, 3.0, 1.0][..], true),
            (&[4.0, 3.0, 3.0], true),
            (&[4.0, 4.0, 1.0], false),
            // whether the next is saturated as well, and equal, is not known
            (&[4.0], false),
            (&[4.0, 4.0 * SATURATED], false),
            (&[4.0f32.next_up(), 4.0, 1.0], true),
        ] {
            assert_eq!(is_ordered(logits, 4.0, 100), expected, "{logits:?}");
        }
        assert!(is_ordered(&[4.0], 4.0, 1));
    }

    #[test]
    fn other_logits_stay_as_they_are() {
        for uncapped in [[30.0, 30.0, 1.0, 8.0], [f32::NAN, 1.0, 2.0, 3.0], [1e30, 3.0, 3.0, -1e30]] {
            let before = capped(&uncapped, 30.0);
            let mut after = before.clone();
            order_saturated(&mut after, 30.0, || panic!("nothing is saturated twice")).unwrap();
            assert_eq!(
                before.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                after.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_row_that_is_saturated_throughout_keeps_its_best() {
        let uncapped: Vec<f32> = (0..20_000).map(|token| 1e6 + token as f32).collect();
        let mut row = capped(&uncapped, 30.0);
        order_saturated(&mut row, 30.0, || Ok(uncapped)).unwrap();
        assert!(row[..19_999].iter().all(|logit| *logit < row[19_999]));
        assert!(row[0] > 29.9);
    }
}
