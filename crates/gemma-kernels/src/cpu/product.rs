//! A matrix that activations are multiplied with, and several that they are multiplied with in one call.

use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::cpu::shape::Shape;
use std::ops::Range;

/// `out[t, r] = Σ_c x[t, c] w[r, c]` for activations `x` `[tokens, cols]`: the matrix, the sizes and where the product goes.
///
/// What takes several of them takes them with the same activations, in one format: they differ in their rows.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Product<'a> {
    /// The packed rows.
    pub(in crate::cpu) weight: &'a [u8],
    pub(in crate::cpu) shape: Shape,
    pub(in crate::cpu) out: Output,
}

/// The sizes of several products as those of one, whose rows are the rows of all.
pub(in crate::cpu) fn joint(products: &[Product<'_>]) -> Shape {
    Shape { rows: products.iter().map(|product| product.shape.rows).sum(), ..products[0].shape }
}

/// Calls `multiply` with all rows of all products, in stretches of at most `rows` rows for the threads: one region for all.
pub(in crate::cpu) fn in_stretches<'a>(
    products: &[Product<'a>],
    rows: usize,
    multiply: impl Fn(Product<'a>, Range<usize>) + Sync,
) {
    let tasks_of = |product: &Product<'_>| product.shape.rows.div_ceil(rows);
    pool::for_work(joint(products).work(), products.iter().map(tasks_of).sum(), |mut task| {
        for product in products {
            if task < tasks_of(product) {
                return multiply(*product, task * rows..((task + 1) * rows).min(product.shape.rows));
            }
            task -= tasks_of(product);
        }
    });
}
