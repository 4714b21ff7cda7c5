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
