//! The register tile: the innermost loop of every product with many columns.
//!
//! `C[r][t] = Σ_k A[r][k] B[k][t]`, where `t` runs along the vectors: a value of `A` is spread over a vector and
//! multiplied with vectors of `B`, so `A` is read as it lies in memory, rows or columns, and only `B` is packed.

use crate::cpu::isa::{Lanes, prefetch};

/// Columns of a packed block of `B`: the width of the register tile.
pub(in crate::cpu) const fn block_width<L: Lanes>() -> usize {
    L::TILE.1 * L::N
}

/// `A`: value `k` of row `r` lies at `at + r * row + k * step`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Left {
    pub(in crate::cpu) at: *const f32,
    pub(in crate::cpu) row: usize,
    pub(in crate::cpu) step: usize,
}

/// `B`: row `k` lies at `at + k * row`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Right {
    pub(in crate::cpu) at: *const f32,
    pub(in crate::cpu) row: usize,
}

impl Right {
    /// A block that was packed, or that is laid out like one.
    #[inline(always)]
    pub(in crate::cpu) fn block<L: Lanes>(block: &[f32]) -> Self {
        Self { at: block.as_ptr(), row: block_width::<L>() }
    }
}

/// `C`: the sums of row `r` lie at `at + r * row`; they are added to what lies there, or replace it.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Sums {
    pub(in crate::cpu) at: *mut f32,
    pub(in crate::cpu) row: usize,
    pub(in crate::cpu) add: bool,
}

/// What is to be requested from memory meanwhile: rows `first` to `end` of bytes, `row` apart, in steps of at most a
/// cache line; and of a packed block so many cache lines a step, into the L2 cache. It need not be there.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Ahead {
    pub(in crate::cpu) at: *const u8,
    pub(in crate::cpu) row: usize,
    pub(in crate::cpu) step: usize,
    pub(in crate::cpu) first: usize,
    pub(in crate::cpu) end: usize,
    /// Only tiles ask for it.
    pub(in crate::cpu) block: *const u8,
    pub(in crate::cpu) lines: usize,
}

impl Ahead {
    /// Nothing.
    pub(in crate::cpu) const NOTHING: Self =
        Self { at: std::ptr::null(), row: 0, step: 0, first: 0, end: 0, block: std::ptr::null(), lines: 0 };
}

/// How many steps of `B` a step of [`Ahead`] takes.
pub(in crate::cpu) const AHEAD_STEP: usize = 16;

/// `rows` rows of `A` times the first `vectors` vectors of `depth` rows of `B`.
///
/// # Safety
/// The lanes' instruction set must be available, and all values that the arguments name must be there.
#[inline(always)]
pub(in crate::cpu) unsafe fn multiply<L: Lanes>(
    left: Left,
    rows: usize,
    right: Right,
    depth: usize,
    vectors: usize,
    sums: Sums,
    ahead: Ahead,
) {
    // SAFETY: as required of the caller.
    unsafe {
        match (L::TILE, vectors) {
            ((12, _), 2) => every_row::<L, 12, 2>(left, rows, right, depth, sums, ahead),
            ((12, _), _) => every_row::<L, 12, 1>(left, rows, right, depth, sums, ahead),
            ((6, _), 2) => every_row::<L, 6, 2>(left, rows, right, depth, sums, ahead),
            ((6, _), _) => every_row::<L, 6, 1>(left, rows, right, depth, sums, ahead),
            _ => every_row::<L, 4, 1>(left, rows, right, depth, sums, ahead),
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn every_row<L: Lanes, const R: usize, const V: usize>(
    left: Left,
    rows: usize,
    right: Right,
    depth: usize,
    sums: Sums,
    ahead: Ahead,
) {
    let mut row = 0;
    // SAFETY: as required of the caller; only rows below `rows` are touched.
    unsafe {
        let at = |row: usize| {
            let left = Left { at: left.at.add(row * left.row), ..left };
            // all is requested with the first rows
            let ahead = if row == 0 { ahead } else { Ahead::NOTHING };
            (left, Sums { at: sums.at.add(row * sums.row), ..sums }, ahead)
        };
        while row + R <= rows {
            let (left, sums, ahead) = at(row);
            registers::<L, R, V>(left, right, depth, sums, ahead);
            row += R;
        }
        while row + 4 <= rows {
            let (left, sums, ahead) = at(row);
            registers::<L, 4, V>(left, right, depth, sums, ahead);
            row += 4;
        }
        while row + 2 <= rows {
            let (left, sums, ahead) = at(row);
            registers::<L, 2, V>(left, right, depth, sums, ahead);
            row += 2;
        }
        if row < rows {
            let (left, sums, ahead) = at(row);
            registers::<L, 1, V>(left, right, depth, sums, ahead);
        }
    }
}

/// `R` rows times `V` vectors, their `R V` sums held in registers.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn registers<L: Lanes, const R: usize, const V: usize>(
    left: Left,
    right: Right,
    depth: usize,
    sums: Sums,
    ahead: Ahead,
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut tile = [[L::splat(0.0); V]; R];
        let mut at = left.at;
        let mut block = right.at;
        for begin in (0..depth).step_by(AHEAD_STEP) {
            for row in ahead.first..ahead.end {
                prefetch(ahead.at.wrapping_add(row * ahead.row + begin / AHEAD_STEP * ahead.step));
            }
            for _ in begin..depth.min(begin + AHEAD_STEP) {
                // a closure would not have the instructions
                let mut vectors = [L::splat(0.0); V];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = L::load(block.add(v * L::N));
                }
                for (r, tile) in tile.iter_mut().enumerate() {
                    let value = L::splat(*at.add(r * left.row));
                    for (tile, vector) in tile.iter_mut().zip(vectors) {
                        *tile = value.mul_add(vector, *tile);
                    }
                }
                at = at.wrapping_add(left.step);
                block = block.wrapping_add(right.row);
            }
        }
        for (r, tile) in tile.into_iter().enumerate() {
            for (v, sum) in tile.into_iter().enumerate() {
                let to = sums.at.add(r * sums.row + v * L::N);
                let sum = if sums.add { sum.add(L::load(to)) } else { sum };
                sum.store(to);
            }
        }
    }
}

/// `rows` rows of `A` times `columns` columns of `depth` rows of `B`, which lie side by side, any number of them.
///
/// # Safety
/// The lanes' instruction set must be available, and all values that the arguments name must be there.
#[inline(always)]
pub(in crate::cpu) unsafe fn multiply_columns<L: Lanes>(
    left: Left,
    rows: usize,
    right: Right,
    depth: usize,
    columns: usize,
    sums: Sums,
) {
    let whole = columns / L::N * L::N;
    // SAFETY: as required of the caller.
    unsafe {
        for column in (0..whole).step_by(block_width::<L>()) {
            let vectors = (whole - column).min(block_width::<L>()) / L::N;
            let right = Right { at: right.at.add(column), ..right };
            let to = Sums { at: sums.at.add(column), ..sums };
            multiply::<L>(left, rows, right, depth, vectors, to, Ahead::NOTHING);
        }
        for row in 0..rows {
            for column in whole..columns {
                let mut sum = 0.0;
                for k in 0..depth {
                    sum += *left.at.add(row * left.row + k * left.step) * *right.at.add(k * right.row + column);
                }
                let to = sums.at.add(row * sums.row + column);
                *to = if sums.add { *to + sum } else { sum };
            }
        }
    }
}

/// Rows `[rows, depth]` (`row` values apart) into a block of `B`, of whose columns they become the first. The rest
/// of the last vector begun is zero.
///
/// # Safety
/// The lanes' instruction set must be available; `rows` is at most [`block_width`], and all values must be there.
#[inline(always)]
pub(in crate::cpu) unsafe fn pack<L: Lanes>(from: *const f32, row: usize, rows: usize, depth: usize, block: *mut f32) {
    let width = block_width::<L>();
    let whole = depth / L::N * L::N;
    // SAFETY: as required of the caller.
    unsafe {
        let mut first = 0;
        while first < rows {
            let here = L::N.min(rows - first);
            let (from, to) = (from.add(first * row), block.add(first));
            let mut k = 0;
            if here == L::N {
                while k < whole {
                    prefetch(from.wrapping_add(k + 4 * L::N).cast());
                    L::transpose(from.add(k), row, to.add(k * width), width);
                    k += L::N;
                }
            }
            while k < depth {
                for i in 0..L::N {
                    *to.add(k * width + i) = if i < here { *from.add(i * row + k) } else { 0.0 };
                }
                k += 1;
            }
            first += L::N;
        }
    }
}

/// The transpose of sums `[rows, columns]` (`from_row` values apart) to `[columns, rows]` (`to_row` apart).
///
/// # Safety
/// The lanes' instruction set must be available; all values must be there.
#[inline(always)]
pub(in crate::cpu) unsafe fn unpack<L: Lanes>(
    from: *const f32,
    from_row: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    to_row: usize,
) {
    let (whole_rows, whole_columns) = (rows / L::N * L::N, columns / L::N * L::N);
    // SAFETY: as required of the caller.
    unsafe {
        for column in (0..whole_columns).step_by(L::N) {
            for row in (0..whole_rows).step_by(L::N) {
                L::transpose(from.add(row * from_row + column), from_row, to.add(column * to_row + row), to_row);
            }
        }
        let one = |row: usize, column: usize| *to.add(column * to_row + row) = *from.add(row * from_row + column);
        for column in 0..columns {
            let first = if column < whole_columns { whole_rows } else { 0 };
            for row in first..rows {
                one(row, column);
            }
        }
    }
}
