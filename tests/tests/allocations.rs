//! What a token takes from the allocator once a generation runs: a few small results per operation, and nothing that
//! stays.

use crate::parity::open;
use allocation_counter::{AllocationInfo, measure};
use gemma::{Backend, Decoder, Network};
use gemma_generate::{GenerateOptions, Generation};
use gemma_tests::goldens;
use recurrentgemma::Griffin;
use std::path::Path;

/// What each step from `from` to `to` allocates on the thread that generates.
fn steps<N: Network>(folder: &Path, backend: Backend, from: usize, to: usize) -> Vec<AllocationInfo> {
    let model: N = open(folder, &backend.device().expect("a compiled backend opens"));
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
        let folder = |name| goldens().join(name);
        // three layers and five, of which a recurrent one has more operations
        for (found, most) in [
            (steps::<Decoder>(&folder("gemma2-f32"), backend, 70, 120), 600),
            (steps::<Griffin>(&folder("recurrentgemma-f32"), backend, 70, 120), 1500),
        ] {
            let first = found[0];
            assert!(first.count_total > 0, "nothing was counted");
            for (step, step_info) in found.iter().enumerate() {
                let context = format!("{backend}, step {step}: {step_info:?}");
                assert_eq!(step_info.count_total, first.count_total, "{context}");
                assert_eq!((step_info.count_current, step_info.bytes_current), (0, 0), "{context}");
                // what lies between operations is freed as soon as it was used
                assert!(step_info.count_total <= most && step_info.bytes_max < 16 << 10, "{context}");
            }
        }
    }
}
