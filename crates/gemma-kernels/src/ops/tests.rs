//! Every operation on every backend, against its reference implementation.

use super::attention::{AttendSegment, CacheRows, append, attend, reference_attend};
use super::linear::{PackedLinear, packed_linear, packed_linear_in, packed_linears, packed_rows};
use crate::cpu::noise;
use crate::kv::nearest_f16;
use crate::{
    ActivationPrecision, AttendParams, CachePrecision, Format, KvPages, KvPool, PAGE_LEN, PackedWeight, Phase,
    Visibility, add_bias,
};
use burn::tensor::{Device, Tensor, TensorData};
use gemma_backend::Backend;

pub(crate) fn devices() -> Vec<(Backend, Device)> {
    Backend::compiled()
        .into_iter()
        .map(|backend| (backend, backend.device().expect("a compiled backend opens")))
        .collect()
}

pub(crate) fn tensor<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(noise(shape.iter().product(), seed), shape), device)
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "{context}: value {i} is {a}, expected {b}");
    }
}

#[test]
fn packed_products_and_rows_equal_dense_ones() {
    for (backend, device) in devices() {
        for format in Format::ALL {
            for (rows, cols) in [(1, 32), (7, 96), (300, 64), (65, 160), (9, 5), (3, 1), (40, 33), (5, 512)] {
                let Some(row_bytes) = format.row_bytes(cols) else { continue };
                let dense = noise(rows * cols, 3);
                let mut decoded = vec![0.0; rows * cols];
                let mut bytes = vec![0; row_bytes];
                for (from, to) in dense.chunks(cols).zip(decoded.chunks_mut(cols)) {
                    format.encode_row(from, &mut bytes);
                    format.decode_row(&bytes, to);
                }
                let weight = PackedWeight::encode(&dense, format, rows, cols, &device).unwrap();
                let dense_weight = Tensor::<2>::from_data(TensorData::new(decoded.clone(), [rows, cols]), &device);
                for tokens in [1, 2, 5, 17, 70] {
                    let x = tensor([tokens, cols], 4, &device);
                    let context = format!("{backend} {format} {tokens} x {cols} x {rows}");
                    let expected = values(x.clone().matmul(dense_weight.clone().transpose()));
                    // a prompt's operands are bf16 where the CPU has instructions for that
                    let fine = if tokens > 8 { 0.2 } else { 5e-4 };
                    for (activations, tolerance) in
                        [(ActivationPrecision::F32, 1e-4), (ActivationPrecision::Int16OrBf16, fine)]
                    {
                        let weight = weight.clone().with_activations(activations);
                        assert_close(&values(packed_linear(x.clone(), &weight)), &expected, tolerance, &context);
                    }
                }
                let ids: Vec<u32> = (0..rows as u32).rev().chain([0, 0]).collect();
                let expected: Vec<f32> =
                    ids.iter().flat_map(|id| decoded[*id as usize * cols..][..cols].to_vec()).collect();
                assert_close(&values(packed_rows(&weight, &ids)), &expected, 1e-6, &format!("{backend} {format} rows"));
            }
        }
    }
}

/// Matrices that are alike and that are not, tokens in one phase and in two.
#[test]
fn products_with_several_matrices_are_those_with_each() {
    for (backend, device) in devices() {
        let matrix = |format, rows, seed| {
            PackedWeight::encode(&noise(rows * 256, seed), format, rows, 256, &device).expect("whole blocks")
        };
        for format in [Format::F32, Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4K] {
            let (a, b, c) = (matrix(format, 40, 1), matrix(format, 7, 2), matrix(Format::Q8_0, 9, 3));
            let exact = c.clone().with_activations(ActivationPrecision::F32);
            let other = c.clone().with_batch_invariance(!c.is_batch_invariant());
            for phases in [
                &[(1, Phase::Decode)][..],
                &[(3, Phase::Decode)],
                &[(40, Phase::Prefill)],
                &[(2, Phase::Prefill), (20, Phase::Prefill)],
                &[(1, Phase::Decode), (20, Phase::Prefill)],
            ] {
                let x = tensor([phases.iter().map(|(rows, _)| rows).sum(), 256], 4, &device);
                for last in [&c, &exact, &other] {
                    let alone = [&a, &b, last].map(|weight| values(packed_linear_in(x.clone(), weight, phases)));
                    let found = packed_linears(x.clone(), [&a, &b, last], phases).map(values);
                    assert!(found == alone, "{backend} {format} {phases:?}");
                }
                let linears = || {
                    let bias = |rows, seed| Some(tensor([rows], seed, &device));
                    let [first, second] = [(&a, bias(40, 5)), (&c, bias(9, 6))];
                    [first, (&b, None), second].map(|(weight, bias)| PackedLinear { weight, bias })
                };
                let alone = linears().map(|linear| values(packed_linear_in(x.clone(), linear, phases)));
                assert!(
                    packed_linears(x.clone(), linears(), phases).map(values) == alone,
                    "{backend} {format} {phases:?}"
                );
                for (found, PackedLinear { weight, bias }) in alone.iter().zip(linears()) {
                    let product = packed_linear_in(x.clone(), weight, phases);
                    let expected = bias.map_or(product.clone(), |bias| add_bias(product, bias));
                    assert!(*found == values(expected), "{backend} {format} {phases:?}: a bias");
                }
                let [first, second] = packed_linears(x.clone(), [&b, &a], phases).map(values);
                let [expected, other] = [&b, &a].map(|weight| values(packed_linear_in(x.clone(), weight, phases)));
                assert!(first == expected && second == other, "{backend} {format} {phases:?}");
            }
        }
    }
}

#[test]
fn a_view_that_is_not_contiguous_is_read_in_its_own_order() {
    for (backend, device) in devices() {
        let x = tensor([32, 6], 5, &device);
        let weight = PackedWeight::encode(&noise(32 * 4, 6), Format::F32, 4, 32, &device).unwrap();
        let expected = values(packed_linear(Tensor::from_data(x.clone().transpose().into_data(), &device), &weight));
        assert_close(&values(packed_linear(x.transpose(), &weight)), &expected, 1e-6, &backend.to_string());
    }
}

/// Everything that a cache may go through before a segment: chunks, windows that let pages go, f16, and decoding after so many
/// tokens that a GPU cuts what a query sees into pieces.
#[test]
fn attention_equals_its_reference_implementation() {
    for (backend, device) in devices() {
        for (heads, kv_heads, head_dim) in [(4, 1, 16), (4, 2, 8), (3, 3, 5), (8, 1, 64), (2, 1, 1)] {
            for (start, tokens) in [(0, 1), (0, 9), (5, 1), (5, 4), (20, 3), (150, 2), (6, 70), (1500, 1), (1023, 3)] {
                for (visibility, blocks, softcap) in [
                    (Visibility::CAUSAL, vec![], None),
                    (Visibility::Causal { window: Some(6) }, vec![], Some(2.0)),
                    (Visibility::Causal { window: Some(1) }, vec![], None),
                    (Visibility::CAUSAL, vec![0..5, 6..9], None),
                    (Visibility::Causal { window: Some(6) }, vec![0..4], Some(1.0)),
                    (Visibility::ALL, vec![], None),
                    (Visibility::Bidirectional { radius: Some(3) }, vec![], None),
                ] {
                    let encoder = matches!(visibility, Visibility::Bidirectional { .. });
                    let cut = blocks.iter().any(|block| {
                        let begins = (start..start + tokens).contains(&block.start);
                        begins && block.end > start + tokens || block.start < start && block.end > start
                    });
                    if cut || encoder && start > 0 {
                        continue;
                    }
                    let activations = ActivationPrecision::F32;
                    let params = AttendParams { visibility, scale: 0.4, softcap, activations };
                    let q = tensor([tokens, heads, head_dim], 7, &device);
                    let [all_k, all_v] = [8, 9].map(|seed| tensor([start + tokens, kv_heads, head_dim], seed, &device));
                    let rows = |all: &Tensor<3>, from: usize, len: usize| all.clone().narrow(0, from, len);
                    let positions: Vec<usize> = (0..start + tokens).collect();
                    let exact = |k: &Tensor<3>, v: &Tensor<3>| {
                        let (q, k, v) = (q.clone(), k.clone(), v.clone());
                        values(reference_attend(q, k, v, start, &positions, &blocks, &params))
                    };
                    let context = format!(
                        "{backend} {heads}/{kv_heads} heads of {head_dim}, {tokens} after {start}, {blocks:?}, {params:?}"
                    );
                    let found = |cache: Option<&KvPages>| {
                        let segment =
                            AttendSegment { start, len: tokens, blocks: &blocks, phase: Phase::of_len(tokens), cache };
                        let [k, v] = [&all_k, &all_v].map(|all| rows(all, start, tokens));
                        values(attend(q.clone(), k, v, &[segment], &params))
                    };
                    if start == 0 {
                        assert_close(&found(None), &exact(&all_k, &all_v), 2e-5, &format!("{context} in rows"));
                    }
                    for precision in CachePrecision::ALL {
                        if precision.for_heads(head_dim) != precision {
                            continue;
                        }
                        let mut cache = KvPages::new(precision, None);
                        let chunk = if start > 1000 { 400 } else { 17 };
                        for from in (0..start + tokens).step_by(chunk) {
                            let len = chunk.min(start + tokens - from);
                            let rows = [&all_k, &all_v].map(|all| rows(all, from, len));
                            let [k, v] = rows;
                            append(k, v, &mut [CacheRows { cache: &mut cache, rows: 0..len }]);
                        }
                        let [k, v] = cache.values().expect("keys and values");
                        cache.drop_before(visibility.first_needed(start));
                        let context = format!("{context} in {precision:?} pages");
                        assert_close(&found(Some(&cache)), &exact(&k, &v), 2e-5, &context);
                    }
                }
            }
        }
    }
}

/// The first key scores ±1e6 before the cap, the second nothing.
#[test]
fn large_scores_do_not_overflow() {
    for (backend, device) in devices() {
        let params = AttendParams { softcap: Some(50.0), ..AttendParams::default() };
        for sign in [1.0f32, -1.0] {
            let rows = |values: [f32; 2]| Tensor::<3>::from_data(TensorData::new(values.to_vec(), [2, 1, 1]), &device);
            let (q, k, v) = (rows([1e3; 2]), rows([sign * 1e3, 0.0]), rows([1.0, 2.0]));
            let segment = AttendSegment { start: 0, len: 2, blocks: &[], phase: Phase::Decode, cache: None };
            let found = values(attend(q, k, v, &[segment], &params));
            // exp(-50) is lost beside 1
            assert_eq!(found, [1.0, if sign > 0.0 { 1.0 } else { 2.0 }], "{backend}");
        }
    }
}

/// Segments with caches of their own in one call, some in a pool that they share, give what each gives alone.
#[test]
fn segments_of_a_call_do_not_see_each_other() {
    for (backend, device) in devices() {
        let (heads, kv_heads, head_dim) = (4, 2, 8);
        let params = AttendParams { scale: 0.4, ..AttendParams::default() };
        let lens = [(40, 1), (0, 9), (70, 3), (33, 1), (1300, 2)];
        let tokens = lens.iter().map(|(_, len)| len).sum();
        let pool = KvPool::new();
        let q = tensor([tokens, heads, head_dim], 1, &device);
        let [k, v] = [2, 3].map(|seed| tensor([tokens, kv_heads, head_dim], seed, &device));
        let mut caches: Vec<KvPages> = lens
            .iter()
            .enumerate()
            .map(|(i, (start, _))| {
                let mut cache = KvPages::new(CachePrecision::F32, (i != 2).then(|| pool.clone()));
                let [k, v] = [4, 5].map(|seed| tensor([*start, kv_heads, head_dim], seed + 10 * i as u64, &device));
                if *start > 0 {
                    append(k, v, &mut [CacheRows { cache: &mut cache, rows: 0..*start }]);
                }
                cache
            })
            .collect();
        let mut first = 0;
        let mut rows: Vec<CacheRows<'_>> = caches
            .iter_mut()
            .zip(lens)
            .map(|(cache, (_, len))| {
                first += len;
                CacheRows { cache, rows: first - len..first }
            })
            .collect();
        append(k.clone(), v.clone(), &mut rows);
        let segments: Vec<AttendSegment<'_>> = caches
            .iter()
            .zip(lens)
            .map(|(cache, (start, len))| AttendSegment {
                start,
                len,
                blocks: &[],
                phase: Phase::of_len(len),
                cache: Some(cache),
            })
            .collect();
        let together = values(attend(q.clone(), k.clone(), v.clone(), &segments, &params));
        let mut first = 0;
        for segment in segments {
            let part = |x: &Tensor<3>| x.clone().narrow(0, first, segment.len);
            let alone = values(attend(part(&q), part(&k), part(&v), &[segment], &params));
            let row = heads * head_dim;
            assert_eq!(alone, together[first * row..][..alone.len()], "{backend}: {segment:?}");
            first += segment.len;
        }
    }
}

#[test]
fn a_clone_shares_its_pages_until_one_of_both_is_extended() {
    for (backend, device) in devices() {
        for precision in CachePrecision::ALL {
            let rows = |len: usize, seed| tensor::<3>([len, 2, 32], seed, &device);
            let extend = |cache: &mut KvPages, len: usize, seed| {
                append(rows(len, seed), rows(len, seed + 1), &mut [CacheRows { cache, rows: 0..len }]);
            };
            let mut cache = KvPages::new(precision, None);
            extend(&mut cache, 2 * PAGE_LEN + 5, 1);
            let before = cache.values().map(|pair| pair.map(values));
            let mut fork = cache.clone();
            let ids = |cache: &KvPages| cache.pages().map(|(id, _)| id).collect::<Vec<_>>();
            assert_eq!(ids(&cache), ids(&fork), "{backend}");
            extend(&mut fork, 3, 5);
            assert_eq!(ids(&cache)[..2], ids(&fork)[..2], "{backend}: whole pages stay shared");
            assert_ne!(ids(&cache)[2], ids(&fork)[2], "{backend}: the last one is copied");
            assert_eq!(cache.values().map(|pair| pair.map(values)), before, "{backend}");
            // the one that is alone with its page writes it in place
            let kept = ids(&fork);
            extend(&mut fork, 1, 7);
            assert_eq!(ids(&fork), kept, "{backend}");
            fork.truncate(2 * PAGE_LEN + 5);
            assert_eq!(fork.values().map(|pair| pair.map(values)), before, "{backend}");
            fork.drop_before(PAGE_LEN + 1);
            assert_eq!((fork.first(), fork.pages().count()), (PAGE_LEN, 2), "{backend}");
            // on a GPU a scale of q8_0 has a word of its own
            let scale = if crate::packed::stores_words(&device) { 4 } else { 2 };
            let head = match precision {
                CachePrecision::F32 => 4 * 32,
                CachePrecision::F16 => 2 * 32,
                CachePrecision::Q8_0 => 32 + scale,
            };
            assert_eq!(fork.bytes_len(), 2 * 2 * PAGE_LEN * 2 * head, "{backend} {precision:?}");
        }
    }
}

#[test]
fn f16_is_the_nearest_on_every_backend() {
    let mut numbers: Vec<f32> = (0..2000).map(|i| (i as f32 - 1000.0) * 0.01 * 1.37f32.powi(i % 40 - 30)).collect();
    // ties, subnormal halves, what is too large
    numbers.extend([1.000_488_3, 1.001_464_8, 2.98e-8, 2.99e-8, 8.94e-8, 6.1e-5, 65519.0, 65520.0, 1e9, -1e30]);
    numbers.extend([f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE, -1e-40]);
    let expected: Vec<f32> = numbers.iter().map(|value| nearest_f16(*value).to_f32()).collect();
    for (backend, device) in devices() {
        let len = numbers.len() / 12;
        let rows = Tensor::<3>::from_data(TensorData::new(numbers.clone(), [len, 2, 6]), &device);
        let mut cache = KvPages::new(CachePrecision::F16, None);
        append(rows.clone(), rows, &mut [CacheRows { cache: &mut cache, rows: 0..len }]);
        for found in cache.values().expect("keys and values").map(values) {
            for ((value, found), expected) in numbers.iter().zip(&found).zip(&expected) {
                assert_eq!(found, expected, "{backend}: {value}");
            }
        }
    }
    assert!(nearest_f16(f32::NAN).is_nan());
    assert_eq!(nearest_f16(1e9).to_f32(), 65504.0);
}

#[test]
fn names_of_precisions_are_read() {
    for precision in CachePrecision::ALL {
        assert_eq!(precision.name().parse::<CachePrecision>().unwrap(), precision);
    }
    assert!("f64".parse::<CachePrecision>().unwrap_err().to_string().contains("f32, f16 or q8_0"));
}

#[test]
fn heads_that_do_not_fit_a_precision_get_the_next_larger_one() {
    for (head_dim, expected) in [(256, CachePrecision::Q8_0), (24, CachePrecision::F16), (33, CachePrecision::F32)] {
        assert_eq!(CachePrecision::Q8_0.for_heads(head_dim), expected);
    }
    assert_eq!(CachePrecision::F16.for_heads(256), CachePrecision::F16);
    assert_eq!(CachePrecision::Q8_0.head_bytes(256), Some(256 / 32 * 34));
}

/// What is kept as q8_0 is what the format of that name makes of it, on every backend.
#[test]
fn q8_0_is_the_formats_on_every_backend() {
    let mut numbers: Vec<f32> =
        (0..64 * 32).map(|i| (i % 61) as f32 * 0.37 * 1.4f32.powi(i / 32 % 50 - 30) - 3.0).collect();
    numbers[..32].fill(0.0);
    let mut bytes = vec![0; Format::Q8_0.row_bytes(numbers.len()).unwrap()];
    let mut expected = vec![0.0; numbers.len()];
    Format::Q8_0.encode_row(&numbers, &mut bytes);
    Format::Q8_0.decode_row(&bytes, &mut expected);
    for (backend, device) in devices() {
        let rows = Tensor::<3>::from_data(TensorData::new(numbers.clone(), [32, 1, 64]), &device);
        let mut cache = KvPages::new(CachePrecision::Q8_0, None);
        append(rows.clone(), rows, &mut [CacheRows { cache: &mut cache, rows: 0..32 }]);
        for found in cache.values().expect("keys and values").map(values) {
            let on_cpu = !crate::packed::stores_words(&device);
            for (block, (found, expected)) in found.chunks(32).zip(expected.chunks(32)).enumerate() {
                let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    // a GPU may divide less exactly: a value on the edge of two steps, or a scale between two f16 values
                    let allowed = if on_cpu { 0.0 } else { largest * (1.0 / 127.0 + 1.0 / 1024.0) };
                    assert!((found - expected).abs() <= allowed, "{backend}, block {block}: {found}, not {expected}");
                }
            }
        }
    }
}

/// Of rows in both phases each gets the arithmetic of its own, bit for bit when that was asked for.
#[test]
fn company_changes_no_product() {
    for (backend, device) in devices() {
        for format in [Format::F32, Format::Bf16, Format::F16, Format::Q8_0, Format::Q4_0, Format::Q4K] {
            let (rows, cols) = (40, 512);
            let weight = PackedWeight::encode(&noise(rows * cols, 3), format, rows, cols, &device).unwrap();
            let weight = weight.with_batch_invariance(true);
            let x = tensor::<2>([50, cols], 4, &device);
            let phases = [
                (1, Phase::Decode),
                (19, Phase::Decode),
                (20, Phase::Prefill),
                (1, Phase::Decode),
                (9, Phase::Prefill),
            ];
            let together = values(packed_linear_in(x.clone(), &weight, &phases));
            let mut first = 0;
            for (count, phase) in phases {
                for row in first..first + count {
                    let alone = values(packed_linear_in(x.clone().narrow(0, row, 1), &weight, &[(1, phase)]));
                    assert!(alone == together[row * rows..][..rows], "{backend} {format} {phase:?} row {row}");
                }
                first += count;
            }
        }
    }
}

#[test]
fn a_frozen_product_passes_gradients_to_its_input() {
    for (backend, device) in devices() {
        let weight = PackedWeight::encode(&noise(3 * 32, 1), Format::Q8_0, 3, 32, &device).unwrap();
        let weight = weight.with_activations(ActivationPrecision::F32);
        let x = tensor([2, 32], 2, &device.clone().autodiff()).require_grad();
        let gradients = packed_linear(x.clone(), &weight).sum().backward();
        let found = values(x.grad(&gradients).expect("a gradient"));
        let dense = values(weight.dequantize());
        let expected: Vec<f32> = (0..64).map(|i| (0..3).map(|row| dense[row * 32 + i % 32]).sum()).collect();
        assert_close(&found, &expected, 1e-5, &backend.to_string());
    }
}
