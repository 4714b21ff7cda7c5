//! The verbs that look at images.

use std::path::PathBuf;

use clap::Args;

use super::Model;

/// Which images, which model, and where the answers go.
#[derive(Args, Debug)]
pub(crate) struct Images {
    /// PNG, JPEG or WebP files; folders, for all images in them; or patterns such as 'shots/*.png'.
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
  gemma caption models/paligemma/demo/images
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
  gemma ask -q \"how many shapes are there?\" models/paligemma/demo/images
  gemma ask --model google/paligemma-3b-mix-224 -q \"what is the man doing?\" -q \"what color is his hat?\" a.jpg
  gemma ask --model google/paligemma-3b-mix-448 --ocr letters/
  gemma ask --model DIR --prompt \"caption es\" a.png

Several questions about an image cost looking at it once.")]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) images: Images,

    /// A question; may be given several times.
    #[arg(short, long = "question", value_name = "TEXT", required_unless_present_any = ["prompt", "ocr"])]
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
  gemma detect -w shape models/paligemma/demo/images
  gemma detect -w shape --out-dir found --draw models/paligemma/demo/images
  gemma detect --model google/paligemma-3b-mix-448 -w cat -w dog --coco pets/ > pets.json

Boxes are in pixels of the image: left, upper, right and lower edge (in JSON [x, y, width, height], as COCO has it).")]
pub(crate) struct Detect {
    #[command(flatten)]
    pub(crate) images: Images,

    /// What to look for; may be given several times.
    #[arg(short = 'w', long = "what", value_name = "TEXT", required = true)]
    pub(crate) things: Vec<String>,

    #[command(flatten)]
    pub(crate) objects: Objects,
}

/// Find things in images, and which pixels belong to them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma segment --model google/paligemma-3b-mix-448 --mask-decoder vae-oid.npz -w cat --out-dir masks --draw pets/

The decoder of masks is a file of its own, vae-oid.npz, published with big_vision; it is found in the model's folder or
named by --mask-decoder (a safetensors file with the same tensors will do). In JSON a mask is COCO's run lengths.")]
pub(crate) struct Segment {
    #[command(flatten)]
    pub(crate) images: Images,

    /// What to look for; may be given several times.
    #[arg(short = 'w', long = "what", value_name = "TEXT", required = true)]
    pub(crate) things: Vec<String>,

    /// The weights of the mask decoder: vae-oid.npz, or a safetensors file.
    #[arg(long, value_name = "FILE")]
    pub(crate) mask_decoder: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) objects: Objects,
}
