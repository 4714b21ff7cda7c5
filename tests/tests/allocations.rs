//! What a token takes from the allocator once a generation runs: a few small results per operation, and nothing that
//! stays.

use crate::parity::open_with;
use allocation_counter::{AllocationInfo, measure};
use gemma::{Backend, Decoder, LoadOptions, Network, Precision};
use gemma_generate::{GenerateOptions, Generation};
use gemma_tests::goldens;
use recurrentgemma::Griffin;
use std::path::Path;

/// What each step from `from` to `to` allocates on the thread that generates.
fn steps<N: Network>(
    folder: &Path,
    precision: Option<Precision>,
    backend: Backend,
    from: usize,
    to: usize,
) -> Vec<AllocationInfo> {
    let device = backend.device().expect("a compiled backend opens");
    let model: N = open_with(folder, &LoadOptions { precision, ..LoadOptions::default() }, &device);
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(to) };
    let mut generation = Generation::new(&model, &[2, 5, 7], &options, &[]).expect("a valid prompt");
    let mut step = || {
        measure(|| {
            generation.next().expect("a token").expect("finite logits");
        })
    };
    (0..to).map(|_| step()).skip(from).collect()
}

#[test]
fn a_token_allocates_few_small_things_and_keeps_nothing() {
    for backend in [Backend::NdArray, Backend::Flex].into_iter().filter(|backend| backend.is_compiled()) {
        for precision in [None, Some(Precision::Bf16), Some(Precision::Q8_0), Some(Precision::Q4_0)] {
            let folder = |name| goldens().join(name);
            // three layers and five, of which a recurrent one has more operations
            for (found, most) in [
                (steps::<Decoder>(&folder("gemma2-f32"), precision, backend, 70, 120), 600),
                (steps::<Griffin>(&folder("recurrentgemma-f32"), precision, backend, 70, 120), 1500),
            ] {
                let mut counts: Vec<u64> = found.iter().map(|step| step.count_total).collect();
                counts.sort_unstable();
                let usual = counts[counts.len() / 2];
                let context = format!("{backend}, {precision:?}: {found:?}");
                assert!(usual > 0 && usual <= most, "{context}");
                // while other programs want the CPUs, the queue of rayon's pool takes a block now and then
                let unusual = found.iter().filter(|step| step.count_total != usual || step.count_current != 0).count();
                assert!(unusual <= found.len() / 5, "{context}");
                let kept: i64 = found.iter().map(|step| step.bytes_current).sum();
                assert!(kept.abs() < 8 << 10, "{context}");
                // what lies between operations is freed as soon as it was used; a new page of a KV cache stays
                let between = |step: &AllocationInfo| step.bytes_max as i64 - step.bytes_current.max(0);
                assert!(found.iter().all(|step| between(step) < 16 << 10), "{context}");
            }
        }
    }
}
