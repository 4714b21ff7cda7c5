//! `gemma-demo`: makes the embedded demo models, and shows the text they learn.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use gemma_demo::corpus::code::{LONG, held_out_functions, held_out_programs};
use gemma_demo::corpus::holes::{CodeDocument, Hole, training_code};
use gemma_demo::{
    Document, held_out_questions, train_codegemma, train_gemma, train_paligemma, train_recurrentgemma, training_text,
};
use gemma_tokenizer::Role;

/// Makes the embedded demo models.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Trains the Gemma 2 demo model.
    Gemma {
        /// The folder to write; it is made if it does not exist.
        #[arg(long)]
        out: PathBuf,
        /// Optimizer steps of each round; the default is what the committed model was trained with.
        #[arg(long)]
        steps: Option<usize>,
        /// A folder that the first round has written: skip to the second.
        #[arg(long)]
        begun: Option<PathBuf>,
        /// What the text and the first weights follow from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Trains the CodeGemma demo model.
    Codegemma {
        /// The folder to write; it is made if it does not exist.
        #[arg(long)]
        out: PathBuf,
        /// Optimizer steps of each round; the default is what the committed model was trained with.
        #[arg(long)]
        steps: Option<usize>,
        /// A folder that a training has written: go on from there instead of from random weights.
        #[arg(long)]
        begun: Option<PathBuf>,
        /// The first round to run, counted from 0.
        #[arg(long, default_value_t = 0)]
        first: usize,
        /// What the programs and the first weights follow from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Trains the RecurrentGemma demo model.
    Recurrentgemma {
        /// The folder to write; it is made if it does not exist.
        #[arg(long)]
        out: PathBuf,
        /// Optimizer steps of each round; the default is what the committed model was trained with.
        #[arg(long)]
        steps: Option<usize>,
        /// A folder that the first round has written: skip to the second.
        #[arg(long)]
        begun: Option<PathBuf>,
        /// What the text and the first weights follow from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Trains the PaliGemma demo model, and draws its images.
    Paligemma {
        /// The folder to write; it is made if it does not exist.
        #[arg(long)]
        out: PathBuf,
        /// Optimizer steps of each round; the default is what the committed model was trained with.
        #[arg(long)]
        steps: Option<usize>,
        /// A folder that a training has written: go on from there instead of from random weights.
        #[arg(long)]
        begun: Option<PathBuf>,
        /// The first round to run, counted from 0.
        #[arg(long, default_value_t = 0)]
        first: usize,
        /// What the scenes and the first weights follow from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Prints training documents, held-out questions and held-out functions.
    Corpus {
        /// How many of each.
        #[arg(long, default_value_t = 20)]
        show: usize,
        /// What the text follows from.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().job {
        Job::Gemma { out, steps, begun, seed } => train_gemma::make(&out, begun.as_deref(), steps, seed),
        Job::Paligemma { out, steps, begun, first, seed } => {
            train_paligemma::make(&out, begun.as_deref(), first, steps, seed)
        }
        Job::Codegemma { out, steps, begun, first, seed } => {
            train_codegemma::make(&out, begun.as_deref(), first, steps, seed)
        }
        Job::Recurrentgemma { out, steps, begun, seed } => {
            train_recurrentgemma::make(&out, begun.as_deref(), steps, seed)
        }
        Job::Corpus { show, seed } => {
            print_corpus(show, seed);
            Ok(())
        }
    }
}

fn print_corpus(count: usize, seed: u64) {
    for document in training_text(seed).take(count) {
        match document {
            Document::Story(text) => println!("{text}\n"),
            Document::Chat(turns) => {
                for turn in turns {
                    let name = if turn.role == Role::User { "user " } else { "model" };
                    println!("{name}  {}", turn.text);
                }
                println!();
            }
        }
    }
    for document in training_code(seed, LONG.1).take(count) {
        match document {
            CodeDocument::File(text) => println!("{text}"),
            CodeDocument::Hole(Hole { infill, middle }) => {
                println!("{}[{middle}]{}", infill.prefix, infill.suffix);
            }
        }
    }
    println!("Held out:\n");
    for question in held_out_questions(count, seed) {
        println!("{:?}: {:?} -> {:?}", question.kind, question.said(), question.answer);
    }
    for function in held_out_functions(count, seed) {
        println!("\n{}", function.text);
    }
    for program in held_out_programs(count, seed) {
        println!("\n{}", program.text());
    }
}
