//! Attention against loops in f64, with what must not be looked at filled with NaN.

use super::*;
use crate::cpu::{noise, places};
use crate::kv::PAGE_LEN;
use crate::{ActivationPrecision, Format, Visibility};

/// How the keys and values of a [`Case`] are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    Rows,
    Pages,
    F16,
    /// Where heads are whole blocks.
    Q8_0,
}

/// A whole history, of which the last tokens are the queries'.
#[derive(Clone)]
struct Case {
    heads: Heads,
    start: usize,
    len: usize,
    blocks: Vec<Range<usize>>,
    phase: Phase,
    params: AttendParams,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn params(visibility: Visibility, scale: f32, softcap: Option<f32>) -> AttendParams {
    AttendParams { visibility, scale, softcap, activations: ActivationPrecision::F32 }
}

fn causal(window: Option<usize>) -> Visibility {
    Visibility::Causal { window }
}

impl Kept {
    fn format(self) -> Format {
        match self {
            Kept::Rows | Kept::Pages => Format::F32,
            Kept::F16 => Format::F16,
            Kept::Q8_0 => Format::Q8_0,
        }
    }
}

fn encoded(format: Format, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(values.len()).expect("whole blocks")];
    format.encode_row(values, &mut bytes);
    bytes
}

const HEADS: [(usize, usize, usize); 6] = [(8, 1, 256), (4, 2, 24), (3, 3, 5), (1, 1, 300), (40, 1, 3), (2, 1, 1)];

fn heads((heads, kv_heads, head_dim): (usize, usize, usize)) -> Heads {
    Heads { heads, kv_heads, head_dim }
}

impl Case {
    fn new(heads: Heads, (start, len): (usize, usize), params: AttendParams, size: f32) -> Self {
        let row = heads.kv_heads * heads.head_dim;
        let q = noise((start + len) * heads.heads * heads.head_dim, 1).iter().map(|value| value * size).collect();
        let [k, v] = [2, 3].map(|seed| noise((start + len) * row, seed));
        Self { heads, start, len, blocks: Vec::new(), phase: Phase::of_len(len), params, q, k, v }
    }

    /// The same with keys and values as they come back from where they are kept.
    fn rounded(&self, kept: Kept) -> Self {
        let rounded = |values: &[f32]| match kept.format() {
            Format::F32 => values.to_vec(),
            format => {
                let mut back = vec![0.0; values.len()];
                format.decode_row(&encoded(format, values), &mut back);
                back
            }
        };
        Self { k: rounded(&self.k), v: rounded(&self.v), ..self.clone() }
    }

    /// The pages of keys and of values, from the one of the first visible key on.
    fn pages(&self) -> (usize, [Vec<Vec<f32>>; 2]) {
        let Heads { kv_heads, head_dim, .. } = self.heads;
        let end = self.start + self.len;
        let visible = |query| self.params.visibility.visible(query, end, &self.blocks);
        let first = (self.start..end).map(|query| visible(query).start).min().unwrap_or(0);
        let of = |all: &[f32]| {
            let mut pages =
                vec![vec![f32::NAN; kv_heads * PAGE_LEN * head_dim]; end.div_ceil(PAGE_LEN) - first / PAGE_LEN];
            for position in first..end {
                let page = &mut pages[position / PAGE_LEN - first / PAGE_LEN];
                for head in 0..kv_heads {
                    let at = (head * PAGE_LEN + position % PAGE_LEN) * head_dim;
                    page[at..at + head_dim]
                        .copy_from_slice(&all[(position * kv_heads + head) * head_dim..][..head_dim]);
                }
            }
            pages
        };
        (first / PAGE_LEN, [of(&self.k), of(&self.v)])
    }

    /// Calls `run` with the case as a sequence.
    fn sequence<T>(&self, kept: Kept, run: impl FnOnce(Sequence<'_>) -> T) -> T {
        let Self { start, len, blocks, phase, .. } = self;
        let sequence = |keys| Sequence { start: *start, len: *len, blocks, phase: *phase, keys };
        let (first, [k, v]) = self.pages();
        let bytes =
            |pages: &[Vec<f32>]| -> Vec<Vec<u8>> { pages.iter().map(|page| encoded(kept.format(), page)).collect() };
        match kept {
            Kept::Rows => run(sequence(Keys::Rows(Stored::F32(&self.k, &self.v)))),
            Kept::Pages => {
                let pages = k.iter().zip(&v).map(|(k, v)| Stored::F32(k, v)).collect();
                run(sequence(Keys::Pages { first, pages }))
            }
            Kept::F16 => {
                let (k, v) = (bytes(&k), bytes(&v));
                let of = |page: &'_ Vec<u8>| page.as_chunks::<2>().0.to_vec();
                let (k, v): (Vec<_>, Vec<_>) = (k.iter().map(of).collect(), v.iter().map(of).collect());
                let pages = k.iter().zip(&v).map(|(k, v)| Stored::F16(k, v)).collect();
                run(sequence(Keys::Pages { first, pages }))
            }
            Kept::Q8_0 => {
                let (k, v) = (bytes(&k), bytes(&v));
                let of = |page: &'_ Vec<u8>| page.as_chunks::<34>().0.to_vec();
                let (k, v): (Vec<_>, Vec<_>) = (k.iter().map(of).collect(), v.iter().map(of).collect());
                let pages = k.iter().zip(&v).map(|(k, v)| Stored::Q8_0(k, v)).collect();
                run(sequence(Keys::Pages { first, pages }))
            }
        }
    }

    /// The queries of the sequence.
    fn queries(&self) -> &[f32] {
        &self.q[self.start * self.heads.heads * self.heads.head_dim..]
    }

    fn found(&self, isa: Isa, kept: Kept) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.queries().len()];
        self.sequence(kept, |sequence| {
            attend(isa, self.queries(), &[sequence], self.heads, &self.params, places(&mut out));
        });
        out
    }

    /// The same in tiles, as plain Rust has them.
    #[cfg(target_arch = "x86_64")]
    fn found_in_tiles(&self, kept: Kept) -> Vec<f32> {
        let tiles = tiled::attend_tiles::<crate::cpu::gemm::amx::tests::Modelled> as AttendTiles;
        let mut out = vec![f32::NAN; self.queries().len()];
        self.sequence(kept, |sequence| {
            let (isa, out) = (Isa::Avx512Bf16, places(&mut out));
            attend_with(isa, Some(tiles), self.queries(), &[sequence], self.heads, &self.params, out);
        });
        out
    }

    /// In f64, with every score kept.
    fn exact(&self) -> Vec<f64> {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let params = self.params;
        let mut out = Vec::new();
        for (token, head) in (0..self.len).flat_map(|token| (0..heads).map(move |head| (token, head))) {
            let query = self.start + token;
            let q = &self.queries()[(token * heads + head) * head_dim..][..head_dim];
            let seen: Vec<usize> =
                (0..self.start + self.len).filter(|key| params.visibility.allows(query, *key, &self.blocks)).collect();
            let at = |key: usize| (key * kv_heads + head / (heads / kv_heads)) * head_dim;
            let score = |key: &usize| {
                let k = &self.k[at(*key)..][..head_dim];
                let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let score = dot * f64::from(params.scale);
                params.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..head_dim).map(|d| {
                let sum: f64 = seen.iter().zip(&weights).map(|(key, w)| w * f64::from(self.v[at(*key) + d])).sum();
                sum / total
            }));
        }
        out
    }

    fn check(&self, tolerance: f64) {
        let exact = self.exact();
        let ways: &[Kept] = if self.start == 0 { &[Kept::Rows, Kept::Pages] } else { &[Kept::Pages] };
        for (isa, kept) in Isa::available().into_iter().flat_map(|isa| ways.iter().map(move |kept| (isa, *kept))) {
            for (i, (found, exact)) in self.found(isa, kept).iter().zip(&exact).enumerate() {
                let error = (f64::from(*found) - exact).abs();
                let Self { heads, start, len, blocks, params, .. } = self;
                assert!(
                    error < tolerance,
                    "{isa:?} {kept:?} {heads:?} {len} after {start} {blocks:?} {params:?} at {i}: {error}"
                );
            }
        }
    }
}

/// What a query sees, with blocks that see themselves both ways, and the cap of the scores.
fn rules() -> Vec<(Visibility, Vec<Range<usize>>, Option<f32>)> {
    let both = |radius| Visibility::Bidirectional { radius };
    vec![
        (causal(None), vec![], None),
        (causal(Some(6)), vec![], Some(2.0)),
        (causal(Some(1)), vec![], None),
        (causal(Some(300)), vec![], None),
        (causal(None), vec![0..7], None),
        (causal(Some(6)), vec![0..4], Some(1.0)),
        (causal(Some(3)), vec![2..8, 8..9, 20..40], None),
        // so high a cap changes nothing
        (causal(None), vec![], Some(1e8)),
        (both(None), vec![], None),
        (both(Some(4)), vec![], Some(3.0)),
    ]
}

/// Whether each block lies before, behind or inside the queries, which an encoder's are from the first on.
fn possible(start: usize, len: usize, visibility: Visibility, blocks: &[Range<usize>]) -> bool {
    let whole = |block: &Range<usize>| {
        block.end <= start || block.start >= start + len || (start <= block.start && block.end <= start + len)
    };
    blocks.iter().all(whole) && (start == 0 || matches!(visibility, Visibility::Causal { .. }))
}

fn reads_as_the_values_held(kept: Kept, shapes: [(usize, usize, usize); 3]) {
    for case in shapes {
        for (len, start, window) in [(1, 5, None), (1, 300, None), (7, 40, Some(16)), (33, 70, None)] {
            let case = Case::new(heads(case), (start, len), params(causal(window), 0.3, None), 1.0);
            for isa in Isa::available() {
                let found = case.found(isa, kept);
                let context = format!("{isa:?} {:?} {len} after {start}", case.heads);
                assert_eq!(found, case.rounded(kept).found(isa, Kept::Pages), "{context}");
                assert_ne!(found, case.found(isa, Kept::Pages), "{context}: nothing was rounded");
            }
        }
    }
}

/// Keys kept as f16 give what their values give in f32.
#[test]
fn f16_is_read_as_the_values_that_it_holds() {
    reads_as_the_values_held(Kept::F16, [(4, 1, 16), (3, 3, 33), (8, 2, 256)]);
}

/// The same of q8_0.
#[test]
fn q8_0_is_read_as_the_values_that_it_holds() {
    reads_as_the_values_held(Kept::Q8_0, [(4, 1, 32), (3, 3, 96), (8, 2, 256)]);
}

#[test]
fn attention_equals_loops_in_f64() {
    for case in HEADS {
        for (start, len) in [(0, 1), (0, 9), (5, 1), (50, 4), (20, 3), (700, 1), (6, 70), (401, 1), (0, 41)] {
            for (visibility, blocks, softcap) in rules() {
                if possible(start, len, visibility, &blocks) {
                    let case = Case::new(heads(case), (start, len), params(visibility, 0.1, softcap), 1.0);
                    Case { blocks, ..case }.check(1e-5);
                }
            }
        }
    }
}

/// In a prompt, where the CPU multiplies bf16 faster: values and their weights that are rounded once, and nothing else.
#[test]
fn prompts_are_seen_in_bf16_unless_exact() {
    #[cfg(target_arch = "x86_64")]
    let bf16 = |values: &[f32]| -> Vec<f32> { values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect() };
    for case in [(8, 1, 256), (4, 2, 24), (3, 3, 6), (1, 1, 600), (2, 1, 2), (4, 4, 72)] {
        for (start, len) in [(0, 9), (51, 10), (21, 33), (700, 17), (6, 70)] {
            for (visibility, blocks, softcap) in rules() {
                if !possible(start, len, visibility, &blocks) {
                    continue;
                }
                let activations = ActivationPrecision::Int16OrBf16;
                let params = AttendParams { activations, ..params(visibility, 0.1, softcap) };
                let case = Case { blocks, ..Case::new(heads(case), (start, len), params, 1.0) };
                let exact = case.exact();
                let ways: &[Kept] = if case.heads.head_dim.is_multiple_of(32) {
                    &[Kept::Pages, Kept::F16, Kept::Q8_0]
                } else {
                    &[Kept::Pages, Kept::F16]
                };
                for (isa, kept) in Isa::available().into_iter().flat_map(|isa| ways.iter().map(move |k| (isa, *k))) {
                    let found = case.found(isa, kept);
                    let worst = |to: &[f64]| {
                        let errors = found.iter().zip(to).map(|(found, to)| (f64::from(*found) - to).abs());
                        errors.fold(0f64, |worst, error| if error > worst || error.is_nan() { error } else { worst })
                    };
                    let context = format!("{isa:?} {kept:?} {:?} {len} after {start} {params:?}", case.heads);
                    #[cfg(target_arch = "x86_64")]
                    if case.phase == Phase::Prefill && isa >= Isa::Avx512Bf16 && crate::cpu::isa::pairs_are_faster() {
                        let kept = case.rounded(kept);
                        let rounded = Case { v: bf16(&kept.v), ..kept };
                        // a weight is rounded by a 512th at most
                        let worst = worst(&rounded.exact());
                        assert!(worst < 4e-3, "{context}: {worst}");
                        continue;
                    }
                    let worst = worst(&exact);
                    let allowed = match kept {
                        Kept::Q8_0 => 2e-2,
                        Kept::F16 => 1e-3,
                        _ => 1e-5,
                    };
                    assert!(worst < allowed, "{context}: {worst}");
                }
            }
        }
    }
}

/// Scores of ±2000: most weights vanish, none overflows.
#[test]
fn large_scores_neither_overflow_nor_vanish() {
    for start in [0, 300] {
        let (heads, params) = (heads((4, 1, 16)), params(causal(None), 1.0, None));
        Case::new(heads, (start, 3), params, 1000.0).check(1e-2);
        for isa in Isa::available() {
            for (len, activations) in [(3, ActivationPrecision::F32), (9, ActivationPrecision::Int16OrBf16)] {
                let params = AttendParams { activations, ..params };
                let found = Case::new(heads, (start, len), params, 1e30).found(isa, Kept::Pages);
                assert!(found.iter().all(|value| value.is_finite()));
            }
        }
    }
}

/// What a query gets is bit for bit the same whatever chunk it comes in and whatever else is in the call.
#[test]
fn company_and_chunks_change_no_bit() {
    let with_f16 = HEADS.into_iter().flat_map(|heads| [Kept::Pages, Kept::F16].map(|kept| (heads, kept)));
    for (case, kept) in with_f16.chain([((8, 1, 256), Kept::Q8_0), ((6, 3, 32), Kept::Q8_0)]) {
        for ((visibility, softcap), phase) in [(causal(None), None), (causal(Some(150)), Some(3.0))]
            .into_iter()
            .flat_map(|rule| [Phase::Decode, Phase::Prefill].map(|phase| (rule, phase)))
        {
            let activations = ActivationPrecision::Int16OrBf16;
            let params = AttendParams { activations, ..params(visibility, 0.2, softcap) };
            let all = Case { phase, ..Case::new(heads(case), (0, 420), params, 1.0) };
            let cut = |start: usize, len: usize| {
                let (row, q_row) = (all.heads.kv_heads * all.heads.head_dim, all.heads.heads * all.heads.head_dim);
                let end = start + len;
                let part = |values: &[f32], row: usize| values[..end * row].to_vec();
                let (q, k, v) = (part(&all.q, q_row), part(&all.k, row), part(&all.v, row));
                Case { start, len, q, k, v, ..all.clone() }
            };
            for isa in Isa::available() {
                let whole = all.found(isa, kept);
                let row = all.heads.heads * all.heads.head_dim;
                let context = format!("{isa:?} {kept:?} {:?} {visibility:?} {phase:?}", all.heads);
                for chunk in [1, 7, 64, 200] {
                    let first = if chunk == 1 { 395 } else { 0 };
                    for start in (first..420).step_by(chunk) {
                        let part = cut(start, chunk.min(420 - start));
                        let found = part.found(isa, kept);
                        assert!(found == whole[start * row..][..found.len()], "{context}: {chunk} at {start}");
                    }
                }
                // three sequences in one call
                let [a, b, c] = [cut(400, 1), cut(0, 30), cut(100, 9)];
                let q = [a.queries(), b.queries(), c.queries()].concat();
                let mut out = vec![f32::NAN; q.len()];
                a.sequence(kept, |a| {
                    b.sequence(kept, |b| {
                        c.sequence(kept, |c| attend(isa, &q, &[a, b, c], all.heads, &params, places(&mut out)));
                    });
                });
                let alone = [&whole[400 * row..401 * row], &whole[..30 * row], &whole[100 * row..109 * row]].concat();
                assert!(out == alone, "{context}: beside others");
            }
        }
    }
}

/// A prompt in tiles: values and their weights in bf16, scores from both parts of queries and keys.
#[cfg(target_arch = "x86_64")]
#[test]
fn prompts_in_tiles_round_values_and_nothing_else() {
    if crate::cpu::isa::cpu_isa() < Isa::Avx512Bf16 {
        return println!("skipped: this CPU cannot pack pairs");
    }
    for case in [(8, 1, 256), (4, 2, 24), (3, 3, 5), (2, 1, 1), (4, 4, 72), (1, 1, 300), (40, 1, 3)] {
        for (start, len) in [(0, 9), (51, 10), (21, 33), (700, 17), (6, 70), (0, 120)] {
            for (visibility, blocks, softcap) in rules() {
                if !possible(start, len, visibility, &blocks) {
                    continue;
                }
                let activations = ActivationPrecision::Int16OrBf16;
                let params = AttendParams { activations, ..params(visibility, 0.1, softcap) };
                let case = Case { blocks, phase: Phase::Prefill, ..Case::new(heads(case), (start, len), params, 1.0) };
                for kept in [Kept::Pages, Kept::F16] {
                    let rounded = case.rounded(kept);
                    let v = rounded.v.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
                    let exact = Case { v, ..rounded }.exact();
                    let context = format!("{kept:?} {:?} {len} after {start} {params:?}", case.heads);
                    for (i, (found, exact)) in case.found_in_tiles(kept).iter().zip(&exact).enumerate() {
                        let error = (f64::from(*found) - exact).abs();
                        assert!(error < 4e-3, "{context} at {i}: {error}");
                    }
                }
            }
        }
    }
}

/// Scores in tiles are nearly those of f32: where one key has all the weight, or two share it, an output is a value in bf16, or
/// moves with the scores' difference.
#[cfg(target_arch = "x86_64")]
#[test]
fn scores_in_tiles_keep_their_digits() {
    if crate::cpu::isa::cpu_isa() < Isa::Avx512Bf16 {
        return println!("skipped: this CPU cannot pack pairs");
    }
    let activations = ActivationPrecision::Int16OrBf16;
    let params = AttendParams { activations, ..params(causal(None), 1.0, None) };
    let mut case = Case { phase: Phase::Prefill, ..Case::new(heads((1, 1, 256)), (0, 64), params, 1.0) };
    // keys that are alike but for a little, and queries that see it: scores near 85, whose differences are near 1
    let key = noise(256, 9);
    let delta = noise(64 * 256, 10);
    for (t, (k, q)) in case.k.chunks_mut(256).zip(case.q.chunks_mut(256)).enumerate() {
        for (i, (k, q)) in k.iter_mut().zip(q).enumerate() {
            *k = key[i] + 0.1 * delta[t * 256 + i];
            *q = key[i];
        }
    }
    // values that bf16 has: what is left are the weights' roundings, of up to a 512th, and the scores'
    case.v.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    let exact = case.exact();
    let worst = |case: &Case| {
        let found = case.found_in_tiles(Kept::Pages);
        let squares: f64 = found.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        (squares / exact.iter().map(|b| b * b).sum::<f64>()).sqrt()
    };
    let error = worst(&case);
    assert!(error < 2e-3, "{error}");
    // keys in bf16 alone are far away
    let rounded = case.k.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
    let without = worst(&Case { k: rounded, ..case.clone() });
    assert!(without > 5.0 * error, "{without} {error}");
}

/// A query in tiles is the same bit for bit whatever chunk it comes in.
#[cfg(target_arch = "x86_64")]
#[test]
fn chunks_change_no_bit_in_tiles() {
    if crate::cpu::isa::cpu_isa() < Isa::Avx512Bf16 {
        return println!("skipped: this CPU cannot pack pairs");
    }
    let activations = ActivationPrecision::Int16OrBf16;
    for (shape, window) in [((4, 2, 24), None), ((2, 1, 72), Some(150)), ((1, 1, 32), Some(33))] {
        let params = AttendParams { activations, ..params(causal(window), 0.2, None) };
        let all = Case { phase: Phase::Prefill, ..Case::new(heads(shape), (0, 420), params, 1.0) };
        let whole = all.found_in_tiles(Kept::Pages);
        let (row, q_row) = (all.heads.kv_heads * all.heads.head_dim, all.heads.heads * all.heads.head_dim);
        for (start, len) in [(0, 7), (7, 64), (71, 200), (271, 149), (419, 1)] {
            let end = start + len;
            let part = |values: &[f32], row: usize| values[..end * row].to_vec();
            let (q, k, v) = (part(&all.q, q_row), part(&all.k, row), part(&all.v, row));
            let found = Case { start, len, q, k, v, ..all.clone() }.found_in_tiles(Kept::Pages);
            assert!(found == whole[start * q_row..end * q_row], "{shape:?} {window:?}: {len} at {start}");
        }
    }
}

/// The tile instructions of the attention of 512 tokens of Gemma 2B, as docs/performance.md has them.
#[cfg(target_arch = "x86_64")]
#[test]
fn tile_instructions_of_attention_are_counted() {
    use crate::cpu::gemm::amx::tests::{Counted, counts};
    if crate::cpu::isa::cpu_isa() < Isa::Avx512Bf16 {
        return println!("skipped: this CPU cannot pack pairs");
    }
    for (dim, keys) in [(256, 96), (72, 256)] {
        let heads = heads((1, 1, dim));
        let activations = ActivationPrecision::Int16OrBf16;
        let params = AttendParams { activations, ..params(Visibility::Bidirectional { radius: None }, 0.1, None) };
        let case = Case { phase: Phase::Prefill, ..Case::new(heads, (0, keys), params, 1.0) };
        case.sequence(Kept::Rows, |sequence| {
            let operands = tiled::Operands::new(&sequence, heads, &params);
            let (sequence, params) = (&sequence, &params);
            let (q, queries) = (case.queries(), (0, 32));
            let block = Block { q, first_out: 0, sequence, paired: None, heads, params, kv_head: 0, queries };
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.begin(dim, 32);
                // SAFETY: the CPU has what packs, and the tiles need nothing.
                unsafe { tiled::attend_tiles::<Counted>(&block, &operands, 0..keys, scratch) };
            });
        });
        let [words, rows] = [dim.div_ceil(2).next_multiple_of(16), dim.next_multiple_of(32)];
        let keys = keys.next_multiple_of(32);
        // four for each step of 16 words, of the scores three times
        let (scores, values) = (3 * keys / 32 * words / 16 * 4, rows / 32 * keys / 32 * 4);
        assert_eq!(counts().dots, scores + values, "{dim}");
    }
}
