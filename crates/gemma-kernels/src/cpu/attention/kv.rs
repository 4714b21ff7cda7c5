//! Where the keys and values of a sequence lie.

use super::Heads;
use crate::Format;
use crate::cpu::dequantize::decode;
use crate::cpu::isa::Lanes;
use crate::kv::{BLOCK, Block, PAGE_LEN};
#[cfg(target_arch = "x86_64")]
use crate::math::f16_to_f32;

/// Keys scored at a time; a multiple of [`PANEL`].
pub(super) const KEYS: usize = 96;
/// Keys copied together for the register tile.
pub(super) const PANEL: usize = 12;
/// The most runs of keys that a tile has.
const RUNS: usize = KEYS / PAGE_LEN + 2;

/// Keys and values as they are kept, of equal length.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored<'a> {
    F32(&'a [f32], &'a [f32]),
    /// As f16 values.
    F16(&'a [[u8; 2]], &'a [[u8; 2]]),
    /// In blocks of q8_0; a head is a multiple of a block.
    Q8_0(&'a [Block], &'a [Block]),
}

impl<'a> Stored<'a> {
    /// From the value at an index on.
    fn from(self, index: usize) -> Self {
        match self {
            Stored::F32(keys, values) => Stored::F32(&keys[index..], &values[index..]),
            Stored::F16(keys, values) => Stored::F16(&keys[index..], &values[index..]),
            Stored::Q8_0(keys, values) => Stored::Q8_0(&keys[index / BLOCK..], &values[index / BLOCK..]),
        }
    }

    /// Keys for values, and the other way round.
    #[cfg(target_arch = "x86_64")]
    fn swapped(self) -> Self {
        match self {
            Stored::F32(keys, values) => Stored::F32(values, keys),
            Stored::F16(keys, values) => Stored::F16(values, keys),
            Stored::Q8_0(keys, values) => Stored::Q8_0(values, keys),
        }
    }

    /// The first key, as [`value`](Self::value).
    #[cfg(target_arch = "x86_64")]
    pub(super) fn key(self, wide: &'a mut [f32]) -> &'a [f32] {
        self.swapped().value(wide)
    }

    /// The first value: where it lies if it is f32, or widened into the room that is given, which has its length.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn value(self, wide: &'a mut [f32]) -> &'a [f32] {
        match self {
            Stored::F32(_, values) => &values[..wide.len()],
            Stored::F16(_, values) => {
                wide.iter_mut().zip(values).for_each(|(to, half)| *to = f16_to_f32(*half));
                wide
            }
            Stored::Q8_0(_, values) => {
                Format::Q8_0.decode_row(values[..wide.len() / BLOCK].as_flattened(), wide);
                wide
            }
        }
    }

    /// How many values there are of either.
    fn lens(self) -> [usize; 2] {
        match self {
            Stored::F32(keys, values) => [keys.len(), values.len()],
            Stored::F16(keys, values) => [keys.len(), values.len()],
            Stored::Q8_0(keys, values) => [keys.len() * BLOCK, values.len() * BLOCK],
        }
    }
}

/// The keys and values of one sequence.
#[derive(Clone, Debug)]
pub(crate) enum Keys<'a> {
    /// Those of the queries' own tokens, `[tokens, kv_heads, head_dim]`; there are none before.
    Rows(Stored<'a>),
    /// The pages of a cache, `[kv_heads, PAGE_LEN, head_dim]` each.
    Pages {
        /// Which page of the sequence the first one is.
        first: usize,
        pages: Vec<Stored<'a>>,
    },
}

impl<'a> Keys<'a> {
    /// # Panics
    /// When keys or values up to position `end` are not there. (Those before the first page are, for a window, let go.)
    pub(super) fn check(&self, end: usize, heads: Heads) {
        let row = heads.kv_heads * heads.head_dim;
        match self {
            Keys::Rows(stored) => assert_eq!(stored.lens(), [end * row; 2], "keys and values"),
            Keys::Pages { first, pages } => {
                assert!((first + pages.len()) * PAGE_LEN >= end, "keys and values up to {end}");
                for page in pages {
                    assert_eq!(page.lens(), [PAGE_LEN * row; 2], "a page");
                }
            }
        }
    }

    /// The key and value of a key head at `position`, how many values lie between one position and the next, and how
    /// many positions (at most) follow each other like that.
    pub(super) fn run(&self, position: usize, head: usize, heads: Heads) -> (Stored<'a>, usize, usize) {
        let dim = heads.head_dim;
        match self {
            Keys::Rows(stored) => {
                (stored.from((position * heads.kv_heads + head) * dim), heads.kv_heads * dim, usize::MAX)
            }
            Keys::Pages { first, pages } => {
                let (page, slot) = (position / PAGE_LEN - first, position % PAGE_LEN);
                (pages[page].from((head * PAGE_LEN + slot) * dim), dim, PAGE_LEN - slot)
            }
        }
    }
}

/// Values that lie a step apart.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// The first of them.
    pub(super) at: *const f32,
    /// From one to the next.
    pub(super) step: usize,
    pub(super) count: usize,
}

/// The keys that are scored together, and their values, in f32 or in words of two bf16 values.
pub(super) struct Tile {
    /// How many there are.
    pub(super) count: usize,
    /// Where each key lies; behind the last one those that come next, or the last one again, to be asked for ahead.
    pub(super) keys: [*const f32; KEYS + PANEL],
    /// Where the values lie, run after run.
    runs: [Run; RUNS],
    filled: usize,
}

impl Tile {
    /// No keys yet.
    pub(super) fn new() -> Self {
        let nothing = Run { at: std::ptr::null(), step: 0, count: 0 };
        Self { count: 0, keys: [std::ptr::null(); KEYS + PANEL], runs: [nothing; RUNS], filled: 0 }
    }

    /// The values, run after run.
    pub(super) fn values(&self) -> &[Run] {
        &self.runs[..self.filled]
    }

    /// The tile as one of `count` keys whose values are these; keys that were not gathered are the last that was.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn replace_values(&mut self, count: usize, values: Run) {
        (self.count, self.runs[0], self.filled) = (count, values, 1);
    }

    /// The `count` keys from `position` on, of a key head; those that are not kept as f32 are widened into `wide`,
    /// `[KEYS, head_dim]` each, and so are the values with `widen_values`; without, they are to be
    /// [replaced](Self::replace_values).
    ///
    /// # Safety
    /// The lanes' instruction set must be available, and the keys must be there; they are up to `end`.
    #[inline(always)]
    pub(super) unsafe fn gather<'a, L: Lanes>(
        &mut self,
        keys: &Keys<'a>,
        head: usize,
        heads: Heads,
        (position, count, end): (usize, usize, usize),
        wide: &mut [crate::cpu::buffer::Buffer<f32>; 2],
        widen_values: bool,
    ) {
        let dim = heads.head_dim;
        (self.count, self.filled) = (count, 0);
        let ahead = (count + PANEL).min(end - position);
        let mut done = 0;
        while done < ahead {
            let (stored, step, run) = keys.run(position + done, head, heads);
            let here = run.min(ahead - done);
            // of the run, the keys that are scored
            let scored = here.min(count.saturating_sub(done));
            match stored {
                Stored::F32(k, v) => {
                    for i in 0..here {
                        self.keys[done + i] = k.as_ptr().wrapping_add(i * step);
                    }
                    if scored > 0 {
                        self.runs[self.filled] = Run { at: v.as_ptr(), step, count: scored };
                        self.filled += 1;
                    }
                }
                packed if scored > 0 => {
                    wide.iter_mut().for_each(|to| to.resize(KEYS * dim));
                    let [keys, values] = wide.each_mut().map(|to| &mut to[done * dim..]);
                    // SAFETY: the lanes' instructions are available.
                    unsafe {
                        match packed {
                            Stored::F16(k, v) => {
                                let row = |from: &'a [[u8; 2]], row: usize| from[row * step..][..dim].as_flattened();
                                widen::<L>(Format::F16, |i| row(k, i), keys, dim, scored);
                                if widen_values {
                                    widen::<L>(Format::F16, |i| row(v, i), values, dim, scored);
                                }
                            }
                            Stored::Q8_0(k, v) => {
                                let (step, len) = (step / BLOCK, dim / BLOCK);
                                let row = |from: &'a [Block], row: usize| from[row * step..][..len].as_flattened();
                                widen::<L>(Format::Q8_0, |i| row(k, i), keys, dim, scored);
                                if widen_values {
                                    widen::<L>(Format::Q8_0, |i| row(v, i), values, dim, scored);
                                }
                            }
                            Stored::F32(..) => unreachable!("f32 stands above"),
                        }
                    }
                    for i in done..done + scored {
                        self.keys[i] = wide[0][i * dim..].as_ptr();
                    }
                    self.runs[self.filled] = Run { at: wide[1][done * dim..].as_ptr(), step: dim, count: scored };
                    self.filled += 1;
                    // what was widened needs not be asked for
                    let widened = self.keys[done];
                    self.keys[done + scored..done + here].fill(widened);
                }
                _ => {
                    let widened = self.keys[0];
                    self.keys[done..done + here].fill(widened);
                }
            }
            done += here;
        }
        let last = self.keys[ahead - 1];
        self.keys[ahead..].fill(last);
    }
}

/// `count` rows of `dim` values as f32, one behind the other; `row` gives the bytes of each.
///
/// # Safety
/// The lanes' instruction set must be available, and a row must hold `dim` values of the format.
#[inline(always)]
unsafe fn widen<'a, L: Lanes>(
    format: Format,
    row: impl Fn(usize) -> &'a [u8],
    to: &mut [f32],
    dim: usize,
    count: usize,
) {
    for (i, to) in to.chunks_exact_mut(dim).take(count).enumerate() {
        // SAFETY: as required of the caller.
        unsafe { decode::<L>(format, row(i), to) };
    }
}
