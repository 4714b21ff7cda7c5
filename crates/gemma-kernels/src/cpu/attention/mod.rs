//! Softmax attention of the queries of all segments of a call, over cached keys and values or over those of the call.
//!
//! One pass over the visible keys with a running maximum (the online softmax of flash attention, Dao et al. 2022,
//! arXiv:2205.14135), some keys at a time, so that no score matrix is stored. All query heads that share a key head,
//! of several tokens, lie side by side in the vectors of a register tile: a key or value is read once for all of
//! them, and the softmax runs along the vectors without a sum across. The keys stay where they are: in the pages of a
//! KV cache, or in the rows of the call.
//!
//! - [`kv`]: where keys and values lie;
//! - [`block`]: the queries of one key head that are computed together;
//! - [`scratch`]: what a thread keeps from task to task;
//! - [`gradient`]: the gradient over whole sequences;
//! - `paired`: values in bf16, where products of a prompt are taken in bf16;
//! - `tiled`: keys and values as operands of Intel's AMX.
//!
//! A result does not depend on what else is computed in the call, nor on how a prompt is cut into chunks, nor on the
//! number of threads: keys are taken together at fixed positions, and what is done for a query depends on its
//! [`Phase`] alone. In [`Phase::Decode`] there are few queries but many keys, so the keys are divided into parts, at
//! fixed positions as well, and the parts are merged at the end.

mod block;
mod gradient;
mod kv;
#[cfg(target_arch = "x86_64")]
mod paired;
mod scratch;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiled;

pub(crate) use gradient::attend_gradient;
pub(crate) use kv::{Keys, Stored};

use self::block::{Block, attend_block, finish};
use self::kv::KEYS;
use self::scratch::SCRATCH;
#[cfg(target_arch = "x86_64")]
use crate::ActivationPrecision;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::tile::block_width;
use crate::cpu::isa::{Isa, Lanes, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::{AttendParams, Phase};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Keys of a part, where keys are divided among threads.
const PART_KEYS: usize = 3 * KEYS;

/// The heads of one attention layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    /// Query heads per key head.
    pub(in crate::cpu) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Where query `index` of a key head lies, in values: token after token, and in each the heads of the group.
    fn query(self, kv_head: usize, index: usize) -> usize {
        let (token, head) = (index / self.group(), index % self.group());
        (token * self.heads + kv_head * self.group() + head) * self.head_dim
    }
}

/// The queries of one sequence in a call, and what they look at.
#[derive(Clone, Debug)]
pub(crate) struct Sequence<'a> {
    /// Position of the first query.
    pub(crate) start: usize,
    /// Number of queries, in tokens.
    pub(crate) len: usize,
    /// Intervals of positions that see themselves both ways.
    pub(crate) blocks: &'a [Range<usize>],
    pub(crate) phase: Phase,
    /// Keys and values up to position `start + len`.
    pub(crate) keys: Keys<'a>,
}

/// One stretch of keys for one block of queries.
struct Task {
    sequence: usize,
    kv_head: usize,
    /// The first query of the block and how many there are; see [`Heads::query`].
    queries: (usize, usize),
    /// The positions of the keys.
    keys: Range<usize>,
    /// Where the part's sums go, in parts; `None` where there is one part.
    partial: Option<usize>,
}

/// What computes the sums of a block in tiles.
#[cfg(target_arch = "x86_64")]
type AttendTiles = unsafe fn(&Block<'_>, &tiled::Operands, Range<usize>, &mut scratch::Scratch);

/// What a prompt's keys and values are laid out as, once for all of its queries.
#[cfg(target_arch = "x86_64")]
enum LaidOut {
    Paired(paired::Paired),
    Tiled(tiled::Operands, AttendTiles),
}

#[cfg(target_arch = "x86_64")]
impl LaidOut {
    /// `None` where they are read as they lie.
    fn new(
        isa: Isa,
        tiles: Option<AttendTiles>,
        sequence: &Sequence<'_>,
        heads: Heads,
        params: &AttendParams,
    ) -> Option<Self> {
        if params.activations == ActivationPrecision::F32 || sequence.phase != Phase::Prefill || sequence.len == 0 {
            return None;
        }
        match tiles {
            Some(attend) => Some(Self::Tiled(tiled::Operands::new(sequence, heads, params), attend)),
            None => paired::Paired::new(isa, sequence, heads, params).map(Self::Paired),
        }
    }
}

/// `out[t, h] = Σ_key softmax_key(score(q[t, h], k[key])) v[key]`, `q` and `out` `[tokens, heads, head_dim]` with the
/// tokens of one sequence after the other. Every value of `out` is written.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn attend(
    isa: Isa,
    q: &[f32],
    sequences: &[Sequence<'_>],
    heads: Heads,
    params: &AttendParams,
    out: &mut [MaybeUninit<f32>],
) {
    #[cfg(target_arch = "x86_64")]
    let tiles = (isa >= Isa::Amx).then_some(tiled::attend_tiles::<crate::cpu::gemm::amx::Hardware> as AttendTiles);
    #[cfg(not(target_arch = "x86_64"))]
    let tiles = ();
    attend_with(isa, tiles, q, sequences, heads, params, out);
}

/// [`attend`], where prompts are computed in tiles if there are any.
fn attend_with(
    isa: Isa,
    #[cfg(target_arch = "x86_64")] tiles: Option<AttendTiles>,
    #[cfg(not(target_arch = "x86_64"))] _tiles: (),
    q: &[f32],
    sequences: &[Sequence<'_>],
    heads: Heads,
    params: &AttendParams,
    out: &mut [MaybeUninit<f32>],
) {
    let Heads { heads: query_heads, kv_heads, head_dim } = heads;
    assert!(kv_heads > 0 && query_heads % kv_heads == 0, "query heads come in equal groups");
    let tokens: usize = sequences.iter().map(|sequence| sequence.len).sum();
    assert_eq!(q.len(), tokens * query_heads * head_dim, "queries");
    assert_eq!(out.len(), q.len(), "outputs");
    for sequence in sequences {
        sequence.keys.check(sequence.start + sequence.len, heads);
    }
    if out.is_empty() {
        return;
    }
    #[inline(always)]
    unsafe fn width<L: Lanes>() -> (usize, usize) {
        (block_width::<L>(), L::N)
    }
    let (width, lanes) = with_isa!(isa, width() -> (usize, usize));
    #[cfg(target_arch = "x86_64")]
    let laid_out: Vec<_> = sequences.iter().map(|seq| LaidOut::new(isa, tiles, seq, heads, params)).collect();

    let (mut tasks, mut merges, mut work) = (Vec::new(), Vec::new(), 0);
    let mut partials = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        // few queries of a token have a block of their own, whose vectors run along a head
        let along_heads = sequence.phase == Phase::Decode && 4 * heads.group() <= lanes;
        let most = if along_heads { heads.group() } else { width };
        let queries = sequence.len * heads.group();
        for (kv_head, first) in
            (0..kv_heads).flat_map(|kv_head| (0..queries).step_by(most).map(move |first| (kv_head, first)))
        {
            let count = most.min(queries - first);
            let tokens = first / heads.group()..(first + count).div_ceil(heads.group());
            let keys = sequence.visible(tokens, params);
            work += count * head_dim * keys.len();
            let part_of = |position: usize| position / PART_KEYS;
            let parts = part_of(keys.start)..part_of(keys.end.max(1) - 1) + 1;
            let task = |keys, partial| Task { sequence: index, kv_head, queries: (first, count), keys, partial };
            if sequence.phase == Phase::Prefill || parts.len() <= 1 {
                tasks.push(task(keys, None));
            } else {
                merges.push((tasks.len(), partials..partials + parts.len()));
                for part in parts {
                    let keys = keys.start.max(part * PART_KEYS)..keys.end.min((part + 1) * PART_KEYS);
                    tasks.push(task(keys, Some(partials)));
                    partials += 1;
                }
            }
        }
    }
    let part_len = (head_dim + 2) * width;
    let mut partial = Buffer::<f32>::zeroed(partials * part_len);
    let (to, partial_to) = (Output(out.as_mut_ptr().cast()), Output(partial.as_mut_ptr()));
    let firsts: Vec<usize> =
        sequences.iter().scan(0, |first, sequence| Some(std::mem::replace(first, *first + sequence.len))).collect();
    let block = |task: &Task| {
        let sequence = &sequences[task.sequence];
        let first = firsts[task.sequence] * query_heads * head_dim;
        Block {
            q: &q[first..][..sequence.len * query_heads * head_dim],
            first_out: first,
            sequence,
            #[cfg(target_arch = "x86_64")]
            paired: match &laid_out[task.sequence] {
                Some(LaidOut::Paired(paired)) => Some(paired),
                _ => None,
            },
            heads,
            params,
            kv_head: task.kv_head,
            queries: task.queries,
        }
    };
    let one = |index: usize| {
        let task = &tasks[index];
        SCRATCH.with_borrow_mut(|scratch| {
            let (block, keys) = (block(task), task.keys.clone());
            scratch.begin(head_dim, width);
            let plain = |keys: Range<usize>, scratch: &mut scratch::Scratch| {
                let block = &block;
                with_isa!(isa, attend_block(block: &Block<'_>, keys: Range<usize>, scratch: &mut scratch::Scratch));
            };
            #[cfg(target_arch = "x86_64")]
            match &laid_out[task.sequence] {
                // SAFETY: they are laid out only where the CPU has the instructions.
                Some(LaidOut::Paired(_)) => unsafe { block::attend_pairs(&block, keys, scratch) },
                // SAFETY: as above, and these are the operands of the block's sequence.
                Some(LaidOut::Tiled(operands, attend)) => unsafe { attend(&block, operands, keys, scratch) },
                None => plain(keys, scratch),
            }
            #[cfg(not(target_arch = "x86_64"))]
            plain(keys, scratch);
            match task.partial {
                None => {
                    let block = &block;
                    with_isa!(isa, finish(block: &Block<'_>, scratch: &mut scratch::Scratch, to: Output));
                }
                Some(part) => {
                    // SAFETY: every part has a place of its own.
                    let place = unsafe { std::slice::from_raw_parts_mut(partial_to.at(part * part_len), part_len) };
                    scratch.store(place, task.queries.1);
                }
            }
        });
    };
    pool::for_work(work, tasks.len(), one);
    let merge = |index: usize| {
        let (task, parts) = &merges[index];
        let task = &tasks[*task];
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.begin(head_dim, width);
            let parts = partial[parts.start * part_len..parts.end * part_len].chunks_exact(part_len);
            scratch.merge(parts, task.queries.1);
            let block = &block(task);
            with_isa!(isa, finish(block: &Block<'_>, scratch: &mut scratch::Scratch, to: Output));
        });
    };
    pool::for_work(partial.len(), merges.len(), merge);
}

impl Sequence<'_> {
    /// The positions that some of these tokens see, counted from the first query of the call.
    fn visible(&self, tokens: Range<usize>, params: &AttendParams) -> Range<usize> {
        let known = self.start + self.len;
        let seen = tokens.map(|token| params.visibility.visible(self.start + token, known, self.blocks));
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }
}
