//! CodeGemma as a whole: prompts as the reference makes them, holes filled, drafts and reuse that change nothing.

use codegemma::{CodeGemma, Error, File, Infill, InfillOptions, Language, Order, Truncation};
use gemma::{ActivationPrecision, Backend, Device, LoadOptions};
use gemma_demo::corpus::code::held_out_functions;
use gemma_demo::corpus::holes::Hole;
use gemma_demo::random::Random;
use gemma_demo::train_codegemma::{examine, long_holes, short_holes};
use gemma_generate::{CausalModel, FinishReason, GenerateOptions, Generation, PromptLookup, Segment, Speculation};
use gemma_tests::{References, shared};
use gemma_tokenizer::{DecodeOptions, Family, Tokenizer};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// At least this part of the held-out holes in files of one function must be filled exactly, in either order.
const RIGHT: [(Order, f64); 2] = [(Order::Psm, 0.9), (Order::Spm, 0.9)];
/// At least this part of those in files of three to six functions.
const RIGHT_IN_LONG_FILES: [(Order, f64); 2] = [(Order::Psm, 0.7), (Order::Spm, 0.7)];

/// The backends compiled in, each with a device, and how many times a lengthy thing is tried on it: a software graphics
/// driver takes a second for what a CPU does in a hundredth.
fn devices() -> Vec<(Device, usize)> {
    let tested = |backend: &Backend| !matches!(backend, Backend::Vulkan | Backend::Metal);
    let backends = Backend::compiled().into_iter().filter(tested);
    backends
        .map(|backend| {
            (backend.device().expect("a compiled backend opens"), if backend == Backend::Wgpu { 30 } else { 200 })
        })
        .collect()
}

fn device() -> Device {
    devices().swap_remove(0).0
}

fn demo() -> CodeGemma {
    codegemma::demo(&device()).expect("the demo is built in")
}

/// The hole that a prompt in text form asks about, and the order of its parts.
fn parsed(text: &str) -> (Infill, Order) {
    let (files, last) = text.rsplit_once("<|file_separator|>").unwrap_or(("", text));
    let file = |text: &str| {
        let (path, text) = text.split_once('\n').expect("a path and a text");
        File { path: path.into(), text: text.into() }
    };
    let context = files.split("<|file_separator|>").filter(|file| !file.is_empty()).map(file).collect();
    let (path, rest) = last.split_once("<|fim_prefix|>").expect("a prompt");
    let path = path.strip_suffix('\n').map(str::to_owned);
    let (first, rest) = rest.split_once("<|fim_suffix|>").expect("a prompt");
    let (suffix, last) = rest.split_once("<|fim_middle|>").expect("a prompt");
    let order = if last.is_empty() { Order::Psm } else { Order::Spm };
    let prefix = if order == Order::Psm { first } else { last };
    (Infill { path, context, ..Infill::new(prefix, suffix) }, order)
}

#[test]
fn prompts_are_the_references_token_by_token() {
    let Some(shared) = shared() else { return };
    let json = std::fs::read(shared.join("tokenizer/gemma2/tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&json, Family::CodeGemma).unwrap();
    let cases = std::fs::read(shared.join("reference/fixtures/tokenizer_cases/codegemma.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_slice(&cases).unwrap();
    let mut checked = 0;
    for case in cases["encode"].as_array().unwrap() {
        let (name, text) = (case["name"].as_str().unwrap(), case["text"].as_str().unwrap());
        // the others are no prompts
        if !(text.contains("<|fim_prefix|>") && text.contains("<|fim_middle|>")) {
            continue;
        }
        let expected: Vec<u32> =
            case["hf_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let (infill, order) = parsed(text);
        let prompt = infill.prompt(&tokenizer, order, 8000).unwrap();
        assert_eq!(prompt.tokens, [&[2], &expected[..]].concat(), "{name}");
        assert!(prompt.truncation.is_empty());
        checked += 1;
    }
    assert!(checked >= 5, "{checked} prompts");
}

#[test]
fn prompts_of_the_fixture_model_are_the_references() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures/codegemma/f32");
    let model = CodeGemma::load(folder.to_str().unwrap(), &device()).unwrap();
    let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let expected = References::open(&folder.join("expected.safetensors"));
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (infill, order) = parsed(case["texts"][0].as_str().unwrap());
        let ids = expected.tensor(&format!("{name}.input_ids"));
        let ids: Vec<u32> = ids.values.iter().map(|id| *id as u32).collect();
        assert_eq!(infill.prompt(model.tokenizer().unwrap(), order, 8000).unwrap().tokens, ids, "{name}");
    }
}

/// Texts that have come out wrong elsewhere: tabs, emoji, Windows line breaks, nothing, names of control tokens.
const TEXTS: [&str; 12] = [
    "",
    " ",
    "\t\tif x:\n\t\t\treturn\n",
    "a = '🦀é\u{200d}'\r\n\r\n",
    "x = \"<|fim_suffix|>\"\n",
    "<|fim_prefix|><|fim_middle|><|file_separator|><eos><bos><end_of_turn><start_of_turn>",
    "    \n\n\n        y\n",
    "<unused60>",
    "\n",
    "▁▁ literal",
    "for (;;) {\n",
    "\u{0}\u{1b}[2J",
];

#[test]
fn no_text_becomes_a_control_token_or_is_changed() {
    let tokenizer = codegemma::demo_tokenizer().unwrap();
    let shown = |tokens: &[u32]| tokenizer.decode_with(tokens, DecodeOptions { specials: true });
    for prefix in TEXTS {
        for suffix in TEXTS {
            for order in [Order::Psm, Order::Spm] {
                let context = vec![File { path: "a<|fim_prefix|>.py".into(), text: suffix.to_owned() }];
                for context in [Vec::new(), context] {
                    let infill = Infill { path: Some("b.py".into()), context, ..Infill::new(prefix, suffix) };
                    let prompt = infill.prompt(&tokenizer, order, 900).unwrap();
                    let files = infill.context.len();
                    let control = prompt.tokens.iter().filter(|id| tokenizer.is_control(**id)).count();
                    assert_eq!(control, 4 + files, "{prefix:?} {suffix:?}");
                    assert_eq!(prompt.tokens[0], tokenizer.bos());
                    assert!(!prompt.tokens[1..].contains(&tokenizer.bos()));
                    let mut text = String::from("<bos>");
                    for file in &infill.context {
                        text += &format!("{}\n{}<|file_separator|>b.py\n", file.path, file.text);
                    }
                    text += &match order {
                        Order::Psm => format!("<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"),
                        Order::Spm => format!("<|fim_prefix|><|fim_suffix|>{suffix}<|fim_middle|>{prefix}"),
                    };
                    // a literal ▁ is a space to SentencePiece, and so here; lines end in a line feed
                    assert_eq!(shown(&prompt.tokens), text.replace('▁', " ").replace("\r\n", "\n"));
                }
            }
        }
    }
}

#[test]
fn a_plain_gemma_is_asked_in_vain() {
    let gemma = gemma::demo(&device()).unwrap();
    let error = CodeGemma::new(gemma).unwrap_err();
    assert!(matches!(error, Error::NoInfilling));
    assert!(error.to_string().contains("codegemma"), "{error}");
}

/// A program of numbered lines.
fn program(from: usize, lines: usize) -> String {
    (from..from + lines).map(|line| format!("    total_{line} = sum(values[{line}:])\n")).collect()
}

#[test]
fn a_prompt_keeps_its_budget_and_whole_lines_near_the_gap() {
    let tokenizer = codegemma::demo_tokenizer().unwrap();
    let control = tokenizer.control().fim.unwrap();
    let (prefix, suffix) = (program(0, 300), program(300, 300));
    let context: Vec<File> = (0..3).map(|file| File { path: format!("f{file}.py"), text: program(600, 40) }).collect();
    for budget in [32, 33, 64, 100, 257, 600, 2000, 20_000] {
        let infill = Infill { path: Some("x.py".into()), context: context.clone(), ..Infill::new(&prefix, &suffix) };
        let prompt = infill.prompt(&tokenizer, Order::Psm, budget).unwrap();
        assert!(prompt.tokens.len() <= budget, "{} of {budget}", prompt.tokens.len());
        let place = |id: u32| prompt.tokens.iter().position(|token| *token == id).unwrap();
        let (first, second, third) = (place(control.prefix), place(control.suffix), place(control.middle));
        let before = tokenizer.decode(&prompt.tokens[first + 1..second]);
        let after = tokenizer.decode(&prompt.tokens[second + 1..third]);
        assert!(prefix.ends_with(&before) && suffix.starts_with(&after), "{budget}: nearest lines");
        if budget >= 100 {
            assert!(prefix[..prefix.len() - before.len()].is_empty() || before.starts_with("    total_"), "{before:?}");
            assert!(after.is_empty() || after.ends_with('\n'), "{budget}: whole lines");
            let (before, after) = ((second - first) as f64, (third - second) as f64);
            if budget < 20_000 {
                assert!((2.0..5.0).contains(&(before / after)), "{budget}: {before} to {after}");
            }
            let lines = |text: &str| text.lines().count();
            let all = lines(&tokenizer.decode(&prompt.tokens[first + 1..second]));
            assert_eq!(prompt.truncation.prefix_lines, 300 - all, "{budget}");
        }
        assert_eq!(prompt.truncation.is_empty(), budget == 20_000, "{budget}: {:?}", prompt.truncation);
    }
    let tiny = Infill::new("a", "b").prompt(&tokenizer, Order::Psm, 5).unwrap_err();
    assert!(matches!(tiny, Error::Budget { budget: 5, .. }));
}

#[test]
fn a_line_without_end_is_cut_inside_and_nothing_takes_long() {
    let tokenizer = codegemma::demo_tokenizer().unwrap();
    let begin = Instant::now();
    let infill = Infill::new("x é🦀".repeat(2_000_000), "y🦀 ".repeat(2_000_000));
    let prompt = infill.prompt(&tokenizer, Order::Spm, 400).unwrap();
    assert!(prompt.tokens.len() <= 400 && prompt.tokens.len() > 40, "{}", prompt.tokens.len());
    assert_eq!((prompt.truncation.prefix_lines, prompt.truncation.suffix_lines), (1, 1));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn what_one_side_does_not_need_goes_to_the_other() {
    let tokenizer = codegemma::demo_tokenizer().unwrap();
    let lines_kept = |prefix: &str, suffix: &str| {
        let Truncation { prefix_lines, suffix_lines, .. } =
            Infill::new(prefix, suffix).prompt(&tokenizer, Order::Psm, 600).unwrap().truncation;
        (prefix.lines().count() - prefix_lines, suffix.lines().count() - suffix_lines)
    };
    let (long, short) = (program(0, 300), program(0, 1));
    let both = lines_kept(&long, &long);
    assert!(lines_kept(&long, &short).0 > both.0, "the prefix takes what the suffix leaves");
    assert!(lines_kept(&short, &long).1 > 2 * both.1, "the suffix takes what the prefix leaves");
}

/// One exam for each order, in which a hole counts when the text is exactly what was taken out.
fn examined(holes: fn(usize, u64) -> Vec<Hole>, wanted: [(Order, f64); 2]) {
    let model = demo();
    for (order, least) in wanted {
        // a seed that nothing else uses
        let filled = examine(model.gemma(), order, holes(300, 31_000)).expect("holes are filled");
        let right = filled.iter().filter(|filled| filled.is_right()).count();
        for wrong in filled.iter().filter(|filled| !filled.is_right()).take(20) {
            println!("{:?}, not {:?}", wrong.said, wrong.hole.middle);
        }
        println!("{order:?}: {right} of {} right", filled.len());
        assert!(right as f64 >= least * filled.len() as f64, "{order:?}: {right} of {}", filled.len());
    }
}

#[test]
fn the_demo_fills_held_out_holes() {
    examined(short_holes, RIGHT);
}

#[test]
fn the_demo_fills_held_out_holes_in_files_of_several_functions() {
    examined(long_holes, RIGHT_IN_LONG_FILES);
}

#[test]
fn a_middle_is_shown_as_it_comes_and_the_pieces_are_the_whole() {
    let model = demo();
    let mut random = Random::new(77);
    let mut pieces = 0;
    for function in held_out_functions(20, 9) {
        let hole = Hole::line(&function.text, &mut random);
        for stop_rule in [codegemma::InfillStop::Free, codegemma::InfillStop::Line, codegemma::InfillStop::Block] {
            let infill = Infill { language: Some(Language::of_path(&function.path())), ..hole.infill.clone() };
            let options = InfillOptions { stop_rule, ..InfillOptions::default() };
            let shown: Vec<String> = model.stream_infill(&infill, &options).unwrap().map(Result::unwrap).collect();
            pieces += shown.len();
            let whole = model.infill(&infill, &options).unwrap();
            assert_eq!(shown.concat(), whole.text);
            assert!(shown.iter().all(|piece| !piece.is_empty()));
            assert!(whole.timings.generated_tokens <= 128);
        }
    }
    assert!(pieces > 100, "{pieces} pieces: nothing was shown early");
}

/// The logits that follow the prompt whose last token a session has not read yet.
fn next_logits(model: &CodeGemma, sequence: &gemma_generate::Sequence<gemma::DecoderCache>) -> Vec<f32> {
    let network = model.gemma().network();
    let mut cache = sequence.cache().clone();
    let segment = Segment::causal(sequence.position(), 1);
    let logits = network.last_logits(sequence.pending(), &[segment], &mut [&mut cache]);
    logits.into_data().try_into_vec().expect("f32 logits")
}

/// Types a function behind another one, with a correction in the middle, as an editor would.
fn typed() -> Vec<Infill> {
    let functions = held_out_functions(2, 41);
    let (above, text) = (&functions[0].text, &functions[1].text);
    let mut states: Vec<String> = (1..text.len()).step_by(7).map(|end| text[..end].to_owned()).collect();
    let last = states.last().expect("something was typed").clone();
    states.push(last[..last.len() / 2].to_owned());
    states.push(format!("{}xyz", &last[..last.len() / 2]));
    states.push(last);
    states.into_iter().map(|state| Infill::new(format!("{above}\n{state}"), "\n\nprint(1)\n")).collect()
}

#[test]
fn a_prompt_read_in_part_gives_the_logits_of_one_read_anew() {
    for (device, _) in devices() {
        // otherwise long pieces are rounded as short ones are not
        let exact = LoadOptions { activations: ActivationPrecision::F32, ..LoadOptions::default() };
        let model = codegemma::demo_with(&exact, &device).unwrap();
        for order in [Order::Psm, Order::Spm] {
            let options = InfillOptions { order, ..InfillOptions::default() };
            let mut session = model.session();
            let mut reused = 0;
            for infill in typed() {
                // something is generated in between, and forgotten
                reused += session.infill(&infill, &options).unwrap().reused_tokens;
                session.warm_up(&infill, &options).unwrap();
                let mut fresh = model.session();
                fresh.warm_up(&infill, &options).unwrap();
                let (reused, fresh) = (session.sequence().unwrap(), fresh.sequence().unwrap());
                assert_eq!(reused.tokens(), fresh.tokens());
                let (reused, fresh) = (next_logits(&model, reused), next_logits(&model, fresh));
                let distance = reused.iter().zip(&fresh).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(distance <= 1e-5, "{order:?}: a logit is {distance} off");
            }
            assert!(reused > 500, "{order:?}: {reused} tokens reused");
        }
    }
}

#[test]
fn typing_on_reads_only_what_was_typed() {
    let model = demo();
    let options = InfillOptions { order: Order::Spm, budget: Some(400), ..InfillOptions::default() };
    let mut session = model.session();
    let (above, below) = (program(0, 60), program(60, 60));
    session.infill(&Infill::new(&above, &below), &options).unwrap();
    let mut moved = 0;
    let line = "    prices = [price for price in prices]\n".repeat(4);
    for end in 1..line.len() {
        let infill = Infill::new(format!("{above}{}", &line[..end]), &below);
        let filled = session.infill(&infill, &options).unwrap();
        assert!(!filled.truncation.is_empty(), "the program is longer than the budget");
        // a character may change the piece before it; now and then the beginning of the prompt moves
        if filled.prompt_tokens - filled.reused_tokens > 6 {
            moved += 1;
        }
    }
    assert!(moved <= 3, "the prompt was read anew {moved} times in {} keystrokes", line.len());
}

#[test]
fn drafts_change_no_byte_of_two_hundred_texts() {
    for (device, count) in devices() {
        let model = codegemma::demo(&device).unwrap();
        let (network, stop) = (model.gemma().network(), model.stop_tokens());
        let mut random = Random::new(4);
        let functions = held_out_functions(count, 77);
        let (mut drafted, mut accepted) = (0, 0);
        for (index, function) in functions.iter().enumerate() {
            let tokenizer = model.tokenizer().unwrap();
            let options = GenerateOptions::greedy(32);
            let hole = Hole::span(&function.text, &mut random);
            let order = if random.chance(50) { Order::Psm } else { Order::Spm };
            let prompt = hole.infill.prompt(tokenizer, order, 500).unwrap().tokens;
            let plain = Generation::new(network, &prompt, &options, stop).unwrap();
            let others = vec![tokenizer.encode(&functions[(index + 1) % count].text)];
            let mut quick = Generation::new(network, &prompt, &options, stop)
                .unwrap()
                .with_speculation(Speculation::new(PromptLookup::new(others)).always());
            let plain: Vec<u32> = plain.map(|pick| pick.unwrap().token).collect();
            let tokens: Vec<u32> = quick.by_ref().map(|pick| pick.unwrap().token).collect();
            assert_eq!(tokens, plain, "{:?}", hole.infill);
            drafted += quick.timings().draft_tokens;
            accepted += quick.timings().accepted_tokens;
        }
        println!("{accepted} of {drafted} draft tokens accepted");
        assert!(accepted > count / 2 && accepted < drafted, "{accepted} of {drafted}");
    }
}

#[test]
fn alternatives_share_one_reading_of_the_prompt() {
    let model = demo();
    // any function may come here
    let infill = Infill::new("def ", "");
    let options = InfillOptions {
        generate: GenerateOptions { seed: Some(1), ..GenerateOptions::greedy(24) },
        ..InfillOptions::default()
    };
    let mut session = model.session();
    let found = session.alternatives(&infill, &options, 8).unwrap();
    assert_eq!(found[0].text, model.infill(&infill, &options).unwrap().text);
    assert!(found.len() >= 2, "all alternatives are one");
    let mut texts: Vec<&str> = found.iter().map(|filled| filled.text.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), found.len());
    for filled in &found {
        assert_eq!(filled.timings.prompt_tokens, 1, "only the last token of the prompt is read again");
        assert!(filled.mean_log_prob <= 0.0);
    }
    assert_eq!(session.alternatives(&infill, &options, 8).unwrap()[0].reused_tokens, found[0].prompt_tokens - 1);
}

#[test]
fn cancelling_and_a_time_limit_end_a_middle() {
    let model = demo();
    let infill = Infill::new("def f(x):\n", "");
    let cancel = Arc::new(AtomicBool::new(true));
    let options = InfillOptions { cancel: Some(cancel), ..InfillOptions::default() };
    let filled = model.infill(&infill, &options).unwrap();
    assert_eq!((filled.finish_reason, filled.text.as_str()), (FinishReason::Cancelled, ""));
    let options = InfillOptions { time_limit: Some(Duration::ZERO), ..InfillOptions::default() };
    assert_eq!(model.infill(&infill, &options).unwrap().finish_reason, FinishReason::OutOfTime);
}

#[test]
fn empty_and_huge_programs_are_answered() {
    let model = demo();
    let options = InfillOptions::default();
    model.infill(&Infill::new("", ""), &options).unwrap();
    let filled = model.infill(&Infill::new(program(0, 5_000), program(0, 5_000)), &options).unwrap();
    assert!(filled.truncation.prefix_lines > 4_000);
    // a middle that may be as long as it likes leaves room for a prompt, and one that fills the context does not
    let greedy = |most: usize| InfillOptions { generate: GenerateOptions::greedy(most), ..options.clone() };
    model.infill(&Infill::new("def f(", "):\n    return 1\n"), &greedy(1_000_000)).unwrap();
    let context = model.gemma().network().context_length().unwrap();
    assert!(matches!(model.infill(&Infill::new("a", "b"), &greedy(context - 1)), Err(Error::Budget { .. })));
}

#[test]
fn completing_goes_on_from_the_end() {
    let model = demo();
    let function = "def sum_prices(prices):\n    \"\"\"Return the sum of the prices.\"\"\"\n    total = 0\n    for price in prices:\n";
    let completed = model.complete(function, &GenerateOptions::greedy(40)).unwrap();
    assert!(completed.text.starts_with("        total += price\n    return total\n"), "{:?}", completed.text);
}
