//! The sampler against a plain one that sorts everything and computes in f64.

use super::*;

fn sampler(options: GenerateOptions) -> Sampler {
    Sampler::new(&GenerateOptions { seed: Some(options.seed.unwrap_or(1)), ..options }).unwrap()
}

/// Every token may be drawn, at temperature 1.
fn open() -> GenerateOptions {
    GenerateOptions { top_k: None, top_p: None, ..GenerateOptions::default() }
}

/// Logits whose softmax is `probabilities`.
fn logs(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

/// Reproducible logits, spread like a model's.
fn made_up(len: usize, seed: u64) -> Vec<f32> {
    let mut generator = Xoshiro256PlusPlus::new(seed);
    let mut sixth = || generator.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5;
    (0..len).map(|_| 6.0 * (sixth() + sixth() + sixth() + sixth())).collect()
}

/// The tokens drawn in `draws` picks, and how often.
fn counts(sampler: &mut Sampler, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits).unwrap().token as usize] += 1;
    }
    counts
}

fn drawn(counts: &[usize]) -> Vec<usize> {
    (0..counts.len()).filter(|&token| counts[token] > 0).collect()
}

/// Probabilities after all cuts by the textbook: sort, cut, renormalise.
fn expected(logits: &[f32], options: &GenerateOptions) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|&x| f64::from(x) / f64::from(options.temperature)).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    order.truncate(options.top_k.unwrap_or(usize::MAX));
    let best = scaled[order[0]];
    let sum: f64 = order.iter().map(|&token| (scaled[token] - best).exp()).sum();
    if let Some(top_p) = options.top_p {
        let mut before = 0.0;
        order.retain(|&token| {
            let keep = before < f64::from(top_p);
            before += (scaled[token] - best).exp() / sum;
            keep
        });
    }
    if let Some(min_p) = options.min_p {
        order.retain(|&token| (scaled[token] - best).exp() >= f64::from(min_p));
    }
    let sum: f64 = order.iter().map(|&token| (scaled[token] - best).exp()).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for token in order {
        probabilities[token] = (scaled[token] - best).exp() / sum;
    }
    probabilities
}

#[test]
fn greedy_takes_the_highest_and_of_equals_the_lowest_token() {
    let mut greedy = sampler(GenerateOptions::greedy(1));
    assert_eq!(greedy.sample(&[0.5, 2.0, -1.0, 2.0]).unwrap().token, 1);
    assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -3.0, -3.0]).unwrap().token, 1);
    let long = made_up(5000, 1);
    let best = (0..5000).max_by(|&a, &b| long[a].partial_cmp(&long[b]).unwrap()).unwrap();
    assert_eq!(greedy.sample(&long).unwrap().token as usize, best);
}

#[test]
fn frequencies_match_the_textbook_for_every_combination_of_cuts() {
    let logits = made_up(600, 5);
    let draws = 20_000;
    for (index, (temperature, top_k, top_p, min_p)) in [
        (1.0, None, None, None),
        (0.5, None, None, None),
        (2.0, None, None, None),
        (1.0, Some(5), None, None),
        (1.0, Some(300), Some(0.9), None),
        (1.5, None, Some(0.8), None),
        (1.0, None, None, Some(0.2)),
        (1.3, Some(200), Some(0.7), Some(0.1)),
        (0.7, Some(10_000), Some(0.999), Some(0.0)),
    ]
    .into_iter()
    .enumerate()
    {
        let options = GenerateOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            seed: Some(index as u64),
            ..GenerateOptions::default()
        };
        let expected = expected(&logits, &options);
        let counts = counts(&mut sampler(options.clone()), &logits, draws);
        for (token, (&count, &probability)) in counts.iter().zip(&expected).enumerate() {
            let mean = probability * draws as f64;
            // 5.5 standard deviations, and a little for the rarest.
            let bound = if probability == 0.0 { 0.0 } else { 5.5 * mean.sqrt() + 6.0 };
            assert!(
                (count as f64 - mean).abs() <= bound,
                "{options:?}: token {token} came {count} times, {mean:.1} expected"
            );
        }
    }
}

#[test]
fn top_k_keeps_exactly_k_and_of_equals_the_lowest_tokens() {
    let logits = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0];
    let mut three = sampler(GenerateOptions { top_k: Some(3), ..open() });
    assert_eq!(drawn(&counts(&mut three, &logits, 500)), [0, 1, 3]);
    // More equals than the gathering buffer holds.
    let flat = vec![0.25; 3000];
    assert_eq!(drawn(&counts(&mut three, &flat, 500)), [0, 1, 2]);
    let mut one = sampler(GenerateOptions { top_k: Some(1), ..open() });
    assert_eq!(drawn(&counts(&mut one, &flat, 20)), [0]);
}

#[test]
fn top_k_finds_the_best_wherever_they_stand() {
    // Rising, falling, and best at both ends: each moves the bar differently.
    let rising: Vec<f32> = (0..5000).map(|token| token as f32 * 1e-4).collect();
    let falling: Vec<f32> = rising.iter().rev().copied().collect();
    let mut ends = vec![0.0; 5000];
    (ends[0], ends[4999]) = (1.0, 1.1);
    let mut two = sampler(GenerateOptions { top_k: Some(2), ..open() });
    assert_eq!(drawn(&counts(&mut two, &rising, 100)), [4998, 4999]);
    assert_eq!(drawn(&counts(&mut two, &falling, 100)), [0, 1]);
    assert_eq!(drawn(&counts(&mut two, &ends, 100)), [0, 4999]);
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_p_and_at_least_one() {
    let logits = logs(&[0.1, 0.5, 0.1, 0.3]);
    let kept = |top_p: f32| {
        let mut sampler = sampler(GenerateOptions { top_p: Some(top_p), ..open() });
        drawn(&counts(&mut sampler, &logits, 1000))
    };
    assert_eq!(kept(0.001), [1]);
    assert_eq!(kept(0.49), [1]);
    assert_eq!(kept(0.51), [1, 3]);
    assert_eq!(kept(0.79), [1, 3]);
    // The third is one of two equals: the lower number.
    assert_eq!(kept(0.85), [0, 1, 3]);
    assert_eq!(kept(0.95), [0, 1, 2, 3]);
    assert_eq!(kept(1.0), [0, 1, 2, 3]);
}

#[test]
fn top_p_counts_only_what_top_k_left() {
    // Among the first two, the likeliest holds 0.4 / 0.7 = 0.57 of the mass.
    let logits = logs(&[0.4, 0.3, 0.2, 0.1]);
    let mut both = sampler(GenerateOptions { top_k: Some(2), top_p: Some(0.55), ..open() });
    assert_eq!(drawn(&counts(&mut both, &logits, 300)), [0]);
    let mut alone = sampler(GenerateOptions { top_p: Some(0.55), ..open() });
    assert_eq!(drawn(&counts(&mut alone, &logits, 300)), [0, 1]);
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let logits = logs(&[0.5, 0.26, 0.14, 0.1]);
    let kept = |min_p: f32| {
        let mut sampler = sampler(GenerateOptions { min_p: Some(min_p), ..open() });
        drawn(&counts(&mut sampler, &logits, 1000))
    };
    assert_eq!(kept(0.0), [0, 1, 2, 3]);
    assert_eq!(kept(0.25), [0, 1, 2]);
    assert_eq!(kept(0.5), [0, 1]);
    assert_eq!(kept(0.6), [0]);
    assert_eq!(kept(1.0), [0]);
}

#[test]
fn the_repetition_penalty_divides_positive_and_multiplies_negative_logits() {
    let options = GenerateOptions { repetition_penalty: 2.0, ..GenerateOptions::greedy(1) };
    let mut sampler = sampler(options);
    // 3/2 < 2: the observed token loses; then 2/2 < 3/2 ...
    sampler.observe_prompt(&[0]);
    assert_eq!(sampler.sample(&[3.0, 2.0]).unwrap().token, 1);
    assert_eq!(sampler.sample(&[3.0, 2.0]).unwrap().token, 0);
    // -1·2 < -1.5·1: a negative logit moves down, not towards 0.
    assert_eq!(sampler.sample(&[-1.0, -1.0, -1.5]).unwrap().token, 2);
    // Several observations of a token count once; unknown numbers are harmless.
    sampler.observe_prompt(&[0, 0, 0, 99]);
    assert_eq!(sampler.sample(&[4.0, 3.9, 0.0]).unwrap().token, 0);
}

#[test]
fn a_repetition_penalty_of_one_observes_nothing() {
    let mut sampler = sampler(GenerateOptions::greedy(1));
    sampler.observe_prompt(&[0, 1]);
    assert!(sampler.observed.is_empty());
    assert_eq!(sampler.sample(&[3.0, 2.0]).unwrap().token, 0);
}

#[test]
fn a_tiny_repetition_penalty_overflows_into_the_largest_number() {
    let options = GenerateOptions { repetition_penalty: 1e-38, ..open() };
    let mut sampler = sampler(options);
    sampler.observe_prompt(&[1, 2]);
    // Two infinite logits would leave no probability to draw by; two equally large ones are even.
    let counts = counts(&mut sampler, &[50.0, 40.0, 30.0], 100);
    assert_eq!(drawn(&counts), [1, 2]);
}

#[test]
fn the_logprobability_is_that_of_the_model_whatever_the_options() {
    let logits = logs(&[0.1, 0.6, 0.3]);
    let options =
        GenerateOptions { temperature: 0.3, top_k: Some(1), repetition_penalty: 1.1, ..GenerateOptions::default() };
    let pick = sampler(options).sample(&logits).unwrap();
    assert_eq!(pick.token, 1);
    assert!((pick.logprob - 0.6_f64.ln()).abs() < 1e-6, "{}", pick.logprob);
}

#[test]
fn extreme_temperatures_are_the_likeliest_and_the_even_draw() {
    let logits = [1.0, 1.5, f32::NEG_INFINITY, 0.0];
    let mut cold = sampler(GenerateOptions { temperature: f32::MIN_POSITIVE, ..open() });
    assert_eq!(drawn(&counts(&mut cold, &logits, 50)), [1]);
    let mut hot = sampler(GenerateOptions { temperature: f32::MAX, ..open() });
    let counts = counts(&mut hot, &logits, 3000);
    assert_eq!(drawn(&counts), [0, 1, 3]);
    assert!([0, 1, 3].iter().all(|&token| counts[token].abs_diff(1000) < 150), "{counts:?}");
}

#[test]
fn an_excluded_token_is_never_drawn_and_never_needed() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    for options in [open(), GenerateOptions::default(), GenerateOptions { temperature: 9.0, ..open() }] {
        assert_eq!(drawn(&counts(&mut sampler(options), &logits, 50)), [1]);
    }
}

#[test]
fn logits_without_probabilities_are_errors() {
    for options in [open(), GenerateOptions::greedy(1), GenerateOptions::default()] {
        let mut sampler = sampler(options);
        let nan = sampler.sample(&[0.0, f32::NAN]);
        assert!(matches!(nan, Err(Error::NotFinite { token: 1, .. })), "{nan:?}");
        assert!(sampler.sample(&[f32::INFINITY, 0.0]).is_err());
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 2]), Err(Error::NoToken { vocab: 2 }));
        assert_eq!(sampler.sample(&[]), Err(Error::NoToken { vocab: 0 }));
        assert!(sampler.sample(&[0.0]).is_ok(), "an error must not break the sampler");
    }
}

/// Written down once: the same on every platform and in every version, or a seed has lost its meaning.
#[test]
fn a_seed_is_a_promise() {
    let logits = made_up(256_000, 11);
    let mut default = sampler(GenerateOptions { seed: Some(42), ..GenerateOptions::default() });
    let mut open = sampler(GenerateOptions { seed: Some(42), temperature: 1.2, ..open() });
    let picks =
        |sampler: &mut Sampler| -> Vec<TokenId> { (0..8).map(|_| sampler.sample(&logits).unwrap().token).collect() };
    assert_eq!(picks(&mut default), DEFAULT_PICKS);
    assert_eq!(picks(&mut open), OPEN_PICKS);
}

// Found by a program in another language, from the published algorithms and with sorting and f64.
const DEFAULT_PICKS: [TokenId; 8] = [163_175, 168_968, 125_177, 173_120, 113_784, 178_715, 204_892, 202_150];
const OPEN_PICKS: [TokenId; 8] = [187_503, 154_214, 231_229, 239_740, 184_223, 242_095, 126_156, 186_180];

#[test]
fn a_seed_is_reported_and_repeats() {
    let logits = made_up(1000, 2);
    let mut first = Sampler::new(&open()).unwrap();
    let again = GenerateOptions { seed: Some(first.seed()), ..open() };
    let mut second = Sampler::new(&again).unwrap();
    let mut other = Sampler::new(&open()).unwrap();
    let picks =
        |sampler: &mut Sampler| -> Vec<TokenId> { (0..40).map(|_| sampler.sample(&logits).unwrap().token).collect() };
    let picked = picks(&mut first);
    assert_eq!(picked, picks(&mut second));
    assert_ne!(picked, picks(&mut other));
}

#[test]
fn nothing_is_allocated_once_the_buffers_have_grown() {
    let logits = made_up(50_000, 3);
    let mut sampler = sampler(GenerateOptions { repetition_penalty: 1.2, ..open() });
    sampler.sample(&logits).unwrap();
    assert!(sampler.penalised.capacity() >= logits.len(), "the buffers are kept");
    assert!(sampler.candidates.capacity() > 1000, "the buffers are kept");
    let before = (sampler.candidates.as_ptr(), sampler.penalised.as_ptr());
    for _ in 0..20 {
        sampler.sample(&logits).unwrap();
    }
    assert_eq!(before, (sampler.candidates.as_ptr(), sampler.penalised.as_ptr()));
}

#[test]
fn reach_agrees_with_sorting() {
    let mut generator = Xoshiro256PlusPlus::new(8);
    // Around and beyond the first looks, with many equal logits.
    for len in (1..40).chain([63, 64, 65, 128, 129, 1100, 200_000]) {
        let candidates: Vec<Candidate> = (0..len)
            .map(|token| {
                let logit = generator.below(7) as f32 - 3.0;
                let weight = generator.below(10);
                Candidate { weight, ..Candidate::new(token, logit) }
            })
            .collect();
        let mut sorted = candidates.clone();
        sorted.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap().then(a.token().cmp(&b.token())));
        let all = total(&candidates);
        for mass in (1..=all).step_by(1 + len as usize / 10) {
            let mut sum = 0;
            let reached = sorted.iter().position(|candidate| {
                sum += candidate.weight;
                sum >= mass
            });
            let needed = reached.unwrap() + 1;
            let mut shuffled = candidates.clone();
            assert_eq!(reach(&mut shuffled, mass), needed, "{len} candidates, mass {mass}");
            assert_eq!(shuffled[needed - 1].token(), sorted[needed - 1].token());
        }
    }
}

#[test]
fn candidates_rank_by_falling_logit_then_rising_token() {
    let logits = [f32::MAX, 2.5, 1.0, f32::MIN_POSITIVE, 0.0, -f32::MIN_POSITIVE, -1.0, -2.5, f32::MIN];
    let ranks: Vec<u64> = logits.iter().map(|&logit| Candidate::new(7, logit).rank).collect();
    assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
    assert!(Candidate::new(3, 1.0).rank < Candidate::new(4, 1.0).rank);
    assert!(Candidate::new(u32::MAX, 1.0).rank < Candidate::new(0, 0.5).rank);
    assert!(Candidate::new(3, -0.0).rank < Candidate::new(4, 0.0).rank, "-0 equals 0");
    assert_eq!(Candidate::new(1234, -7.5).token(), 1234);
}

#[test]
fn bias_and_penalties_move_the_choice_and_not_the_logprob() {
    let logits = [1.0, 3.0, 2.0, 0.0];
    let greedy = |options: GenerateOptions| Sampler::new(&options).unwrap();
    let plain = greedy(GenerateOptions::greedy(1)).sample(&logits).unwrap();
    assert_eq!(plain.token, 1);
    let options = GenerateOptions { logit_bias: vec![(3, 4.0), (1, -100.0)], ..GenerateOptions::greedy(1) };
    let biased = greedy(options).sample(&logits).unwrap();
    assert_eq!(biased.token, 3);
    assert!((biased.logprob - (plain.logprob - 3.0)).abs() < 1e-6, "the logprob is the model's own");
    // 3, less 0.6 for each time: 3, 2.4, 1.8 is below 2
    let options = GenerateOptions { frequency_penalty: 0.6, ..GenerateOptions::greedy(1) };
    let mut sampler = greedy(options);
    let tokens: Vec<TokenId> = (0..4).map(|_| sampler.sample(&logits).unwrap().token).collect();
    assert_eq!(tokens, [1, 1, 2, 1]);
    // 3, less 1.5 once: 1.5 is below 2, then both are taken
    let options = GenerateOptions { presence_penalty: 1.5, ..GenerateOptions::greedy(1) };
    let mut sampler = greedy(options);
    sampler.observe_prompt(&[1]);
    let tokens: Vec<TokenId> = (0..4).map(|_| sampler.sample(&logits).unwrap().token).collect();
    assert_eq!(tokens, [1, 2, 1, 1], "the prompt does not count");
}

#[test]
fn what_a_mask_leaves_out_is_never_sampled() {
    let logits = [1.0, 3.0, 2.0, 0.0];
    let options = GenerateOptions { seed: Some(1), ..GenerateOptions::default() };
    let mut sampler = Sampler::new(&options).unwrap();
    for _ in 0..100 {
        let token = sampler.sample_allowed(&logits, Some(&[true, false, false, true])).unwrap().token;
        assert!(token == 0 || token == 3);
    }
    assert_eq!(sampler.sample_allowed(&logits, Some(&[false; 4])), Err(Error::NothingAllowed));
}

#[test]
fn the_likeliest_tokens_are_those_of_a_sort() {
    let mut generator = Xoshiro256PlusPlus::new(9);
    // few distinct values, so that there are ties
    let logits: Vec<f32> = (0..500).map(|_| generator.below(40) as f32 / 4.0).collect();
    let mut order: Vec<TokenId> = (0..500).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    for count in [1, 2, 7, 500, 600] {
        let top = top_logprobs(&logits, count).unwrap();
        assert_eq!(top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), order[..count.min(500)]);
    }
    let sum: f64 = top_logprobs(&logits, 500).unwrap().iter().map(|(_, logprob)| logprob.exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
}

#[test]
fn what_would_prolong_a_repeated_passage_is_lowered_by_the_dry_penalty() {
    let logits = [0.0, 3.0, 2.5, 0.0, 0.0, 0.0, 0.0];
    let dry = Dry { multiplier: 0.8, base: 2.0, allowed_length: 2, ..Dry::default() };
    let next = |prompt: &[TokenId], dry: &Dry| {
        let mut sampler = sampler(GenerateOptions { dry: Some(dry.clone()), ..GenerateOptions::greedy(1) });
        sampler.observe_prompt(prompt);
        sampler.sample(&logits).unwrap().token
    };
    assert_eq!(next(&[5, 6, 1, 0, 6], &dry), 1, "one token in common is free");
    assert_eq!(next(&[5, 6, 1, 5, 6], &dry), 2, "3 less 0.8 is below 2.5");
    assert_eq!(next(&[5, 6, 1, 5, 6], &Dry { breakers: vec![5], ..dry.clone() }), 1, "a breaker ends a passage");
    assert_eq!(next(&[5, 6, 1, 5, 6], &Dry { multiplier: 0.0, ..dry }), 1, "0 is off");
}

#[test]
fn mirostat_draws_within_mu_bits_and_comes_to_the_target_in_the_mean() {
    let logits = made_up(2000, 8);
    let log_sum = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
    let probabilities: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - log_sum).exp()).collect();
    let best = probabilities.iter().copied().fold(0.0, f64::max);
    for (tau, eta) in [(2.0_f32, 0.1_f32), (5.0, 0.2)] {
        let mut sampler =
            sampler(GenerateOptions { mirostat: Some(Mirostat { tau, eta }), ..GenerateOptions::default() });
        // the same, by the paper
        let (mut mu, mut sum, draws) = (2.0 * f64::from(tau), 0.0, 3000);
        for _ in 0..draws {
            let p = probabilities[sampler.sample(&logits).unwrap().token as usize];
            assert!(-p.log2() <= mu + 1e-3 || p == best, "{} bits are more than {mu}", -p.log2());
            let kept: f64 = probabilities.iter().filter(|p| -p.log2() <= mu || **p == best).sum();
            let surprise = -(p / kept).log2();
            mu -= f64::from(eta) * (surprise - f64::from(tau));
            sum += surprise;
        }
        assert!((sum / f64::from(draws) - f64::from(tau)).abs() < 0.05, "{tau}: {}", sum / f64::from(draws));
    }
    let greedy = GenerateOptions { mirostat: Some(Mirostat::default()), ..GenerateOptions::greedy(1) };
    assert_eq!(
        sampler(greedy).sample(&logits).unwrap().token as usize,
        logits.iter().position(|x| *x == highest(&logits)).unwrap()
    );
}

/// On every backend, with ties, and with the generator where it was.
#[test]
fn the_largest_logits_give_the_tokens_that_all_give() {
    let tied: Vec<f32> = made_up(3001, 5).into_iter().map(|logit| logit.round()).collect();
    for backend in gemma_backend::Backend::compiled() {
        let device = backend.device().unwrap();
        for (row, logits) in [made_up(3001, 4), tied.clone(), vec![-0.0; 90]].into_iter().enumerate() {
            let options = [
                GenerateOptions { temperature: 0.0, ..open() },
                GenerateOptions { top_k: Some(1), ..open() },
                GenerateOptions { top_k: Some(40), ..open() },
                GenerateOptions { top_k: Some(64), top_p: Some(0.7), temperature: 2.0, ..open() },
                GenerateOptions { top_k: Some(9), min_p: Some(0.3), temperature: 1e-30, ..open() },
            ];
            for options in options {
                let [mut all, mut few] = [sampler(options.clone()), sampler(options.clone())];
                let count = few.reads().unwrap();
                let data = burn::tensor::TensorData::new(logits.clone(), [1, logits.len()]);
                let tensor = burn::tensor::Tensor::<2>::from_data(data, &device);
                // more than are read change nothing
                for count in [count, count + 7] {
                    let largest = gemma_kernels::largest(tensor.clone(), count).unwrap().remove(0);
                    for _ in 0..50 {
                        let expected = all.sample(&logits).unwrap();
                        let found = few.sample_row(Row::Largest(&largest), None).unwrap();
                        assert_eq!(found.token, expected.token, "{backend}, row {row}, {options:?}");
                        assert!((found.logprob - expected.logprob).abs() < 1e-5, "{found:?} {expected:?}");
                    }
                    let found = top_of_row(Row::Largest(&largest), count).unwrap();
                    let expected = top_logprobs(&logits, count).unwrap();
                    let tokens = |top: &[(TokenId, f64)]| top.iter().map(|(token, _)| *token).collect::<Vec<_>>();
                    assert_eq!(tokens(&found), tokens(&expected), "{backend}, row {row}");
                }
            }
        }
    }
}

#[test]
fn what_changes_logits_reads_them_all() {
    let top_k = GenerateOptions { top_k: Some(40), ..open() };
    assert_eq!(sampler(top_k.clone()).reads(), Some(40));
    assert_eq!(sampler(GenerateOptions { temperature: 0.0, ..top_k.clone() }).reads(), Some(1));
    for options in [
        open(),
        GenerateOptions { repetition_penalty: 1.1, ..top_k.clone() },
        GenerateOptions { presence_penalty: 0.1, ..top_k.clone() },
        GenerateOptions { frequency_penalty: 0.1, temperature: 0.0, ..top_k.clone() },
        GenerateOptions { logit_bias: vec![(1, 0.0)], ..top_k.clone() },
        GenerateOptions { dry: Some(Dry::default()), ..top_k.clone() },
        GenerateOptions { mirostat: Some(Mirostat::default()), ..top_k.clone() },
    ] {
        assert_eq!(sampler(options.clone()).reads(), None, "{options:?}");
    }
}
