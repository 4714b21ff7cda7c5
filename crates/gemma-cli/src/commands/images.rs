//! `gemma caption`, `ask`, `detect` and `segment`: questions about many images.
//!
//! The four verbs differ in their prompts only. What is known of an image is a [`Record`]: printed as text or JSON,
//! and, with `--out-dir`, a line of a file that grows as the answers come, so that a run that was cut off goes on.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use gemma_auto::{Architecture, AutoModel};
use gemma_generate::{FinishReason, GenerateOptions, TextStream};
use gemma3::Gemma3;
use paligemma::{
    BoundingBox, Detection, Image, ImageFeatures, MaskDecoder, PaliGemma, Segmentation, coco, draw, loc, prompt,
};
use serde::{Deserialize, Serialize};

use crate::{
    args::Model,
    image_files,
    interrupt::{self, Ending, Watch},
    new_file::{NewFile, written_alone},
    output, progress, session,
};

/// Which images, which model, and where the answers go.
#[derive(Args, Debug)]
pub(crate) struct Images {
    /// PNG, JPEG, WebP, GIF, BMP or TIFF files; folders, for all images in them; patterns such as 'shots/*.png'; or demo: for
    /// the images that are built in.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,

    /// Write VERB.jsonl into this folder as the answers come; images that it holds already are skipped.
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
    /// With --out-dir it is written to VERB.coco.json there instead.
    #[arg(long, conflicts_with_all = ["json", "jsonl"])]
    pub(crate) coco: bool,

    /// Draw what was found onto a copy of each image, NAME.VERB.png in --out-dir.
    #[arg(long, requires = "out_dir")]
    pub(crate) draw: bool,
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
    #[command(flatten)]
    pub(crate) images: Images,

    /// The language of the answer, as a code such as en, de or fr.
    #[arg(short, long, value_name = "CODE", default_value = "en")]
    pub(crate) lang: String,
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
    #[command(flatten)]
    pub(crate) images: Images,

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
    #[command(flatten)]
    pub(crate) images: Images,

    /// What to look for; may be given several times. Without it, the first argument says it.
    #[arg(short = 'w', long = "what", value_name = "TEXT")]
    pub(crate) things: Vec<String>,

    #[command(flatten)]
    pub(crate) objects: Objects,
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
    #[command(flatten)]
    pub(crate) images: Images,

    /// What to look for; may be given several times. Without it, the first argument says it.
    #[arg(short = 'w', long = "what", value_name = "TEXT")]
    pub(crate) things: Vec<String>,

    /// The weights of the mask decoder: vae-oid.npz, or a safetensors file.
    #[arg(long, value_name = "FILE")]
    pub(crate) mask_decoder: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) objects: Objects,
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
    /// The same in words, for a model that talks; empty where only PaliGemma can answer.
    questions: Vec<String>,
    /// Whether answers are looked through for boxes, and for masks.
    finds: Finds,
    /// The arguments that name images.
    names: Vec<String>,
    images: &'a Images,
    objects: Option<&'a Objects>,
}

impl<'a> Task<'a> {
    /// Nothing asked yet.
    fn new(images: &'a Images) -> Self {
        Self {
            verb: "",
            prompts: Vec::new(),
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
fn things(things: &[String], images: &Images) -> Result<(Vec<String>, Vec<String>)> {
    let (mut things, mut names) = (things.to_vec(), images.images.clone());
    if things.is_empty() {
        things.push(image_files::take_text(&mut names, "what to look for", "--what")?);
    }
    Ok((things, names))
}

pub(crate) fn detect(args: &Detect) -> Result<Ending> {
    let (things, names) = things(&args.things, &args.images)?;
    let (prompts, objects) = (vec![prompt::detect(&things)], Some(&args.objects));
    run(&Task { verb: "detect", prompts, finds: Finds::Boxes, names, objects, ..Task::new(&args.images) }, None)
}

pub(crate) fn segment(args: &Segment) -> Result<Ending> {
    let (things, names) = things(&args.things, &args.images)?;
    let prompts = things.iter().map(|thing| prompt::segment(thing)).collect();
    let objects = Some(&args.objects);
    let task = Task { verb: "segment", prompts, finds: Finds::Masks, names, objects, ..Task::new(&args.images) };
    run(&task, args.mask_decoder.as_deref())
}

fn run(task: &Task<'_>, mask_decoder: Option<&Path>) -> Result<Ending> {
    let files = image_files::find(&task.names)?;
    let options = GenerateOptions::greedy(task.images.max_tokens);
    options.check()?;
    let mut store = task.images.out_dir.as_deref().map(|folder| Store::open(folder, task)).transpose()?;
    let left = files.iter().filter(|file| store.as_ref().is_none_or(|store| store.get(file).is_none())).count();
    if left < files.len() {
        output::remark(format!("[{} of {} images were done before]", files.len() - left, files.len()));
    }
    // a run that has nothing left to do need not load a model
    let mut model = if left > 0 { Some(open(task, mask_decoder)?) } else { None };
    let (watch, bar) = (interrupt::watch(), progress::images(left));
    let (mut records, mut faults) = (Vec::new(), Vec::new());
    for file in &files {
        if let Some(record) = store.as_ref().and_then(|store| store.get(file)) {
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
    let mut record = Record { file: file.display().to_string(), width, height, answers: Vec::new() };
    let mut drawn: Vec<(String, BoundingBox, Option<paligemma::Mask>)> = Vec::new();
    for prompt in &task.prompts {
        let Some(mut answer) = answer(model, &view, prompt, options, watch)? else { return Ok(None) };
        if task.finds != Finds::Words {
            let objects = std::mem::take(&mut answer.1);
            let found = if task.finds == Finds::Boxes {
                let found = Detection::of(&objects, width, height);
                drawn.extend(found.iter().map(|found| (found.label.clone(), found.bounds, None)));
                found.iter().map(coco::Object::from).collect()
            } else {
                let found = model.segmentations(&objects, width, height)?;
                let json = |found: &Segmentation| coco::Object::with_mask(found, width, height);
                let json = found.iter().map(json).collect();
                drawn.extend(found.into_iter().map(|found| (found.label, found.bounds, Some(found.mask))));
                json
            };
            answer.0.objects = Some(found);
        }
        record.answers.push(answer.0);
    }
    if let (Some(folder), true) = (&task.images.out_dir, task.objects.is_some_and(|objects| objects.draw)) {
        let objects = drawn.iter().map(|(label, bounds, mask)| (label.as_str(), bounds, mask.as_ref()));
        let mut to = NewFile::open(&drawn_name(folder, file, task.verb))?;
        draw(&image, objects).write_png(to.as_file_mut()).context("cannot write a drawn image")?;
        to.finish()?;
    }
    Ok(Some(record))
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
    Ok(Some(Record { file: file.display().to_string(), width: image.width(), height: image.height(), answers }))
}

/// Where the drawn copy of an image goes: `one.jpg.detect.png`. Images of one name keep apart by their endings; those of
/// other folders by the folders' names and a digest of the path, since `../one.jpg`, `a/b.jpg` and `a_b.jpg` would meet.
fn drawn_name(folder: &Path, file: &Path, verb: &str) -> PathBuf {
    let plain = |part: std::path::Component<'_>| match part {
        std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    };
    let parts: Vec<String> = file.components().filter_map(plain).collect();
    // no colon: that of demo:shapes1.png is no part of a file's name everywhere
    let name = parts.join("_").replace(':', "_");
    if file.components().count() == 1 && parts.len() == 1 {
        return folder.join(format!("{name}.{verb}.png"));
    }
    let digest = file
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |digest, byte| (digest ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    folder.join(format!("{name}.{digest:08x}.{verb}.png"))
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
        self.known.get(&file.display().to_string())
    }

    /// Appends a record and waits until it is on the disk.
    fn add(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}
