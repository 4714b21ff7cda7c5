//! Gemma 3 with images as it is used: in conversations, from a GGUF file with its image encoder, and as a judge.

use burn::tensor::Tensor;
use gemma::{ActivationPrecision, Decoder, LoadOptions, Network};
use gemma_generate::{CausalModel, GenerateOptions};
use gemma_model::convert_to_gguf;
use gemma_nn::Segment;
use gemma_tests::{devices, max_distance, shared};
use gemma_tokenizer::{ChatTemplate, EncodeOptions, Part, Role, Turn};
use gemma_weights::{Checkpoint, Format, StoredTensor};
use gemma3::{EncodedImage, Gemma3, Gemma3Network, IMAGE_MARK, Image};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

fn folder() -> Option<PathBuf> {
    Some(shared()?.join("reference/newer/gemma3_vision/f32"))
}

fn model(checkpoint: &Checkpoint) -> Gemma3 {
    let (_, device) = devices().remove(0);
    // so that a prompt in one piece and in several gives the same
    let options = LoadOptions { activations: ActivationPrecision::F32, ..LoadOptions::default() };
    Gemma3::from_checkpoint(checkpoint, &options, &device).expect("a model")
}

fn images(folder: &std::path::Path, model: &Gemma3) -> Vec<EncodedImage> {
    ["main.image0.png", "two_images.image1.png"]
        .map(|name| model.encode_image(&Image::open(folder.join(name)).expect("an image")))
        .to_vec()
}

/// The tokens of an answer to turns, prefilled as a whole.
fn answer(model: &Gemma3, turns: &[Turn], images: &[&EncodedImage], options: &GenerateOptions) -> Vec<u32> {
    let chat = ChatTemplate::builtin().render(turns, true).expect("sound turns");
    let tokens = model.rendered_tokens(&chat, images).expect("a prompt");
    let made = model.begin(&tokens, images, options).expect("a sound prompt");
    made.map(|step| step.expect("finite logits").token).collect()
}

/// A conversation keeps its cache over questions with and without images, and answers as if it were read anew each time.
/// It goes on from the tokens of its answers, which are not always those that their text becomes; from such an answer on,
/// there is nothing to compare with.
#[test]
fn images_are_shown_in_a_conversation() {
    let Some(folder) = folder() else { return };
    let model = model(&Checkpoint::open(&folder).expect("a folder"));
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let images = images(&folder, &model);
    let shown: [&[usize]; 4] = [&[0], &[], &[1], &[0, 1]];
    let (mut followed, mut undone) = (0, 0);
    for (first, len) in ('a'..='z').flat_map(|first| [1, 2, 3].map(|len| (first, len))) {
        let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(len) };
        let mut conversation = model.conversation(options.clone()).with_template(ChatTemplate::builtin());
        let mut turns = Vec::new();
        let mut seen: Vec<&EncodedImage> = Vec::new();
        let mut same_tokens = true;
        for (round, shown) in shown.into_iter().enumerate() {
            let question = format!("{first}{round}");
            let attached = shown.iter().map(|index| images[*index].clone()).collect();
            let mut said = String::new();
            let show = |piece: &str| -> Result<(), gemma_model::Error> {
                said += piece;
                Ok(())
            };
            let answered = conversation.say_with(attached, &question, Arc::default(), show).expect("an answer");
            assert_eq!(answered.forgotten, 0);
            if said.trim().is_empty() {
                // what was never said is forgotten
                assert_eq!(conversation.turns().len(), 2 * round);
                break;
            }
            assert_eq!(conversation.turns().len(), 2 * (round + 1));
            seen.extend(shown.iter().map(|index| &images[*index]));
            let mut parts = vec![Part::Image; shown.len()];
            parts.push(Part::Text(question));
            turns.push(Turn::with_parts(Role::User, parts));
            if same_tokens {
                let anew = answer(&model, &turns, &seen, &options);
                assert_eq!(said, tokenizer.decode(&anew), "{first}, round {round}");
                followed += usize::from(round > 0);
                let plain = EncodeOptions { bos: false, specials: false };
                same_tokens = said.trim() == said && tokenizer.encode_with(&said, plain) == anew;
            }
            turns.push(Turn::model(said));
        }
        if conversation.turns().len() >= 4 {
            assert!(conversation.undo() && conversation.undo());
            let again = |piece: &str| -> Result<(), gemma_model::Error> {
                assert!(!piece.is_empty());
                Ok(())
            };
            conversation.say("and?", Arc::default(), again).expect("an answer about the first image");
            undone += 1;
        }
        conversation.reset();
        assert!(conversation.turns().is_empty());
    }
    println!("{followed} answers that followed others, {undone} conversations with an undo");
    assert!(followed >= 3 && undone >= 1, "{followed} answers to compare, {undone} undone");
}

#[test]
fn a_judge_of_images_answers_yes_or_no() {
    let Some(folder) = folder() else { return };
    let model = model(&Checkpoint::open(&folder).expect("a folder"));
    let image = &images(&folder, &model)[0];
    let rule = shieldgemma::Guideline::named("violence").expect("built in");
    let prompt = shieldgemma::image_prompt(&rule, IMAGE_MARK).expect("about images");
    let tokens = model.rendered_tokens(&prompt, &[image]).expect("a prompt");
    let config = model.network().config();
    let soft = tokens.iter().filter(|token| **token == config.image_token).count();
    assert_eq!(soft, config.image_tokens);
    let logits = model.next_logits(&tokens, &[image]).expect("a sound prompt");
    let found = shieldgemma::violation(logits.clone(), [10, 20]).expect("finite logits");
    let values = crate::parity::values(logits);
    let [yes, no] = [10, 20].map(|token| f64::from(values[token]).exp());
    assert!((found - yes / (yes + no)).abs() < 1e-6, "{found}");
    assert!(shieldgemma::image_prompt(&shieldgemma::Guideline::named("hate").expect("built in"), "").is_err());
}

/// A GGUF file of tensors in f32 and of keys with numbers, as programs write one for an image encoder.
fn encoder_file(config: &gemma_vision::SiglipConfig, tensors: &BTreeMap<String, StoredTensor>) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let keys: [(&str, u64); 7] = [
        ("image_size", config.image_size as u64),
        ("patch_size", config.patch as u64),
        ("embedding_length", config.hidden_size as u64),
        ("feed_forward_length", config.intermediate_size as u64),
        ("block_count", config.layers as u64),
        ("attention.head_count", config.heads as u64),
        ("projector.scale_factor", 2),
    ];
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((keys.len() as u64 + 3).to_le_bytes());
    for (key, value) in [("general.architecture", "clip"), ("clip.projector_type", "gemma3")] {
        head.extend([text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    for (key, value) in keys {
        let value = (value as u32).to_le_bytes().to_vec();
        head.extend([text(&format!("clip.vision.{key}")), 4u32.to_le_bytes().to_vec(), value].concat());
    }
    let key = text("clip.vision.attention.layer_norm_epsilon");
    head.extend([key, 6u32.to_le_bytes().to_vec(), config.norm_eps.to_le_bytes().to_vec()].concat());
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        head.extend(text(name));
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|axis| head.extend((*axis as u64).to_le_bytes()));
        head.extend(0u32.to_le_bytes());
        head.extend((data.len() as u64).to_le_bytes());
        data.extend(tensor.to_f32().iter().flat_map(|value| value.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    head.extend(data);
    head
}

/// The name in such a file of a tensor of a folder, with the two matrices of an MLP as old or new programs have them.
fn name_in_file(name: &str, old: bool) -> String {
    let (up, down) = if old { (".ffn_down.", ".ffn_up.") } else { (".ffn_up.", ".ffn_down.") };
    let mut name = name.to_owned();
    for (from, to) in [
        ("vision_tower.", "v."),
        ("vision_model.", ""),
        ("encoder.layers.", "blk."),
        ("embeddings.patch_embedding.", "patch_embd."),
        ("embeddings.position_embedding.", "position_embd."),
        ("post_layernorm.", "post_ln."),
        ("layer_norm", "ln"),
        (".self_attn.out_proj.", ".attn_out."),
        (".self_attn.q_proj.", ".attn_q."),
        (".self_attn.k_proj.", ".attn_k."),
        (".self_attn.v_proj.", ".attn_v."),
        (".mlp.fc1.", up),
        (".mlp.fc2.", down),
        ("multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight"),
        ("multi_modal_projector.mm_soft_emb_norm.", "mm.soft_emb_norm."),
    ] {
        name = name.replace(from, to);
    }
    name
}

#[test]
fn a_gguf_file_and_its_image_encoder_are_the_model() {
    let Some(folder) = folder() else { return };
    let source = Checkpoint::open(&folder).expect("a folder");
    let whole = model(&source);
    let place = tempfile::tempdir().expect("a folder");
    let inside = Gemma3Network::prepared(&source);
    let text = inside.renamed(|name| name.starts_with("model.").then(|| name.to_owned()));
    let file = place.path().join("text.gguf");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    convert_to_gguf::<Decoder>(&text, None, Some(Format::F32), &file, false, go_on).expect("a file");
    let text = Checkpoint::open(&file).expect("a GGUF file");
    for old in [true, false] {
        let mut tensors: BTreeMap<String, StoredTensor> = BTreeMap::new();
        for (name, tensor) in inside.tensors().filter(|(name, _)| !name.starts_with("model.")) {
            let mut tensor = tensor.clone();
            if name.contains("soft_emb_norm") {
                let values = tensor.to_f32().into_iter().flat_map(|value| (value + 1.0).to_le_bytes());
                tensor = StoredTensor { format: Format::F32, bytes: values.collect::<Vec<u8>>().into(), ..tensor };
            }
            tensors.insert(name_in_file(name, old), tensor);
        }
        let mmproj = place.path().join("mmproj.gguf");
        std::fs::write(&mmproj, encoder_file(&whole.network().config().vision, &tensors)).expect("written");
        let joined = model(&text.with_image_encoder(&mmproj).expect("an encoder"));
        let (ours, theirs) = (joined.network().config(), whole.network().config());
        assert_eq!((ours.vision, ours.image_tokens), (theirs.vision, theirs.image_tokens));
        assert_eq!(
            [ours.image_token, ours.begin_token, ours.end_token],
            [theirs.image_token, theirs.begin_token, theirs.end_token]
        );
        // one list of tokens for both: the merges of this small tokenizer are not those of the scores in a GGUF file
        let tokens = whole.text_tokens("what?", &[&images(&folder, &whole)[0]]).expect("a prompt");
        let features = |model: &Gemma3| crate::parity::values(images(&folder, model)[0].features()[0].clone());
        let wanted: Vec<f64> = features(&whole).into_iter().map(f64::from).collect();
        let distance = max_distance(&features(&joined), &wanted);
        assert!(distance < 1e-4, "old {old}: a feature is {distance} off");
        let logits = |model: &Gemma3| {
            let image = &images(&folder, model)[0];
            crate::parity::values(model.next_logits(&tokens, &[image]).expect("a sound prompt"))
        };
        let wanted: Vec<f64> = logits(&whole).into_iter().map(f64::from).collect();
        let found = logits(&joined);
        // the rows that pad the table beyond the vocabulary are left out of a GGUF file
        let distance = max_distance(&found, &wanted[..found.len()]);
        assert!(distance < 1e-4, "a logit is {distance} off");
        // the model itself is none, and a model is no encoder
        let error = Checkpoint::open(&mmproj).expect_err("no model").to_string();
        assert!(error.contains("mmproj") && error.contains("--mmproj"), "{error}");
        let error = text.with_image_encoder(&file).expect_err("no encoder").to_string();
        assert!(error.contains("no image encoder"), "{error}");
    }
    let error = source.with_image_encoder(&file).expect_err("a folder").to_string();
    assert!(error.contains("goes with a GGUF file"), "{error}");
    // the text model alone makes the same text
    let (_, device) = devices().remove(0);
    let decoder =
        Decoder::open(&text, &LoadOptions { activations: ActivationPrecision::F32, ..LoadOptions::default() }, &device)
            .expect("a model");
    // the logits after the last token: rows of a padded table are longer
    let (tokens, segments) = ([2, 30, 40, 50], [Segment::causal(0, 4)]);
    let last = |logits: Tensor<2>| crate::parity::values(logits.narrow(0, 3, 1));
    let found = last(decoder.uncached_logits(&tokens, &segments));
    let wanted: Vec<f64> =
        last(whole.network().uncached_logits(&tokens, &segments)).into_iter().map(f64::from).collect();
    assert!(max_distance(&found, &wanted[..found.len()]) < 1e-4);
}
