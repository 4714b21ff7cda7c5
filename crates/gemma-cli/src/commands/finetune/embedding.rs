//! `gemma finetune` of a model that embeds texts: pairs of a query and the text that answers it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use embeddinggemma::EmbeddingGemma;
use gemma_model::{BlockStack, fingerprint_of};
use gemma_train::data::{Record, read_lines};
use gemma_train::run::Pairs;
use gemma_train::{Pair, Trainer, with_new_factors};
use gemma_weights::Dtype;

use super::args::Method;
use super::data::{Digest, on_bad_line};
use super::training::{Job, LeftOut};
use super::{Finetune, PAIRS, adapter, batches, keeping, options};
use crate::{interrupt::Ending, progress, session::Found};

/// Pairs of files, and what was left out of them.
struct Read {
    pairs: Vec<Pair>,
    left_out: LeftOut,
    digest: String,
}

pub(super) fn finetune(args: &Finetune, found: &Found) -> Result<Ending> {
    let begin = Instant::now();
    if args.method == Method::Full {
        bail!("an embedding model is trained with --method lora");
    }
    let checkpoint = &*found.inner().checkpoint()?;
    let device = found.device()?;
    let config = adapter(args, true)?;
    let bar = progress::bytes("loading");
    let mut on_load = |done, total| progress::set(&bar, done, total);
    let model = with_new_factors(&config, args.seed, &device, |change| {
        EmbeddingGemma::from_checkpoint_changed(checkpoint, found.options(), &device, &mut on_load, change)
    })?;
    bar.finish_and_clear();
    let read = read(args, &model, &args.data)?;
    let evaluated = args.eval.iter().map(|path| read_pairs_to_evaluate(args, &model, path));
    let evaluated: Vec<Pairs> = evaluated.collect::<Result<_>>()?;
    let batches = batches(args, read.pairs.len(), PAIRS);
    if batches.batch.min(read.pairs.len()) < 2 && read.pairs.iter().all(|pair| pair.negatives.is_empty()) {
        bail!(
            "a pair is compared with the others of its batch; give a --batch of at least 2, more pairs, or negatives"
        );
    }
    let options = options(args, batches);
    let network = model.into_network();
    let model_digest =
        fingerprint_of(&network.config().text.to_json(Dtype::F32), |saver| network.save_parameters(saver));
    let keeping = keeping(args, Some(config), batches.batch, &read.digest, &model_digest, &options);
    let trainer = Trainer::new(network, options)?;
    let sizes = Some(read.pairs.iter().map(tokens).collect());
    let data = Pairs { pairs: read.pairs, scale: args.scale, batch: batches.batch };
    let evaluated = args.eval.iter().zip(&evaluated).map(|(path, data)| (path.as_path(), data as _)).collect();
    let left_out = read.left_out;
    let job = Job { args, begin, trainer, data: &data, sizes, batches, evaluated, keeping, left_out };
    Ok(job.run()?.1)
}

/// Tokens of all texts of a pair.
fn tokens(pair: &Pair) -> usize {
    pair.query.len() + pair.positive.len() + pair.negatives.iter().map(Vec::len).sum::<usize>()
}

fn read_pairs_to_evaluate(args: &Finetune, model: &EmbeddingGemma, path: &PathBuf) -> Result<Pairs> {
    let read = read(args, model, std::slice::from_ref(path))?;
    let batch = batches(args, read.pairs.len(), PAIRS).batch;
    Ok(Pairs { pairs: read.pairs, scale: args.scale, batch })
}

fn read(args: &Finetune, model: &EmbeddingGemma, paths: &[PathBuf]) -> Result<Read> {
    let [query, document] = [model.prefix(&args.query_task, None)?, model.prefix(&args.document_task, None)?];
    let (mut pairs, mut left_out) = (Vec::new(), LeftOut::default());
    for path in paths {
        let (found, bad) = read_lines(path, on_bad_line(args), |_, record| {
            let Record::Pair { query: asked, positive, negatives } = record else {
                return Err("an embedding model learns from query and positive".to_owned());
            };
            let mut tokens = |prefix: &str, text: &str| {
                let within = model.tokens_within(prefix, text, args.max_length.get());
                let (tokens, cut) = within.map_err(|error| error.to_string())?;
                if cut > 0 {
                    left_out.truncated = (left_out.truncated.0 + 1, left_out.truncated.1 + cut);
                }
                Ok::<_, String>(tokens)
            };
            Ok(Pair {
                query: tokens(&query, &asked)?,
                positive: tokens(&document, &positive)?,
                negatives: negatives.iter().map(|text| tokens(&document, text)).collect::<Result<_, _>>()?,
            })
        })?;
        pairs.extend(found);
        left_out.skipped.extend(bad.into_iter().map(|(line, reason)| (path.clone(), line, reason)));
    }
    let mut digest = Digest::new();
    for pair in &pairs {
        for text in [&pair.query, &pair.positive].into_iter().chain(&pair.negatives) {
            digest.add(text.iter().map(|token| u64::from(*token)));
        }
    }
    Ok(Read { pairs, left_out, digest: digest.finish() })
}
