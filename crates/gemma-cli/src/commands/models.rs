//! `gemma models`: what was released, what is downloaded, what fits this machine; and removing what was downloaded.

mod remove;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use gemma_auto::Footprint;
use gemma_weights::{
    HubId, Precision,
    catalogue::{HEALTH_LICENCE, LICENCE, RELEASES, Release, Variant},
};
use serde::Serialize;

use crate::{
    interrupt::Ending,
    machine, output,
    session::{self, Cached},
};

/// List the released checkpoints, what is downloaded, and what fits this machine.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  gemma models
  gemma models gemma-2             only ids that contain this
  gemma models --all               with checkpoints tuned for one task or benchmark
  gemma models --json | jq '.models[] | select(.fits.q4_0) | .id'
  gemma models rm google/gemma-2-2b-it         remove what was downloaded"
)]
pub(crate) struct Models {
    #[command(subcommand)]
    pub(crate) task: Option<Task>,

    /// Only checkpoints whose id contains this text; `ls` and `list` stand for all of them.
    pub(crate) filter: Option<String>,

    /// Also list checkpoints that are tuned for one task.
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the whole table for a document.
    #[arg(long, conflicts_with_all = ["filter", "all", "json"])]
    pub(crate) markdown: bool,
}

/// What can be done besides listing.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    #[command(name = "rm", visible_alias = "remove")]
    Remove(remove::Remove),
}

/// Tokens of conversation that count when asking whether a model fits.
const CONVERSATION: usize = 2_048;

/// What the program needs besides weights and cache: code, tokenizer, activations, in bytes.
const OVERHEAD: u64 = 300_000_000;

/// From most exact to smallest; what a person would choose from (f16 has the size of bf16 and less range).
const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::Bf16, Precision::Q8_0, Precision::Q4_0];

/// One entry of the JSON listing.
#[derive(Serialize)]
struct Row {
    id: &'static str,
    family: &'static str,
    shape: &'static str,
    variant: &'static str,
    parameters: u64,
    released: String,
    licence: &'static str,
    licence_url: &'static str,
    context: u64,
    /// Whether this version runs it.
    runs: bool,
    /// Bytes of weights.
    weight_bytes: PerPrecision<u64>,
    /// Bytes needed to run it with a conversation of [`CONVERSATION`] tokens.
    memory_bytes: PerPrecision<u64>,
    /// Whether that is available; null where the machine does not say.
    fits: PerPrecision<Option<bool>>,
    cached: Cached,
    arena: Option<ArenaRow>,
}

#[derive(Serialize)]
struct PerPrecision<T> {
    f32: T,
    bf16: T,
    q8_0: T,
    q4_0: T,
}

impl<T> PerPrecision<T> {
    fn of(value: impl Fn(Precision) -> T) -> Self {
        let [f32, bf16, q8_0, q4_0] = PRECISIONS.map(value);
        Self { f32, bf16, q8_0, q4_0 }
    }
}

#[derive(Serialize)]
struct ArenaRow {
    date: &'static str,
    score: u16,
    plus_minus: u16,
    votes: u32,
    rank: u16,
}

#[derive(Serialize)]
struct Listing {
    available_memory_bytes: Option<u64>,
    conversation_tokens: usize,
    models: Vec<Row>,
    /// What lies in the hub's cache and is no release of the list, such as repositories of GGUF files.
    others: Vec<Other>,
}

/// A repository in the hub's cache.
#[derive(Serialize)]
struct Other {
    id: String,
    bytes: u64,
}

/// The repositories in the hub's cache whose id contains `wanted`, but for those of the table.
fn others(wanted: Option<&str>) -> Vec<Other> {
    let hub = session::hub(true);
    let wanted = wanted.unwrap_or_default().to_lowercase();
    let is_other = |id: &HubId| {
        let id = id.repository();
        id.to_lowercase().contains(&wanted) && RELEASES.iter().all(|release| release.id != id)
    };
    let repositories = gemma_weights::cached_repositories(&hub).into_iter().filter(is_other);
    repositories
        .map(|id| Other { bytes: gemma_weights::cached_bytes(&id, &hub).unwrap_or(0), id: id.repository() })
        .collect()
}

pub(crate) fn run(args: &Models) -> Result<Ending> {
    if let Some(Task::Remove(args)) = &args.task {
        return remove::run(args);
    }
    if args.markdown {
        output::line(gemma_auto::models_table()?.trim_end())?;
        return Ok(Ending::Done);
    }
    // other programs list so
    let filter = args.filter.as_deref().filter(|word| !["ls", "list"].contains(word));
    let others = others(filter);
    let chosen = match chosen(filter, args.all) {
        Err(_) if !others.is_empty() => Vec::new(),
        chosen => chosen?,
    };
    let available = machine::available_memory();
    if args.json {
        let models = chosen.iter().map(|release| row(release, available)).collect::<Result<_>>()?;
        output::json(&Listing {
            available_memory_bytes: available,
            conversation_tokens: CONVERSATION,
            models,
            others,
        })?;
        return Ok(Ending::Done);
    }
    if !chosen.is_empty() {
        output::line(table(&chosen, available)?)?;
        output::line(footer(&chosen, args.all || filter.is_some(), available))?;
    }
    if !others.is_empty() {
        let mut table = output::Table::new(["also in the cache", "size"]);
        for Other { id, bytes } in &others {
            table.row([id.clone(), output::bytes(*bytes)]);
        }
        let space = if chosen.is_empty() { "" } else { "\n" };
        output::line(format_args!("{space}{table}\n\n`gemma models rm ID` removes one."))?;
    }
    Ok(Ending::Done)
}

/// The releases to list. Those tuned for one task are many and rarely wanted, so they must be asked for.
fn chosen(filter: Option<&str>, all: bool) -> Result<Vec<&'static Release>> {
    let wanted = filter.map(str::to_lowercase);
    let matching: Vec<_> =
        RELEASES.iter().filter(|release| wanted.as_ref().is_none_or(|text| release.id.contains(text))).collect();
    if matching.is_empty() {
        bail!("no released checkpoint has `{}` in its id; `gemma models --all` lists them", filter.unwrap_or_default());
    }
    let usual: Vec<_> = matching.iter().copied().filter(|release| release.variant != Variant::FineTuned).collect();
    Ok(if all || usual.is_empty() { matching } else { usual })
}

/// The parameters of a release, and a cache of [`CONVERSATION`] tokens.
fn footprint(release: &Release) -> Result<Footprint> {
    Ok(Footprint::of_shape(release.shape(), CONVERSATION)?)
}

/// Bytes that running a release takes.
fn needed(footprint: &Footprint, precision: Precision) -> u64 {
    footprint.weight_bytes(precision) + footprint.cache_bytes + OVERHEAD
}

fn row(release: &Release, available: Option<u64>) -> Result<Row> {
    let (shape, licence, footprint) = (release.shape(), release.licence(), footprint(release)?);
    Ok(Row {
        id: release.id,
        family: release.family.name(),
        shape: release.shape,
        variant: release.variant.name(),
        parameters: footprint.parameters(),
        released: release.month.to_string(),
        licence: licence.id,
        licence_url: licence.url,
        context: shape.context_length(),
        runs: true,
        weight_bytes: PerPrecision::of(|precision| footprint.weight_bytes(precision)),
        memory_bytes: PerPrecision::of(|precision| needed(&footprint, precision)),
        fits: PerPrecision::of(|precision| available.map(|bytes| needed(&footprint, precision) <= bytes)),
        cached: session::cached(release.id),
        arena: release.arena.map(|arena| ArenaRow {
            date: "2024-08-13",
            score: arena.score,
            plus_minus: arena.plus_minus,
            votes: arena.votes,
            rank: arena.rank,
        }),
    })
}

fn table(releases: &[&Release], available: Option<u64>) -> Result<output::Table> {
    let heading = ["id", "size", "kind", "released", "context", "bf16", "q8_0", "q4_0", "fits", "here", "arena"];
    let mut table = output::Table::new(heading);
    for release in releases {
        let footprint = footprint(release)?;
        let bytes = |precision| output::bytes(needed(&footprint, precision));
        table.row([
            release.id.to_owned(),
            format!("{:.1} B", footprint.parameters() as f64 / 1e9),
            release.variant.name().to_owned(),
            release.month.to_string(),
            release.shape().context_length().to_string(),
            bytes(Precision::Bf16),
            bytes(Precision::Q8_0),
            bytes(Precision::Q4_0),
            fits(&footprint, available).to_owned(),
            session::cached(release.id).word().to_owned(),
            release.arena.map(|arena| format!("{} ±{}", arena.score, arena.plus_minus)).unwrap_or_default(),
        ]);
    }
    Ok(table)
}

/// The most exact precision that fits, `no`, or `?`.
fn fits(footprint: &Footprint, available: Option<u64>) -> &'static str {
    let Some(available) = available else { return "?" };
    let fitting = PRECISIONS[1..].iter().find(|precision| needed(footprint, **precision) <= available);
    fitting.map_or("no", |precision| precision.name())
}

/// `whole`: whether nothing more would be listed with --all.
fn footer(releases: &[&Release], whole: bool, available: Option<u64>) -> String {
    let memory =
        available.map_or("an unknown amount of memory".to_owned(), |bytes| output::bytes(bytes) + " of memory");
    let mut text = format!(
        "\nbf16, q8_0, q4_0: memory needed with that --precision and a conversation of {CONVERSATION} tokens. fits: the \
         most exact one\nthat fits now ({memory} free). here: whether it is downloaded. arena: LMSYS Chatbot Arena \
         score, 13 August 2024."
    );
    let listed = |variant| releases.iter().any(|release| release.variant == variant);
    text += "\nkind: pt continues text, it follows instructions";
    text += if listed(Variant::Mix) { ", mix does many image tasks" } else { "" };
    text += if listed(Variant::FineTuned) { ", ft is tuned for one task." } else { "." };
    text += &format!(" Licence: {} ({}); of MedGemma: {}.", LICENCE.name, LICENCE.url, HEALTH_LICENCE.name);
    if !whole {
        text += "\n`gemma models --all` adds checkpoints tuned for one task; `gemma pull ID` downloads one.";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(id: &str) -> &'static Release {
        gemma_weights::catalogue::release(id).expect(id)
    }

    #[test]
    fn tuned_checkpoints_are_listed_when_asked_for() {
        let usual = chosen(None, false).expect("some");
        assert!(usual.iter().all(|release| release.variant != Variant::FineTuned));
        assert_eq!(chosen(None, true).expect("all").len(), RELEASES.len());
        assert_eq!(chosen(Some("ShieldGemma"), false).expect("by name").len(), 4);
        assert!(chosen(Some("llama"), true).expect_err("none").to_string().contains("`llama`"));
    }

    #[test]
    fn what_fits_is_the_most_exact_that_does() {
        let of = |id| footprint(release(id)).expect("a backend");
        let small = &of("google/gemma-2b");
        let need = |precision| needed(small, precision);
        assert_eq!(fits(small, Some(need(Precision::Bf16))), "bf16");
        assert_eq!(fits(small, Some(need(Precision::Bf16) - 1)), "q8_0");
        assert_eq!(fits(small, Some(need(Precision::Q4_0))), "q4_0");
        assert_eq!(fits(small, Some(1_000_000)), "no");
        assert_eq!(fits(small, None), "?");
        assert_eq!(fits(&of("google/recurrentgemma-2b"), Some(u64::MAX)), "bf16");
        assert_eq!(fits(&of("google/paligemma-3b-pt-224"), Some(u64::MAX)), "bf16");
        assert_eq!(fits(&of("google/codegemma-2b"), Some(u64::MAX)), "bf16");
    }

    #[test]
    fn the_json_row_tells_sizes_licence_and_votes() {
        let row = row(release("google/gemma-2-27b-it"), Some(20_000_000_000)).expect("a backend");
        let row = serde_json::to_value(row).expect("JSON");
        assert_eq!(row["parameters"], 27_227_128_320_u64);
        assert_eq!(row["arena"]["score"], 1217);
        assert_eq!((row["fits"]["bf16"].clone(), row["fits"]["q4_0"].clone()), (false.into(), true.into()));
        assert_eq!((row["released"].as_str(), row["licence"].as_str()), (Some("2024-06"), Some("gemma")));
    }

    #[test]
    fn the_table_shows_scores_and_fit() {
        let text = table(&[release("google/gemma-2b-it")], Some(4_000_000_000)).expect("a backend").to_string();
        for part in ["google/gemma-2b-it", "2.5 B", "2024-02", "8192", "q8_0", "990 ±9"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
