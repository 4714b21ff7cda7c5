//! Trains the PaliGemma demo model, from random weights to the folder that the library embeds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use gemma::{DecoderConfig, LayerSpec, Norms};
use gemma_generate::CausalModel;
use gemma_nn::{AttentionSpec, RandomWeights, RopeSpec, Segment, Visibility};
use gemma_tokenizer::{Family, Tokenizer};
use gemma_train::{Example, cross_entropy};
use gemma_weights::{Checkpoint, Dtype, save_safetensors};
use paligemma::{
    BoundingBox, Device, ImageFeatures, Mask, Network, PaliGemma, PaliGemmaConfig, Pixels, SiglipConfig,
    VisionLanguageModel, prompt,
};

use crate::bpe::{CONTROL, learn};
use crate::masks::{MaskCodes, decoder_tensors};
use crate::random::Random;
use crate::scenes::{Lesson, MOST, Scene, Thing, scenes};
use crate::training::{Round, device, tokenizer};

/// The rounds, and the most shapes of a scene in each. One shape alone teaches what shapes, colours and places are; with
/// several from the start, that takes many times as long. After some thousand steps boxes are right and captions are
/// not; they come late and all at once. The committed model took a course like this one in several sittings
/// (`begun`, `first`), about 20 000 steps in all. Masks are learned last, in a round that keeps the other lessons up.
const ROUNDS: [(Round, u32); 6] = [
    (Round { name: "one shape", steps: 500, learning_rate: 3e-3 }, 1),
    (Round { name: "several", steps: 2500, learning_rate: 3e-3 }, MOST),
    (Round { name: "several again", steps: 6000, learning_rate: 3e-3 }, MOST),
    (Round { name: "once more", steps: 6000, learning_rate: 3e-3 }, MOST),
    (Round { name: "last", steps: 6000, learning_rate: 1e-3 }, MOST),
    (Round { name: "masks", steps: 2000, learning_rate: 1e-3 }, MOST),
];
/// The first round with lessons about masks, counted from 0.
const MASKS: usize = 5;
/// The file of the mask decoder's weights.
const MASK_DECODER: &str = "mask_decoder.safetensors";
/// Held-out scenes that are asked about after each round.
const EXAMINED: usize = 100;
/// Lessons of one step.
const LESSONS: usize = 32;
/// Pieces of the vocabulary before the location, segment and image tokens: every word is one piece.
const TEXT_PIECES: usize = 448;
/// Sides at which scenes are drawn, in pixels.
const SIDES: [usize; 4] = [56, 84, 112, 224];
/// Sides of the sample images that are written beside the model.
const SAMPLE_SIDE: usize = 224;
/// Keys that a word of an answer sees in a windowed layer: some of the image, and the prompt.
const WINDOW: usize = 64;
/// Their folder.
const IMAGES: &str = "images";
/// Number of sample images.
const SAMPLES: usize = 3;

/// The demo's network: PaliGemma 2 in everything but size. (Gemma 2's norms after each branch let a tied embedding of
/// this size be trained quickly: without them the branches have to outgrow the scaled embeddings first.)
pub fn config(vocab: usize) -> PaliGemmaConfig {
    let (heads, head_dim) = (4, 32);
    let layer = |index: usize| LayerSpec {
        attention: AttentionSpec {
            heads,
            kv_heads: 2,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            softcap: Some(50.0),
            visibility: Visibility::Causal { window: index.is_multiple_of(2).then_some(WINDOW) },
            qk_norm: None,
            qkv_bias: false,
            output_bias: false,
        },
        rope: RopeSpec::new(head_dim, 10_000.0),
        intermediate_size: 256,
        norms: Norms::BeforeAndAfter,
    };
    PaliGemmaConfig {
        vision: SiglipConfig {
            image_size: 56,
            patch: 8,
            hidden_size: 96,
            layers: 3,
            heads: 4,
            intermediate_size: 192,
            norm_eps: 1e-6,
        },
        text: DecoderConfig {
            vocab,
            hidden_size: 96,
            layers: (0..3).map(layer).collect(),
            norm_eps: 1e-6,
            final_softcap: Some(30.0),
            context: 256,
            eos: vec![1],
            is_tied: true,
        },
        image_token: vocab as u32 - 1,
    }
}

/// An image, a prompt and its answer, as the model reads them.
#[derive(Clone, Debug)]
pub struct ImageExample {
    /// Image tokens, `<bos>`, prompt, line break, answer, `<eos>`; only the answer and `<eos>` are learned.
    pub text: Example,
    /// Tokens up to and including the line break.
    pub prefix_len: usize,
    /// The image.
    pub pixels: Pixels,
}

impl AsRef<Example> for ImageExample {
    fn as_ref(&self) -> &Example {
        &self.text
    }
}

/// A lesson about a scene, as an example.
///
/// # Errors
/// When the tokenizer lacks a token.
pub fn example(
    lesson: &Lesson,
    pixels: Pixels,
    tokenizer: &Tokenizer,
    config: &PaliGemmaConfig,
) -> Result<ImageExample> {
    let (tokens, prefix_len) =
        prompt::answered(tokenizer, config.image_token, config.image_tokens(), &lesson.prompt, &lesson.answer)?;
    let learn = (0..tokens.len()).map(|place| place >= prefix_len).collect();
    Ok(ImageExample { text: Example::new(tokens, learn), prefix_len, pixels })
}

/// The mean loss of a few examples, in nats per token of their answers: all images through the encoder, all texts
/// through the decoder, each prompt seeing itself both ways; only the rows that are learned through the head.
pub fn loss(model: &VisionLanguageModel, examples: &[ImageExample]) -> Tensor<1> {
    let images: Vec<&Pixels> = examples.iter().map(|example| &example.pixels).collect();
    let features = model.encode(&images);
    let tokens: Vec<u32> = examples.iter().flat_map(|example| example.text.inputs().iter().copied()).collect();
    let segment =
        |example: &ImageExample| Segment::causal(0, example.text.inputs().len()).with_prefix(example.prefix_len);
    let segments: Vec<Segment> = examples.iter().map(segment).collect();
    let hidden = model.uncached_hidden_states(model.embed_with(&tokens, &features), &segments);
    let targets = examples.iter().flat_map(|example| example.text.targets()).enumerate();
    let (rows, targets): (Vec<i32>, Vec<Option<u32>>) =
        targets.filter_map(|(row, target)| target.map(|target| (row as i32, Some(target)))).unzip();
    let index = Tensor::<1, Int>::from_data(TensorData::new(rows, [targets.len()]), &hidden.device());
    cross_entropy(model.logits(hidden.select(0, index)), &targets)
}

/// Trains the model in rounds and saves it to `out` after each, which is replaced; then draws the sample images.
/// `steps` overrides the length of each round; `begun`, a folder that a training has written, is gone on from with the
/// rounds from `first` on, counted from 0.
///
/// # Errors
/// When the device, the tokenizer or a folder fail.
pub fn make(out: &Path, begun: Option<&Path>, first: usize, steps: Option<usize>, seed: u64) -> Result<()> {
    let tokenizer = make_tokenizer(seed)?;
    let config = config(tokenizer.vocab_len());
    let device = device()?;
    let mut model = match begun {
        Some(folder) => VisionLanguageModel::open_trainable(&Checkpoint::open(folder)?, &device)?,
        None => VisionLanguageModel::random(&config, RandomWeights::Dense, seed, &device.clone().autodiff()),
    };
    let codes = MaskCodes::new();
    for (index, (round, most)) in ROUNDS.into_iter().enumerate().skip(first) {
        let round = Round { steps: steps.unwrap_or(round.steps), ..round };
        // a seed of its own, so that each round brings new scenes
        let seed = seed + index as u64;
        let (mut scenes, mut random) = (scenes(seed, most, false), Random::new(seed ^ 0x5eed));
        let masks = (index >= MASKS).then_some(&codes);
        let batch = || {
            let mut one = || {
                let scene = scenes.next()?;
                let pixels = scene.draw(random.pick(&SIDES)).pixels(config.vision.image_size);
                example(&scene.lesson(&mut random, masks), pixels, &tokenizer, &config).ok()
            };
            (0..LESSONS).filter_map(|_| one()).collect()
        };
        model = round.run_with(model, batch, loss)?;
        // a folder that holds more than a model is not replaced
        let images = out.join(IMAGES);
        if images.is_dir() {
            std::fs::remove_dir_all(&images)?;
        }
        PaliGemma::from_parts(model.valid(), make_tokenizer(seed - index as u64)?).save(out, Dtype::Bf16, true)?;
        save_mask_decoder(out, &device)?;
        draw_samples(out)?;
        // judged as it will be used: as saved
        let saved = PaliGemma::load_folder(out, &Default::default(), &device)?;
        let marks = examine(&saved, EXAMINED, 1)?;
        for mark in marks.iter().filter(|mark| mark.caption != mark.scene.caption()).take(5) {
            println!("wrong: {:?}, not {:?}", mark.caption, mark.scene.caption());
        }
        println!("{}: {}", round.name, Summary::of(&marks));
    }
    Ok(())
}

/// Writes the mask decoder beside the model. Its values are exact in bf16.
fn save_mask_decoder(out: &Path, device: &Device) -> Result<()> {
    let tensors = decoder_tensors(device).map_err(anyhow::Error::msg)?;
    let mut tensors = tensors.into_iter().map(|(name, shape, values)| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
        (name, Dtype::Bf16, shape, bytes.into())
    });
    Ok(save_safetensors(&out.join(MASK_DECODER), BTreeMap::new(), &mut tensors)?)
}

/// Writes the sample images beside the model: held-out scenes with one to three shapes.
fn draw_samples(out: &Path) -> Result<()> {
    let folder = out.join(IMAGES);
    std::fs::create_dir_all(&folder)?;
    let mut held_out = scenes(7, MOST, true);
    for count in 1..=SAMPLES {
        let scene = held_out.find(|scene| scene.things.len() == count).context("scenes do not end")?;
        let mut png = Vec::new();
        scene.draw(SAMPLE_SIDE).write_png(&mut png)?;
        std::fs::write(folder.join(format!("shapes{count}.png")), png)?;
    }
    Ok(())
}

/// The tokenizer: pieces for what is said of scenes, and PaliGemma's own tokens after them.
///
/// # Errors
/// Never, in practice: the file is written here.
pub fn make_tokenizer(seed: u64) -> Result<Tokenizer> {
    let mut random = Random::new(seed);
    let text = scenes(0, MOST, false).take(5_000).flat_map(|scene| {
        let asked = scene.asking(&mut random);
        let wanted = scene.wanted(&mut random);
        [scene.caption(), prompt::caption("en"), asked.prompt, asked.answer, prompt::detect(&[wanted])]
    });
    tokenizer(&learn(&CONTROL, text, TEXT_PIECES), Family::PaliGemma)
}

/// What the model says of a held-out scene.
#[derive(Debug)]
pub struct Mark {
    /// The scene.
    pub scene: Scene,
    /// Its caption by the model.
    pub caption: String,
    /// A question, its answer, and the model's.
    pub asked: (Lesson, String),
    /// What was looked for.
    pub wanted: String,
    /// For each of them that is there, how well the model's best box covers it: intersection over union.
    pub overlaps: Vec<f32>,
    /// The same of the masks, counted in pixels.
    pub masks: Vec<f32>,
    /// Boxes of the model that cover none of them by half.
    pub invented: usize,
}

/// Asks `model` about held-out scenes.
///
/// # Errors
/// When an answer cannot be generated.
pub fn examine(model: &PaliGemma, count: usize, seed: u64) -> Result<Vec<Mark>> {
    let mut random = Random::new(seed);
    scenes(seed, MOST, true)
        .take(count)
        .map(|scene| {
            let image = scene.draw(random.pick(&SIDES));
            let view = model.encode_image(&image);
            let lesson = scene.asking(&mut random);
            let answer = view.ask(&lesson.prompt, &paligemma::GenerateOptions::greedy(32))?.text;
            let wanted = scene.wanted(&mut random);
            let boxes: Vec<BoundingBox> = view.detect(&[&wanted])?.iter().map(|found| found.bounds).collect();
            let masks = mask_overlaps(&scene, &wanted, &view)?;
            let there: Vec<BoundingBox> =
                scene.named(&wanted).iter().map(|thing| thing.bounds(image.width())).collect();
            let best = |one: &BoundingBox, others: &[BoundingBox]| {
                others.iter().map(|other| one.iou(other)).fold(0f32, f32::max)
            };
            Ok(Mark {
                caption: view.caption("en")?,
                asked: (lesson, answer),
                wanted,
                overlaps: there.iter().map(|one| best(one, &boxes)).collect(),
                masks,
                invented: boxes.iter().filter(|one| best(one, &there) < 0.5).count(),
                scene,
            })
        })
        .collect()
}

/// For each shape of that name, how well the model's best mask covers it: intersection over union, counted in pixels.
fn mask_overlaps(scene: &Scene, wanted: &str, view: &ImageFeatures<'_>) -> Result<Vec<f32>> {
    let (found, side) = (view.segment(wanted)?, view.width());
    let overlap = |thing: &Thing, mask: &Mask| {
        let (mut both, mut either) = (0, 0);
        for (x, y) in (0..side * side).map(|place| (place % side, place / side)) {
            let (should, is) = (thing.covers(x, y, side), mask.contains(x, y));
            both += usize::from(should && is);
            either += usize::from(should || is);
        }
        both as f32 / either as f32
    };
    let best = |thing: &&Thing| found.iter().map(|one| overlap(thing, &one.mask)).fold(0f32, f32::max);
    Ok(scene.named(wanted).iter().map(best).collect())
}

/// Marks in numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The part of the captions that is right, word for word.
    pub captions: f64,
    /// The part of the questions that is answered rightly.
    pub answers: f64,
    /// Mean intersection over union of the boxes of what is there.
    pub overlap: f64,
    /// Mean intersection over union of the masks of what is there.
    pub masks: f64,
    /// Boxes of nothing, per image.
    pub invented: f64,
}

impl Summary {
    /// The numbers of some marks.
    pub fn of(marks: &[Mark]) -> Self {
        let count = marks.len() as f64;
        let part = |right: &dyn Fn(&Mark) -> bool| marks.iter().filter(|mark| right(mark)).count() as f64 / count;
        let mean = |of: &dyn Fn(&Mark) -> &[f32]| {
            let values: Vec<f64> = marks.iter().flat_map(of).map(|iou| f64::from(*iou)).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        Self {
            captions: part(&|mark| mark.caption == mark.scene.caption()),
            answers: part(&|mark| mark.asked.0.answer == mark.asked.1),
            overlap: mean(&|mark| &mark.overlaps),
            masks: mean(&|mark| &mark.masks),
            invented: marks.iter().map(|mark| mark.invented).sum::<usize>() as f64 / count,
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "held-out scenes: {:.1} % of captions and {:.1} % of answers right, mean IoU of boxes {:.3}, of masks {:.3}; {:.3} \
             invented boxes per image",
            100.0 * self.captions,
            100.0 * self.answers,
            self.overlap,
            self.masks,
            self.invented
        )
    }
}
