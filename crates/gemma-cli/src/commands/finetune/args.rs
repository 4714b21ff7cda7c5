//! The flags of `gemma finetune`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::args::{Model, at_least_one};

/// Reads an integer from 1 to `most`.
fn up_to(most: usize) -> impl Fn(&str) -> Result<NonZeroUsize, String> + Clone {
    move |text| {
        let refused = || format!("must be an integer from 1 to {most}");
        at_least_one(text).ok().filter(|count| count.get() <= most).ok_or_else(refused)
    }
}

/// Reads a number from `least` to `most`.
fn between(least: f64, most: f64) -> impl Fn(&str) -> Result<f64, String> + Clone {
    move |text| {
        let number = text.parse::<f64>().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("must be a number from {least} to {most}"))
    }
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// LoRA matrices beside the weights, which stay as they are stored (QLoRA where those are quantized).
    Lora,
    /// Every parameter, in f32: for small models.
    Full,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScheduleName {
    /// Along half a cosine.
    Cosine,
    /// Along a line.
    Linear,
    /// Not at all.
    Constant,
}

/// Fine-tune a model on your data: LoRA, QLoRA or every parameter.
#[derive(Args, Debug)]
#[command(mut_arg("mmproj", |arg| arg.hide(true)), after_help = "\
Data is JSONL, one of these in each line:
  {\"text\": \"...\"}                                          all of it is learned
  {\"prompt\": \"...\", \"completion\": \"...\"}                 the completion is learned
  {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}, ...]}  what the assistant says is learned
  {\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}  the better answer is preferred (DPO)
  {\"image\": \"a.jpg\", \"prefix\": \"...\", \"suffix\": \"...\"}   the suffix is learned (PaliGemma)
  {\"query\": \"...\", \"positive\": \"...\"}                   the two belong together (EmbeddingGemma)
With PaliGemma it may also be a COCO file of instances, whose boxes are learned (`detect`).
With a CodeGemma model it may also be a source file or a folder of them: holes are cut and their middles learned.

Examples:
  gemma finetune --data poems.jsonl --out poems-lora --steps 50
  gemma finetune --model google/gemma-2-2b --precision q4_0 --data chats.jsonl --out my-lora --epochs 2 --eval held-out.jsonl
  gemma finetune --model demo:codegemma --data src --out code-lora
  gemma finetune --model google/embeddinggemma-300m --data pairs.jsonl --out search-lora --epochs 3 --eval held-out.jsonl
  gemma finetune --model demo:paligemma --data instances.json --image-folder images --out boxes-lora
  gemma finetune --data poems.jsonl --out poems-lora --steps 500 --dry-run
  gemma finetune --data poems.jsonl --out poems-lora --steps 500 --resume       after Ctrl-C, or for more steps
  gemma generate --adapter poems-lora \"Roses\"

OUT gets adapter_config.json and adapter_model.safetensors, which PEFT reads (--method full: a model folder), metrics.jsonl,
loss.svg and training_state.safetensors, from which --resume goes on. Ctrl-C saves and leaves with exit code 130.")]
pub(crate) struct Finetune {
    /// What to learn from: JSONL, COCO instances, or source code; may be given several times.
    #[arg(long, value_name = "FILE|FOLDER", required = true)]
    pub(crate) data: Vec<PathBuf>,

    /// The folder for the adapter, or the model.
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,

    /// What is trained.
    #[arg(long, value_name = "METHOD", default_value = "lora")]
    pub(crate) method: Method,

    /// Rank of the LoRA matrices A and B.
    #[arg(long, value_name = "N", default_value = "8", value_parser = up_to(4096))]
    pub(crate) rank: NonZeroUsize,

    /// Alpha: the product of the LoRA matrices is scaled by alpha / rank; twice the rank without it.
    #[arg(long, value_name = "A", value_parser = between(-1e6, 1e6), allow_negative_numbers = true)]
    pub(crate) alpha: Option<f64>,

    /// Scale by alpha / √rank instead (rsLoRA).
    #[arg(long)]
    pub(crate) rslora: bool,

    /// A projection that gets LoRA matrices, such as q_proj; may be given several times. All of them without it.
    #[arg(long, value_name = "NAME")]
    pub(crate) target: Vec<String>,

    /// Optimizer steps.
    #[arg(long, value_name = "N", value_parser = up_to(1_000_000_000), conflicts_with = "epochs")]
    pub(crate) steps: Option<NonZeroUsize>,

    /// How often the data is read; once without --steps.
    #[arg(long, value_name = "N", value_parser = up_to(1_000_000))]
    pub(crate) epochs: Option<NonZeroUsize>,

    /// Examples of a step; 4 without it, and 32 pairs for an embedding model.
    #[arg(long, value_name = "N", value_parser = up_to(65_536))]
    pub(crate) batch: Option<NonZeroUsize>,

    /// The highest learning rate; 2e-4 without it, with --method full 2e-5.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) learning_rate: Option<f64>,

    /// Steps over which the learning rate rises; a twentieth of all without it.
    #[arg(long, value_name = "N")]
    pub(crate) warmup: Option<usize>,

    /// How the learning rate falls after that.
    #[arg(long, value_name = "SCHEDULE", default_value = "cosine")]
    pub(crate) schedule: ScheduleName,

    /// Decoupled weight decay.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub(crate) weight_decay: f32,

    /// The largest norm of a step's gradients; larger ones are scaled down. 0 switches this off.
    #[arg(long, value_name = "X", default_value = "1", value_parser = between(0.0, 1e9))]
    pub(crate) clip: f64,

    /// Longest example, in tokens; what is beyond is cut off, and counted.
    #[arg(long, value_name = "N", default_value = "1024", value_parser = at_least_one)]
    pub(crate) max_length: NonZeroUsize,

    /// Tokens that are computed at once; examples are packed into them without padding.
    #[arg(long, value_name = "N", default_value = "1024", value_parser = up_to(1 << 20))]
    pub(crate) pack: NonZeroUsize,

    /// What the order of the data and the first values of the LoRA matrices follow from.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Data that is not learned, whose loss is measured; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) eval: Vec<PathBuf>,

    /// Steps between two evaluations; at the beginning and the end without it.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) eval_every: Option<NonZeroUsize>,

    /// Steps between two checkpoints, from which --resume goes on.
    #[arg(long, value_name = "N", default_value = "50", value_parser = at_least_one)]
    pub(crate) save_every: NonZeroUsize,

    /// How strongly preferences bind (DPO).
    #[arg(long, value_name = "X", default_value = "0.1", value_parser = between(1e-6, 1e3))]
    pub(crate) beta: f64,

    /// What cosines are multiplied by before the softmax (pairs, for embedding models).
    #[arg(long, value_name = "X", default_value = "20", value_parser = between(1e-3, 1e4))]
    pub(crate) scale: f64,

    /// What the queries of pairs are embedded for: a task of `gemma embed`.
    #[arg(long, value_name = "NAME", default_value = "query")]
    pub(crate) query_task: String,

    /// What the other texts of pairs are embedded for.
    #[arg(long, value_name = "NAME", default_value = "document")]
    pub(crate) document_task: String,

    /// The folder of the images that a COCO file names; the file's own folder without it.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) image_folder: Option<PathBuf>,

    /// Of the examples of code, the part that has a hole; the others are whole.
    #[arg(long, value_name = "P", default_value = "0.8", value_parser = between(0.0, 1.0))]
    pub(crate) fim_rate: f64,

    /// Leave out lines that cannot be used, and count them, instead of refusing the file.
    #[arg(long)]
    pub(crate) skip_bad_lines: bool,

    /// Go on from what OUT holds of the same training; --steps may be larger than before.
    ///
    /// The learning rate then follows the schedule of the larger number from the step on at which the training stands.
    #[arg(long)]
    pub(crate) resume: bool,

    /// Compute one step, say what the training takes in memory and time, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Train as one of the processes that mpirun has started: each computes its share of a step (needs --features mpi).
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) mpi: bool,

    /// Print one JSON object at the end.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: Model,
}
