//! Whether kernels stay inside their slices: each slice ends where a page begins that may not be touched, and then
//! begins where such a page ends, so that a load or store beside it ends the test run.

use super::*;
use crate::kv::PAGE_LEN;
use crate::ops::linear::Arithmetic;
use crate::{ActivationPrecision, AttendParams, Format, Phase, Visibility};

/// Bytes of a page, on every system that is met.
const PAGE: usize = 1 << 16;

/// Where a slice touches a forbidden page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Begin,
    End,
}

const SIDES: [Side; 2] = [Side::Begin, Side::End];

/// Values between pages that may not be touched.
struct Fenced<T> {
    base: *mut u8,
    bytes: usize,
    values: *mut T,
    len: usize,
}

impl<T: Copy> Fenced<T> {
    fn new(values: &[T], side: Side) -> Self {
        let room = size_of_val(values).next_multiple_of(PAGE);
        let bytes = room + 2 * PAGE;
        // SAFETY: a fresh mapping; both fences are whole pages of it, and the values lie between them, aligned, because
        // a page is a multiple of every value's size.
        unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
            let base = libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0).cast::<u8>();
            assert!(base.cast() != libc::MAP_FAILED, "no memory");
            for fence in [base, base.add(PAGE + room)] {
                assert_eq!(libc::mprotect(fence.cast(), PAGE, libc::PROT_NONE), 0, "no fence");
            }
            let offset = if side == Side::Begin { 0 } else { room - size_of_val(values) };
            let to = base.add(PAGE + offset).cast::<T>();
            to.copy_from_nonoverlapping(values.as_ptr(), values.len());
            Self { base, bytes, values: to, len: values.len() }
        }
    }

    fn get(&self) -> &[T] {
        // SAFETY: the values were written.
        unsafe { std::slice::from_raw_parts(self.values, self.len) }
    }

    fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.values, self.len) }
    }
}

impl<T> Drop for Fenced<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

/// The result is that of slices without fences, which other tests hold to its formula.
fn assert_same(found: &[f32], expected: &[f32], context: &str) {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(same), "{context}");
}

#[test]
fn fences_are_where_they_should_be() {
    for side in SIDES {
        let mut fenced = Fenced::new(&noise(1000, 1), side);
        fenced.get_mut()[999] = 2.0;
        let (first, last) = (fenced.values.addr(), fenced.values.addr() + 4000);
        let touched = if side == Side::Begin { first == fenced.base.addr() + PAGE } else { last.is_multiple_of(4096) };
        assert!(touched && fenced.get()[999] == 2.0, "{side:?}");
    }
}

#[test]
fn products_stay_inside() {
    for format in all_formats() {
        for (rows, cols) in [(1, 32), (13, 96), (40, 256), (7, 512), (5, 67), (3, 1), (33, 34), (14, 2080)] {
            if format.row_bytes(cols).is_none() {
                continue;
            }
            let (weight, _) = encoded(format, rows, cols);
            let weights = SIDES.map(|side| Fenced::new(&weight, side));
            for tokens in [1, 2, 3, 4, 7, 9, 16, 17, 33] {
                let x = noise(tokens * cols, 2);
                for isa in Isa::available() {
                    for activations in
                        [ActivationPrecision::F32, ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8]
                    {
                        let phase = Phase::of_len(tokens);
                        let arithmetic = Arithmetic { activations, phase, batch_invariant: false };
                        let mut expected = vec![f32::NAN; tokens * rows];
                        linear(isa, arithmetic, &x, &weight, format, cols, places(&mut expected));
                        for (side, weight) in SIDES.into_iter().zip(&weights) {
                            let x = Fenced::new(&x, side);
                            let mut out = Fenced::new(&vec![f32::NAN; tokens * rows], side);
                            linear(isa, arithmetic, x.get(), weight.get(), format, cols, places(out.get_mut()));
                            let context = format!("{isa:?} {activations:?} {format} {tokens} {rows} {cols} {side:?}");
                            assert_same(out.get(), &expected, &context);
                        }
                        let y = noise(tokens * rows, 3);
                        let mut expected = vec![f32::NAN; tokens * cols];
                        transposed(isa, activations, &y, &weight, format, cols, places(&mut expected));
                        for (side, weight) in SIDES.into_iter().zip(&weights) {
                            let y = Fenced::new(&y, side);
                            let mut out = Fenced::new(&vec![f32::NAN; tokens * cols], side);
                            transposed(isa, activations, y.get(), weight.get(), format, cols, places(out.get_mut()));
                            assert_same(
                                out.get(),
                                &expected,
                                &format!("{isa:?} {format} {tokens} {side:?} transposed"),
                            );
                        }
                    }
                }
            }
            let mut expected = vec![0.0; 2 * cols];
            rows_of(&weight, rows, format, cols, &mut expected);
            for (side, weight) in SIDES.into_iter().zip(&weights) {
                let mut out = Fenced::new(&vec![f32::NAN; 2 * cols], side);
                rows_of(weight.get(), rows, format, cols, out.get_mut());
                assert_same(out.get(), &expected, &format!("{format} rows {side:?}"));
            }
        }
    }
}

#[test]
fn feed_forward_layers_stay_inside() {
    let shapes = [(9, 64, 66, 10), (3, 32, 34, 1), (40, 96, 288, 33)];
    for (format, (tokens, cols, size, rows)) in
        [Format::F32, Format::Bf16, Format::Q8_0].into_iter().flat_map(|format| shapes.map(|shape| (format, shape)))
    {
        let (first, last) = (format, if format == Format::Q8_0 { Format::Bf16 } else { format });
        let [gate, up] = [0, 1].map(|i| encoded(first, size + i, cols).0.split_off(i * first.row_bytes(cols).unwrap()));
        let (down, _) = encoded(last, rows, size);
        let (x, biases) = (noise(tokens * cols, 6), [noise(size, 7), noise(size, 8)]);
        let precisions = [ActivationPrecision::F32, ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8];
        for (isa, activations) in Isa::available().into_iter().flat_map(|isa| precisions.map(|a| (isa, a))) {
            for (phase, is_gated) in
                [Phase::Decode, Phase::Prefill].into_iter().flat_map(|phase| [(phase, true), (phase, false)])
            {
                let arithmetic = Arithmetic { activations, phase, batch_invariant: false };
                let run = |x: &[f32], [gate, up, down]: [&[u8]; 3], biases: [&[f32]; 2], out: &mut [f32]| {
                    let layer = FeedForward {
                        gate: Matrix { weight: gate, format: first },
                        up: is_gated.then_some(Matrix { weight: up, format: first }),
                        biases: biases.map(Some),
                        down: Matrix { weight: down, format: last },
                    };
                    feed_forward(isa, arithmetic, x, cols, layer, places(out));
                };
                let mut expected = vec![f32::NAN; tokens * rows];
                run(&x, [&gate, &up, &down], biases.each_ref().map(|bias| &bias[..]), &mut expected);
                for side in SIDES {
                    let [gate, up, down] = [&gate, &up, &down].map(|weight| Fenced::new(weight, side));
                    let (x, biases) = (Fenced::new(&x, side), biases.each_ref().map(|bias| Fenced::new(bias, side)));
                    let mut out = Fenced::new(&vec![f32::NAN; tokens * rows], side);
                    let biases = biases.each_ref().map(Fenced::get);
                    run(x.get(), [gate.get(), up.get(), down.get()], biases, out.get_mut());
                    let context = format!("{isa} {activations:?} {format} {tokens} {phase:?} {is_gated} {side:?}");
                    assert_same(out.get(), &expected, &context);
                }
            }
        }
    }
}

/// The last row, then the first.
fn rows_of(weight: &[u8], rows: usize, format: Format, cols: usize, out: &mut [f32]) {
    super::rows(weight, [rows - 1, 0].into_iter(), format, cols, out);
}

#[test]
fn attention_stays_inside() {
    let shapes = [(1, 4, 1, 16), (3, 2, 2, 33), (20, 8, 1, 256), (70, 3, 3, 8), (2, 8, 4, 72)];
    for (len, heads, kv_heads, head_dim) in shapes {
        let heads = Heads { heads, kv_heads, head_dim };
        for (start, window, softcap) in [(0, None, None), (5, None, Some(3.0)), (40, Some(16), None), (300, None, None)]
        {
            for activations in [ActivationPrecision::F32, ActivationPrecision::Int16OrBf16] {
                let visibility = Visibility::Causal { window };
                let params = AttendParams { visibility, scale: 0.2, softcap, activations };
                let first = visibility.first_needed(start) / PAGE_LEN;
                let pages = (start + len).div_ceil(PAGE_LEN) - first;
                let page = |seed: usize| noise(kv_heads * PAGE_LEN * head_dim, seed as u64);
                let (k, v): (Vec<_>, Vec<_>) = (0..pages).map(|i| (page(2 * i + 1), page(2 * i + 2))).unzip();
                let rows = [3, 4].map(|seed| noise(len * kv_heads * head_dim, seed));
                let q = noise(len * heads.heads * head_dim, 1);
                let bytes = |values: &Vec<f32>| -> Vec<[u8; 2]> {
                    values.iter().map(|x| half::f16::from_f32(*x).to_le_bytes()).collect()
                };
                let [half_k, half_v] = [&k, &v].map(|pages| pages.iter().map(bytes).collect::<Vec<_>>());
                let blocks = |values: &Vec<f32>| -> Vec<[u8; 34]> {
                    let mut bytes = vec![[0; 34]; values.len() / 32];
                    Format::Q8_0.encode_row(values, bytes.as_flattened_mut());
                    bytes
                };
                for isa in Isa::available() {
                    let run = |q: &[f32], keys: Keys<'_>, out: &mut [f32]| {
                        let sequence = Sequence { start, len, blocks: &[], phase: Phase::of_len(len), keys };
                        attend(isa, q, &[sequence], heads, &params, places(out));
                    };
                    for (side, kept) in
                        SIDES.into_iter().flat_map(|side| ["rows", "f32", "f16", "q8_0"].map(|kept| (side, kept)))
                    {
                        if kept == "rows" && start > 0 || kept == "q8_0" && head_dim % 32 > 0 {
                            continue;
                        }
                        let (fenced_q, mut out) = (Fenced::new(&q, side), Fenced::new(&vec![f32::NAN; q.len()], side));
                        let mut expected = vec![f32::NAN; q.len()];
                        let fence = |pages: &[Vec<f32>]| pages.iter().map(|p| Fenced::new(p, side)).collect::<Vec<_>>();
                        let fence_f16 =
                            |pages: &[Vec<[u8; 2]>]| pages.iter().map(|p| Fenced::new(p, side)).collect::<Vec<_>>();
                        match kept {
                            "rows" => {
                                run(&q, Keys::Rows(Stored::F32(&rows[0], &rows[1])), &mut expected);
                                let rows = rows.each_ref().map(|rows| Fenced::new(rows, side));
                                let keys = Keys::Rows(Stored::F32(rows[0].get(), rows[1].get()));
                                run(fenced_q.get(), keys, out.get_mut());
                            }
                            "f32" => {
                                let pages = k.iter().zip(&v).map(|(k, v)| Stored::F32(k, v)).collect();
                                run(&q, Keys::Pages { first, pages }, &mut expected);
                                let (k, v) = (fence(&k), fence(&v));
                                let pages = k.iter().zip(&v).map(|(k, v)| Stored::F32(k.get(), v.get())).collect();
                                run(fenced_q.get(), Keys::Pages { first, pages }, out.get_mut());
                            }
                            "q8_0" => {
                                let [k, v] = [&k, &v].map(|pages| pages.iter().map(blocks).collect::<Vec<_>>());
                                let pages = k.iter().zip(&v).map(|(k, v)| Stored::Q8_0(k, v)).collect();
                                run(&q, Keys::Pages { first, pages }, &mut expected);
                                let [k, v] = [&k, &v]
                                    .map(|pages| pages.iter().map(|p| Fenced::new(p, side)).collect::<Vec<_>>());
                                let pages = k.iter().zip(&v).map(|(k, v)| Stored::Q8_0(k.get(), v.get())).collect();
                                run(fenced_q.get(), Keys::Pages { first, pages }, out.get_mut());
                            }
                            _ => {
                                let pages = half_k.iter().zip(&half_v).map(|(k, v)| Stored::F16(k, v)).collect();
                                run(&q, Keys::Pages { first, pages }, &mut expected);
                                let (k, v) = (fence_f16(&half_k), fence_f16(&half_v));
                                let pages = k.iter().zip(&v).map(|(k, v)| Stored::F16(k.get(), v.get())).collect();
                                run(fenced_q.get(), Keys::Pages { first, pages }, out.get_mut());
                            }
                        }
                        let context = format!("{isa:?} {heads:?} {len} after {start} {params:?} {kept} {side:?}");
                        assert_same(out.get(), &expected, &context);
                    }
                }
            }
        }
    }
}

#[test]
fn everything_else_stays_inside() {
    for (isa, side) in Isa::available().into_iter().flat_map(|isa| SIDES.map(|side| (isa, side))) {
        let fenced = |len: usize, seed: u64| Fenced::new(&noise(len, seed), side);
        for (tokens, heads, head_dim) in [(1, 1, 2), (3, 2, 33), (9, 4, 256), (70, 1, 67)] {
            let (context, len) = (format!("{isa:?} {side:?} {tokens} {heads} {head_dim}"), tokens * heads * head_dim);
            let (x, other, mut out) = (fenced(len, 1), fenced(len, 2), fenced(len, 3));
            let mut expected = vec![0.0; len];
            let (plain, plain_other) = (noise(len, 1), noise(len, 2));
            geglu(isa, x.get(), other.get(), places(out.get_mut()));
            geglu(isa, &plain, &plain_other, places(&mut expected));
            assert_same(out.get(), &expected, &context);

            let width = heads * head_dim;
            let weight = fenced(width, 4);
            rms_norm(isa, x.get(), weight.get(), 1e-6, places(out.get_mut()));
            rms_norm(isa, &plain, &noise(width, 4), 1e-6, places(&mut expected));
            assert_same(out.get(), &expected, &context);
            let (mut sums, mut expected_sums) = (fenced(len, 7), vec![0.0; len]);
            for is_normed in [false, true] {
                let norm = |weight| (weight, 1e-6);
                let (operands, branch) = ([x.get(), other.get()], is_normed.then(|| norm(weight.get())));
                let places_of_sums = places(sums.get_mut());
                add_then_norm(isa, operands, branch, norm(weight.get()), places_of_sums, places(out.get_mut()));
                let (operands, plain_weight) = ([&plain[..], &plain_other], noise(width, 4));
                let branch = is_normed.then(|| norm(&plain_weight[..]));
                let places_of_sums = places(&mut expected_sums);
                add_then_norm(isa, operands, branch, norm(&plain_weight), places_of_sums, places(&mut expected));
                assert_same(out.get(), &expected, &context);
                assert_same(sums.get(), &expected_sums, &context);
            }

            let half = head_dim / 2;
            let angles = [fenced(tokens * half, 5), fenced(tokens * half, 6)];
            let plain_angles = [noise(tokens * half, 5), noise(tokens * half, 6)];
            rotate(
                isa,
                x.get(),
                angles.each_ref().map(|a| a.get()),
                [heads, head_dim, half],
                1.0,
                places(out.get_mut()),
            );
            let slices = plain_angles.each_ref().map(|a| a.as_slice());
            rotate(isa, &plain, slices, [heads, head_dim, half], 1.0, places(&mut expected));
            assert_same(out.get(), &expected, &context);

            let above = fenced(len, 14);
            let (mut gate, mut up) = (fenced(len, 1), fenced(len, 2));
            let (mut plain_gate, mut plain_up) = (plain.clone(), plain_other.clone());
            geglu_gradient(isa, above.get(), gate.get_mut(), up.get_mut());
            geglu_gradient(isa, &noise(len, 14), &mut plain_gate, &mut plain_up);
            assert_same(gate.get(), &plain_gate, &context);
            assert_same(up.get(), &plain_up, &context);
            rms_norm_gradient(isa, above.get(), x.get(), weight.get(), 1e-6, places(out.get_mut()));
            rms_norm_gradient(isa, &noise(len, 14), &plain, &noise(width, 4), 1e-6, places(&mut expected));
            assert_same(out.get(), &expected, &context);

            let rank = 3;
            let (m, v) = (fenced(rank * width, 15), fenced(tokens * rank, 16));
            let (plain_m, plain_v) = (noise(rank * width, 15), noise(tokens * rank, 16));
            let found = narrow(isa, x.get(), m.get(), width, 2.0);
            assert_same(&found, &narrow(isa, &plain, &plain_m, width, 2.0), &context);
            let found = outer(isa, v.get(), x.get(), width);
            assert_same(&found, &outer(isa, &plain_v, &plain, width), &context);
            out.get_mut().copy_from_slice(&plain);
            expected.copy_from_slice(&plain);
            widen(isa, v.get(), m.get(), width, out.get_mut());
            widen(isa, &plain_v, &plain_m, width, &mut expected);
            assert_same(out.get(), &expected, &context);
            assert_same(&transpose(isa, m.get(), width), &transpose(isa, &plain_m, width), &context);

            let sizes = Heads { heads, kv_heads: 1, head_dim };
            let keys = [17, 18].map(|seed| noise(tokens * head_dim, seed));
            let fenced_keys = keys.each_ref().map(|keys| Fenced::new(keys, side));
            let sequences = [1, tokens - 1].map(|len| crate::WholeSequence { len, blocks: Vec::new() });
            let params = AttendParams { softcap: Some(2.0), ..AttendParams::default() };
            let rows = [x.get(), fenced_keys[0].get(), fenced_keys[1].get()];
            let found = attend_gradient(isa, above.get(), rows, &sequences, sizes, &params);
            let rows = [&plain[..], &keys[0], &keys[1]];
            let expected_gradients = attend_gradient(isa, &noise(len, 14), rows, &sequences, sizes, &params);
            for (found, expected) in found.iter().zip(&expected_gradients) {
                assert_same(found, expected, &context);
            }

            let bounds = [0, tokens / 2, tokens];
            let initial = fenced(2 * width, 7);
            for backwards in [false, true] {
                let operands = |a, b, initial| Recurrence { a, b, initial, bounds: &bounds, channels: width };
                linear_recurrence(isa, operands(x.get(), other.get(), initial.get()), backwards, out.get_mut());
                linear_recurrence(isa, operands(&plain, &plain_other, &noise(2 * width, 7)), backwards, &mut expected);
                assert_same(out.get(), &expected, &context);
            }

            let begins: Vec<bool> = (0..tokens).map(|token| token % 3 == 1).collect();
            let recurrent_param = noise(width, 12);
            let plain_weights = [8, 9].map(|seed| noise(width * head_dim, seed));
            let plain_biases = [10, 11].map(|seed| noise(width, seed));
            let [weights, biases] =
                [&plain_weights, &plain_biases].map(|both| both.each_ref().map(|values| Fenced::new(values, side)));
            let (fenced_begins, fenced_param) = (Fenced::new(&begins, side), Fenced::new(&recurrent_param, side));
            let gates = Gates {
                x: x.get(),
                input: (weights[0].get(), biases[0].get()),
                recurrent: (weights[1].get(), biases[1].get()),
                recurrent_param: fenced_param.get(),
                begins: fenced_begins.get(),
                blocks: heads,
            };
            let plain_gates = Gates {
                x: &plain,
                input: (&plain_weights[0], &plain_biases[0]),
                recurrent: (&plain_weights[1], &plain_biases[1]),
                recurrent_param: &recurrent_param,
                begins: &begins,
                blocks: heads,
            };
            let (mut a, mut b) = (fenced(len, 0), fenced(len, 0));
            let mut expected_b = vec![f32::NAN; len];
            expected.fill(f32::NAN);
            gated_decay(isa, gates, a.get_mut(), b.get_mut());
            gated_decay(isa, plain_gates, &mut expected, &mut expected_b);
            assert_same(a.get(), &expected, &format!("{context} factors"));
            assert_same(b.get(), &expected_b, &format!("{context} addends"));
        }
    }
}
