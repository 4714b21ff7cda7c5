//! `gemma caption`, `ask`, `detect` and `segment`: questions about many images.
//!
//! The four verbs differ in their prompts only. What is known of an image is a [`Record`]: printed as text or JSON,
//! and, with `--out-dir`, a line of a file that grows as the answers come, so that a run that was cut off goes on.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use gemma_auto::{Architecture, AutoModel};
use gemma_generate::{FinishReason, GenerateOptions, TextStream};
use gemma3::Gemma3;
use indicatif::ProgressBar;
use paligemma::{BoundingBox, Detection, Image, ImageFeatures, Mask, MaskDecoder, PaliGemma, coco, draw, loc, prompt};
use serde::{Deserialize, Serialize};

use crate::{
    args::Model,
    image_files,
    interrupt::{self, Ending, Watch},
    new_file::{NewFile, refuse_dash, written_alone},
    output, progress, session,
};

/// Which images, which model, and where the answers go.
#[derive(Args, Debug)]
pub(crate) struct Images {
    /// PNG, JPEG, WebP, GIF, BMP or TIFF files; folders, for all images in them; patterns such as 'shots/*.png'; or demo: for
    /// the images that are built in.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<OsString>,

    /// Write COMMAND.jsonl into this folder as the answers come; images that it holds already are skipped.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out_dir: Option<PathBuf>,

    /// Print one JSON array when all images are done.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print one JSON object per image as it is done.
    #[arg(long, conflicts_with = "json")]
    pub(crate) jsonl: bool,

    /// Stop an answer after this many tokens.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512)]
    pub(crate) max_tokens: usize,

    #[command(flatten)]
    pub(crate) model: Model,
}

/// How things that were found in images are shown.
#[derive(Args, Debug)]
pub(crate) struct Objects {
    /// Print one JSON object in the format of the COCO data set when all images are done.
    ///
    /// With --out-dir it is written to COMMAND.coco.json there instead.
    #[arg(long, conflicts_with_all = ["json", "jsonl"])]
    pub(crate) coco: bool,

    /// Draw what was found onto a copy of each image, NAME.WHAT.COMMAND.png in --out-dir; answers that lie there are drawn,
    /// too.
    #[arg(long, requires = "out_dir")]
    pub(crate) draw: bool,

    /// Write each thing that was found as an image of its own, NAME.WHAT.NUMBER.COMMAND.png in --out-dir.
    #[arg(long, requires = "out_dir")]
    pub(crate) crop: bool,
}

/// Describe images in a sentence each.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma caption demo:
  gemma caption --model google/gemma-3-4b-it holiday/
  gemma caption --model google/paligemma-3b-mix-224 --lang de holiday/*.jpg
  gemma caption --model DIR --out-dir captions 'archive/*.png'     thousands; may be stopped and started again

Without --model, a tiny built-in model looks at the images, which knows coloured shapes only.
An image that cannot be read is reported and left out; the others are done, and the exit code is 2.")]
pub(crate) struct Caption {
    /// The language of the answer, as a code such as en, de or fr.
    #[arg(short, long, value_name = "CODE", default_value = "en")]
    pub(crate) lang: String,

    #[command(flatten)]
    pub(crate) images: Images,
}

/// Ask questions about images.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma ask \"how many shapes are there?\" demo:
  gemma ask --model google/paligemma-3b-mix-224 -q \"what is the man doing?\" -q \"what color is his hat?\" a.jpg
  gemma ask --model google/paligemma-3b-mix-448 --ocr letters/
  gemma ask --model DIR --prompt \"caption es\" a.png

Without -q, --ocr and --prompt, the first argument is the question and the others are images. Several questions about an
image cost looking at it once.")]
pub(crate) struct Ask {
    /// A question; may be given several times. Without it, the first argument is the question.
    #[arg(short, long = "question", value_name = "TEXT")]
    pub(crate) question: Vec<String>,

    /// Read the text in the image.
    #[arg(long)]
    pub(crate) ocr: bool,

    /// A prompt that is given to the model as it stands; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,

    /// The language of the answer, as a code such as en, de or fr.
    #[arg(short, long, value_name = "CODE", default_value = "en")]
    pub(crate) lang: String,

    #[command(flatten)]
    pub(crate) images: Images,
}

/// Find things in images: a box and a probability for each.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma detect shape demo:
  gemma detect shape --out-dir found --draw demo:
  gemma detect \"red circle\" shots/*.png
  gemma detect --model google/paligemma-3b-mix-448 -w cat -w dog --coco pets/ > pets.json

Boxes are in pixels of the image: left, upper, right and lower edge (in JSON [x, y, width, height], as COCO has it).")]
pub(crate) struct Detect {
    /// What to look for; may be given several times. Without it, the first argument says it.
    #[arg(short = 'w', long = "what", value_name = "TEXT")]
    pub(crate) things: Vec<String>,

    #[command(flatten)]
    pub(crate) objects: Objects,

    #[command(flatten)]
    pub(crate) images: Images,
}

/// Find things in images, and which pixels belong to them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma segment \"red circle\" demo:
  gemma segment shape --out-dir masks --draw demo:                     masks/*.png show the masks
  gemma segment --model google/paligemma-3b-mix-448 --mask-decoder vae-oid.npz cat pets/
  gemma segment --model google/paligemma-3b-mix-448 --mask-decoder vae-oid.npz -w cat --coco pets/ > cats.json

The demo model has its mask decoder built in. That of the published checkpoints is a file of its own, 22 MB, published
with big_vision: https://storage.googleapis.com/big_vision/paligemma/vae-oid.npz. It is found in the model's folder or
named by --mask-decoder (a safetensors file with the same tensors will do). In JSON a mask is COCO's run lengths.")]
pub(crate) struct Segment {
    /// What to look for; may be given several times. Without it, the first argument says it.
    #[arg(short = 'w', long = "what", value_name = "TEXT")]
    pub(crate) things: Vec<String>,

    /// The weights of the mask decoder: vae-oid.npz, or a safetensors file.
    #[arg(long, value_name = "FILE")]
    pub(crate) mask_decoder: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) objects: Objects,

    #[command(flatten)]
    pub(crate) images: Images,
}

/// What was said of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    file: String,
    width: usize,
    height: usize,
    answers: Vec<Answer>,
}

/// One prompt and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Answer {
    prompt: String,
    /// What the model said, as it said it.
    text: String,
    /// What it says there is, where that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    objects: Option<Vec<coco::Object>>,
}

/// What a verb asks, and what becomes of the answers.
struct Task<'a> {
    verb: &'static str,
    /// As PaliGemma was trained on them.
    prompts: Vec<String>,
    /// What is looked for, as it stands in names of files.
    slug: String,
    /// The same in words, for a model that talks; empty where only PaliGemma can answer.
    questions: Vec<String>,
    /// Whether answers are looked through for boxes, and for masks.
    finds: Finds,
    /// The arguments that name images.
    names: Vec<OsString>,
    images: &'a Images,
    objects: Option<&'a Objects>,
}

impl<'a> Task<'a> {
    /// Nothing asked yet.
    fn new(images: &'a Images) -> Self {
        Self {
            verb: "",
            prompts: Vec::new(),
            slug: String::new(),
            questions: Vec::new(),
            finds: Finds::Words,
            names: images.images.clone(),
            images,
            objects: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Finds {
    Words,
    Boxes,
    Masks,
}

pub(crate) fn caption(args: &Caption) -> Result<Ending> {
    let prompts = vec![prompt::caption(&args.lang)];
    let questions = vec![gemma3::prompt::caption(&args.lang)];
    run(&Task { verb: "caption", prompts, questions, ..Task::new(&args.images) }, None)
}

pub(crate) fn ask(args: &Ask) -> Result<Ending> {
    let mut names = args.images.images.clone();
    let mut asked = args.question.clone();
    if asked.is_empty() && args.prompt.is_empty() && !args.ocr {
        asked.push(image_files::take_text(&mut names, "a question", "--question (or --ocr, --prompt)")?);
    }
    let mut prompts: Vec<String> = asked.iter().map(|question| prompt::answer(&args.lang, question)).collect();
    prompts.extend(args.prompt.iter().cloned());
    prompts.extend(args.ocr.then(prompt::ocr));
    let mut questions: Vec<String> =
        asked.iter().map(|question| gemma3::prompt::answer(&args.lang, question)).collect();
    questions.extend(args.prompt.iter().cloned());
    questions.extend(args.ocr.then(|| "Write down the text in the image, and nothing else.".to_owned()));
    run(&Task { verb: "ask", prompts, questions, names, ..Task::new(&args.images) }, None)
}

/// What to look for, and the arguments that name images.
fn things(things: &[String], images: &Images) -> Result<(Vec<String>, Vec<OsString>)> {
    let (mut things, mut names) = (things.to_vec(), images.images.clone());
    if things.is_empty() {
        things.push(image_files::take_text(&mut names, "what to look for", "--what")?);
    }
    Ok((things, names))
}

pub(crate) fn detect(args: &Detect) -> Result<Ending> {
    let (things, names) = things(&args.things, &args.images)?;
    let (prompts, objects, slug) = (vec![prompt::detect(&things)], Some(&args.objects), slug(&things));
    let task = Task { verb: "detect", prompts, slug, finds: Finds::Boxes, names, objects, ..Task::new(&args.images) };
    run(&task, None)
}

pub(crate) fn segment(args: &Segment) -> Result<Ending> {
    let (things, names) = things(&args.things, &args.images)?;
    let prompts = things.iter().map(|thing| prompt::segment(thing)).collect();
    let (objects, slug) = (Some(&args.objects), slug(&things));
    let task = Task { verb: "segment", prompts, slug, finds: Finds::Masks, names, objects, ..Task::new(&args.images) };
    run(&task, args.mask_decoder.as_deref())
}

fn run(task: &Task<'_>, mask_decoder: Option<&Path>) -> Result<Ending> {
    let files = image_files::find(&task.names)?;
    let options = GenerateOptions::greedy(task.images.max_tokens);
    options.check()?;
    let mut store = task.images.out_dir.as_deref().map(|folder| Store::open(folder, task)).transpose()?;
    let left = files.iter().filter(|file| store.as_ref().is_none_or(|store| store.get(file).is_none())).count();
    match (left, files.len()) {
        (left, all) if left == all => {}
        (0, 1) => output::complain("the image was done before"),
        (0, all) => output::complain(format_args!("all {all} images were done before")),
        (left, all) => output::remark(format_args!("[{} of {all} images were done before]", all - left)),
    }
    // a run that has nothing left to do need not load a model
    let mut model = if left > 0 { Some(open(task, mask_decoder)?) } else { None };
    let bar = if left > 0 { progress::images(left) } else { ProgressBar::hidden() };
    let watch = interrupt::watch();
    let (mut records, mut faults) = (Vec::new(), Vec::new());
    for file in &files {
        if let Some(record) = store.as_ref().and_then(|store| store.get(file)) {
            if let Err(error) = draw_kept(record, file, task) {
                eprintln!("error: {}", output::one_line(&error));
                faults.push(file.display().to_string());
            }
            records.push(record.clone());
            continue;
        }
        let Some(model) = &mut model else { continue };
        if watch.pressed() {
            break;
        }
        match encode_image(model, task, file, &options, &watch) {
            Ok(Some(record)) => {
                if let Some(store) = &mut store {
                    store.add(&record)?;
                }
                bar.suspend(|| shown(&record, task))?;
                records.push(record);
            }
            Ok(None) => break,
            // an image that cannot be used does not stop the others; a model that cannot answer would fail on all
            Err(error) if files.len() == 1 => return Err(error),
            Err(error) => {
                bar.suspend(|| eprintln!("error: {}", output::one_line(&error)));
                faults.push(file.display().to_string());
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let interrupted = watch.pressed();
    if !interrupted {
        finish(&records, task)?;
    }
    match faults.as_slice() {
        _ if interrupted => Ok(Ending::Interrupted),
        [] => Ok(Ending::Done),
        [one] => bail!("1 of {} images was left out: {one}", files.len()),
        [first, .., last] => {
            bail!("{} of {} images were left out, from {first} to {last}", faults.len(), files.len())
        }
    }
}

/// A model that sees images.
enum Viewer {
    PaliGemma(PaliGemma),
    Gemma3(Gemma3),
}

/// Opens the model, and the decoder of masks where one is needed.
fn open(task: &Task<'_>, mask_decoder: Option<&Path>) -> Result<Viewer> {
    let found = session::find_images(&task.images.model)?;
    if found.architecture()? == Architecture::Gemma3 {
        if task.questions.is_empty() {
            bail!(
                "`gemma {}` needs a PaliGemma such as google/paligemma-3b-mix-448; Gemma 3 gives no boxes, ask it with \
                 `gemma ask`",
                task.verb
            );
        }
        return match found.open()?.model {
            AutoModel::Gemma3(model) => Ok(Viewer::Gemma3(model)),
            _ => unreachable!("the architecture is that of Gemma 3"),
        };
    }
    let model = found.open_images()?;
    let model = match mask_decoder {
        Some(file) => {
            let device = paligemma::Network::device(model.network());
            model.with_mask_decoder(MaskDecoder::open(file, &device)?)
        }
        None => model,
    };
    if task.finds == Finds::Masks {
        model.mask_decoder()?;
    }
    Ok(Viewer::PaliGemma(model))
}

/// Asks everything about one image; `None` when Ctrl-C came in between.
fn encode_image(
    viewer: &Viewer,
    task: &Task<'_>,
    file: &Path,
    options: &GenerateOptions,
    watch: &Watch,
) -> Result<Option<Record>> {
    let image = image_files::open(file)?;
    let (width, height) = (image.width(), image.height());
    let model = match viewer {
        Viewer::PaliGemma(model) => model,
        Viewer::Gemma3(model) => return in_words(model, task, file, &image, options, watch),
    };
    let view = model.encode_image(&image);
    let mut record = Record { file: image_files::shown(file), width, height, answers: Vec::new() };
    for prompt in &task.prompts {
        let Some(mut answer) = answer(model, &view, prompt, options, watch)? else { return Ok(None) };
        if task.finds != Finds::Words {
            let objects = std::mem::take(&mut answer.1);
            let found = if task.finds == Finds::Boxes {
                Detection::of(&objects, width, height).iter().map(coco::Object::from).collect()
            } else {
                let found = model.segmentations(&objects, width, height)?;
                found.iter().map(|found| coco::Object::with_mask(found, width, height)).collect()
            };
            answer.0.objects = Some(found);
        }
        record.answers.push(answer.0);
    }
    draw_found(&record, file, &image, task)?;
    Ok(Some(record))
}

/// Draws and cuts out what a record of a run before found, where that was asked for and is not there yet.
fn draw_kept(record: &Record, file: &Path, task: &Task<'_>) -> Result<()> {
    let (Some(folder), Some(objects)) = (&task.images.out_dir, task.objects) else { return Ok(()) };
    let is_there = |number| drawn_name(folder, file, &task.slug, number, task.verb).exists();
    let drawn = !objects.draw || is_there(None);
    let cut = !objects.crop || (1..=found_in(record).count()).all(|number| is_there(Some(number)));
    if drawn && cut {
        return Ok(());
    }
    let image = image_files::open(file)?;
    if (image.width(), image.height()) != (record.width, record.height) {
        bail!("{} is another image than the one that was looked at; use another --out-dir", file.display());
    }
    draw_found(record, file, &image, task)
}

/// What a record says was found.
fn found_in(record: &Record) -> impl Iterator<Item = &coco::Object> {
    record.answers.iter().flat_map(|answer| answer.objects.iter().flatten())
}

/// Writes the drawn copy of an image, and what is cut out of it, as far as that was asked for.
fn draw_found(record: &Record, file: &Path, image: &Image, task: &Task<'_>) -> Result<()> {
    let (Some(folder), Some(objects)) = (&task.images.out_dir, task.objects) else { return Ok(()) };
    let write = |image: &Image, number| -> Result<()> {
        let mut to = NewFile::open(&drawn_name(folder, file, &task.slug, number, task.verb))?;
        image.write_png(to.as_file_mut()).context("cannot write a drawn image")?;
        Ok(to.finish()?)
    };
    let found: Vec<(&str, BoundingBox, Option<Mask>)> = found_in(record)
        .map(|object| {
            let mask = object.segmentation.as_ref().and_then(coco::RunLengths::mask);
            (object.label.as_str(), bounds(object.bbox), mask)
        })
        .collect();
    if objects.draw {
        let shown = found.iter().map(|(label, bounds, mask)| (*label, bounds, mask.as_ref()));
        write(&draw(image, shown), None)?;
    }
    if objects.crop {
        for (index, (_, bounds, _)) in found.iter().enumerate() {
            let [x_min, y_min, x_max, y_max] = bounds.whole_pixels();
            let (right, lower) = (x_max.min(image.width()), y_max.min(image.height()));
            if let Some(part) = image.crop([x_min, y_min, right, lower]) {
                write(&part, Some(index + 1))?;
            }
        }
    }
    Ok(())
}

/// The box of `[x, y, width, height]`, in thousandths of a pixel: a sum of two differences is not as exact as its terms.
fn bounds(bbox: [f32; 4]) -> BoundingBox {
    let thousandth = |edge: f32| (edge * 1e3).round() / 1e3;
    let BoundingBox { x_min, y_min, x_max, y_max } = coco::bounds(bbox);
    BoundingBox { x_min, y_min, x_max: thousandth(x_max), y_max: thousandth(y_max) }
}

/// What is looked for, as a part of a file's name: `red_circle`, `cat+dog`. Things that would meet keep apart by a digest.
fn slug(things: &[String]) -> String {
    const MOST: usize = 40;
    let is_plain = |c: char| c == ' ' || c == '-' || (c.is_alphanumeric() && !c.is_uppercase());
    let exact = things.iter().all(|thing| thing.chars().all(is_plain));
    let letter = |c: char| match c {
        ' ' => '_',
        c if c.is_alphanumeric() => c,
        _ => '-',
    };
    let words: Vec<String> = things.iter().map(|thing| thing.chars().map(letter).collect()).collect();
    let whole = words.join("+");
    let slug: String = whole.chars().take(MOST).collect();
    if exact && slug == whole { slug } else { format!("{slug}.{:08x}", digest(things.join("\n").as_bytes())) }
}

/// A digest that tells texts apart (FNV-1a).
fn digest(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5_u32, |digest, byte| (digest ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Asks a model that talks everything about one image; `None` when Ctrl-C came in between.
fn in_words(
    model: &Gemma3,
    task: &Task<'_>,
    file: &Path,
    image: &Image,
    options: &GenerateOptions,
    watch: &Watch,
) -> Result<Option<Record>> {
    let encoded = model.encode_image(image);
    let mut answers = Vec::new();
    for question in &task.questions {
        let made = model.stream(&[&encoded], question, options)?.with_cancel(watch.flag()).finish()?;
        if made.finish_reason == FinishReason::Cancelled {
            return Ok(None);
        }
        answers.push(Answer { prompt: question.clone(), text: made.text.trim().to_owned(), objects: None });
    }
    Ok(Some(Record { file: image_files::shown(file), width: image.width(), height: image.height(), answers }))
}

/// Where the drawn copy of an image goes: `one.jpg.cat.detect.png`, or what is cut out of it: `one.jpg.cat.1.detect.png`.
/// Images of one name keep apart by their endings; those of other folders by the folders' names and a digest of the path,
/// since `../one.jpg`, `a/b.jpg` and `a_b.jpg` would meet.
fn drawn_name(folder: &Path, file: &Path, slug: &str, number: Option<usize>, verb: &str) -> PathBuf {
    let plain = |part: std::path::Component<'_>| match part {
        std::path::Component::Normal(name) => Some(image_files::shown(Path::new(name))),
        _ => None,
    };
    let parts: Vec<String> = file.components().filter_map(plain).collect();
    // no colon: that of demo:shapes1.png is no part of a file's name everywhere
    let name = parts.join("_").replace(':', "_");
    let number = number.map(|number| format!(".{number}")).unwrap_or_default();
    let end = format!("{slug}{number}.{verb}.png");
    if file.components().count() == 1 && parts.len() == 1 {
        return folder.join(format!("{name}.{end}"));
    }
    folder.join(format!("{name}.{:08x}.{end}", digest(file.as_os_str().as_encoded_bytes())))
}

/// One prompt about an image; `None` when Ctrl-C came in between.
fn answer(
    model: &PaliGemma,
    view: &ImageFeatures<'_>,
    prompt: &str,
    options: &GenerateOptions,
    watch: &Watch,
) -> Result<Option<(Answer, Vec<loc::Object>)>> {
    let stream: TextStream<'_, '_, _> = model.stream(&[view], prompt, options)?;
    let made = stream.with_cancel(watch.flag()).finish()?;
    if made.finish_reason == FinishReason::Cancelled {
        return Ok(None);
    }
    let items = loc::items_of_tokens(model.tokenizer()?, &made.tokens, &made.logprobs);
    Ok(Some((Answer { prompt: prompt.to_owned(), text: made.text, objects: None }, loc::objects(&items))))
}

/// Prints a record as soon as it is there, unless the whole is printed at the end.
fn shown(record: &Record, task: &Task<'_>) -> Result<()> {
    if task.images.jsonl {
        return output::json(record);
    }
    if task.images.json || task.objects.is_some_and(|objects| objects.coco) {
        return Ok(());
    }
    for answer in &record.answers {
        match &answer.objects {
            None if task.prompts.len() == 1 => output::line(format_args!("{}: {}", record.file, answer.text))?,
            None => output::line(format_args!("{}: {}: {}", record.file, answer.prompt, answer.text))?,
            Some(objects) if objects.is_empty() => output::line(format_args!("{}: nothing found", record.file))?,
            Some(objects) => {
                for object in objects {
                    let [x, y, width, height] = object.bbox;
                    let score = object.score.map(|score| format!("  {:.0} %", 100.0 * score)).unwrap_or_default();
                    let (right, lower) = (x + width, y + height);
                    let label = &object.label;
                    let mask = object.segmentation.as_ref().map(|mask| format!("  mask of {} pixels", mask.area()));
                    let mask = mask.unwrap_or_default();
                    output::line(format_args!(
                        "{}: {label}  {x:.0} {y:.0} {right:.0} {lower:.0}{score}{mask}",
                        record.file
                    ))?;
                }
            }
        }
    }
    Ok(())
}

/// What is printed or written when all images are done.
fn finish(records: &[Record], task: &Task<'_>) -> Result<()> {
    if task.images.json {
        return output::json(&records);
    }
    if !task.objects.is_some_and(|objects| objects.coco) {
        return Ok(());
    }
    let gathered: Vec<(&Record, Vec<coco::Object>)> = records
        .iter()
        .map(|record| {
            (record, record.answers.iter().flat_map(|answer| answer.objects.clone().unwrap_or_default()).collect())
        })
        .collect();
    let set = coco::dataset(
        gathered
            .iter()
            .map(|(record, objects)| (record.file.as_str(), record.width, record.height, objects.as_slice())),
    );
    let Some(folder) = &task.images.out_dir else { return output::json(&set) };
    let mut file = NewFile::open(&folder.join(format!("{}.coco.json", task.verb)))?;
    let written = serde_json::to_writer(file.as_file_mut(), &set);
    written.with_context(|| format!("cannot write {}", file.path().display()))?;
    Ok(file.finish()?)
}

/// Most bytes of a record.
const LONGEST_RECORD: u64 = 64 << 20;

/// The file of records in an output folder: a line for each image that is done.
struct Store {
    path: PathBuf,
    file: File,
    /// Records of the same prompts, by file.
    known: BTreeMap<String, Record>,
    /// Whether the file was made by this run, and the folder if that was.
    is_new: bool,
    made: Option<PathBuf>,
}

/// A run that wrote nothing leaves nothing: no file, and no folder that it made.
impl Drop for Store {
    fn drop(&mut self) {
        if self.is_new && self.file.metadata().is_ok_and(|data| data.len() == 0) {
            let _ = fs::remove_file(&self.path);
            // not where something else lies in it by now
            if let Some(folder) = &self.made {
                let _ = fs::remove_dir(folder);
            }
        }
    }
}

impl Store {
    /// Opens the file, made if it is not there, and reads what it holds. A line without an end, which a run that was
    /// killed has left, is cut off.
    fn open(folder: &Path, task: &Task<'_>) -> Result<Self> {
        refuse_dash(folder)?;
        let made = (!folder.exists()).then(|| folder.to_owned());
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let path = folder.join(format!("{}.jsonl", task.verb));
        let unusable = || format!("cannot use {}", path.display());
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).with_context(unusable)?;
        written_alone(&file, &path)?;
        let (mut known, mut end, mut line) = (BTreeMap::new(), 0, Vec::new());
        let mut reader = BufReader::new(&file);
        loop {
            line.clear();
            let count = reader.by_ref().take(LONGEST_RECORD).read_until(b'\n', &mut line).with_context(unusable)?;
            if count as u64 == LONGEST_RECORD {
                bail!("{}: a line is longer than any record of this program; use another --out-dir", path.display());
            }
            if count == 0 || !line.ends_with(b"\n") {
                break;
            }
            end += count as u64;
            let record: Record = serde_json::from_slice(&line).with_context(|| {
                format!("{}: a line is no record of this program; use another --out-dir", path.display())
            })?;
            // records of other questions stay in the file and do not count
            let asked = || record.answers.iter().map(|answer| &answer.prompt);
            if asked().eq(&task.prompts) || asked().eq(&task.questions) {
                known.insert(record.file.clone(), record);
            }
        }
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).with_context(unusable)?;
        Ok(Self { path, file, known, is_new, made })
    }

    fn get(&self, file: &Path) -> Option<&Record> {
        self.known.get(&image_files::shown(file))
    }

    /// Appends a record and waits until it is on the disk.
    fn add(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drawings_keep_questions_apart() {
        let of = |things: &[&str]| slug(&things.iter().map(|thing| (*thing).to_owned()).collect::<Vec<_>>());
        assert_eq!((of(&["red circle"]).as_str(), of(&["cat", "dog"]).as_str()), ("red_circle", "cat+dog"));
        let all = ["red circle", "red_circle", "Red circle", "red/circle", "cat+dog", "../x", &"x".repeat(50)];
        let mut names: Vec<String> = all.iter().map(|thing| of(&[thing])).chain([of(&["cat", "dog"])]).collect();
        assert!(names.iter().all(|name| !name.contains(['/', '\\']) && name.len() < 60), "{names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len() + 1, "{names:?}");
    }
}
