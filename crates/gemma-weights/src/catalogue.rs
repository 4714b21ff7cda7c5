//! What was released: the checkpoints of the four families, and the shapes they have.
//!
//! Two tables, each fact once. [`SHAPES`] holds the `config.json` of each network (presets, memory estimates and
//! benchmarks follow from it); [`RELEASES`] says which hub id has which shape, when it appeared and how people
//! voted on it. Nothing here opens a file or knows a tensor library.
//!
//! Months are those of the announcements; Arena scores are the LMSYS Chatbot Arena table of 13 August 2024. Of
//! PaliGemma's many fine-tunes for single benchmarks, those whose ids could be confirmed are listed; an id that is
//! not in the table can still be pulled and loaded.

mod shape;

pub use shape::{SHAPES, Shape, shape};

use Family::{CodeGemma as Code, Gemma as Text, PaliGemma as Pali, RecurrentGemma as Recurrent};
use Variant::{FineTuned, Instruct, Mix, Pretrained};

/// The four families a checkpoint can belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Text: Gemma 1, 1.1, 2 and 3, and what was tuned from them. Gemma 3 from 4B on reads images, too.
    Gemma,
    /// Code, with fill-in-the-middle prompts.
    CodeGemma,
    /// Images and text in, text out.
    PaliGemma,
    /// Text with a memory of constant size.
    RecurrentGemma,
}

impl Family {
    /// Lower-case name: `gemma`, `codegemma`, `paligemma`, `recurrentgemma`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gemma => "gemma",
            Self::CodeGemma => "codegemma",
            Self::PaliGemma => "paligemma",
            Self::RecurrentGemma => "recurrentgemma",
        }
    }
}

/// What a checkpoint was trained for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Plain continuation of text, the base for fine-tuning.
    Pretrained,
    /// Follows instructions and holds conversations.
    Instruct,
    /// PaliGemma tuned on a mixture of tasks, ready for use.
    Mix,
    /// Tuned for one task or benchmark.
    FineTuned,
}

impl Variant {
    /// The word hub ids use: `pt`, `it`, `mix` or `ft`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pretrained => "pt",
            Self::Instruct => "it",
            Self::Mix => "mix",
            Self::FineTuned => "ft",
        }
    }
}

/// A month of the calendar; prints as `2024-02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    /// Year, such as 2024.
    pub year: u16,
    /// Month of the year, 1 to 12.
    pub month: u8,
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}-{:02}", self.year, self.month))
    }
}

/// A row of the LMSYS Chatbot Arena table of 13 August 2024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Arena score.
    pub score: u16,
    /// Half the width of its 95 % confidence interval, the same on both sides.
    pub plus_minus: u16,
    /// Votes it was computed from.
    pub votes: u32,
    /// Rank among all models of that day.
    pub rank: u16,
}

/// The licence of all checkpoints in this table but the medical ones, and the page where it is accepted.
pub const LICENCE: Licence =
    Licence { id: "gemma", name: "Gemma Terms of Use", url: "https://ai.google.dev/gemma/terms" };

/// The licence of MedGemma.
pub const HEALTH_LICENCE: Licence = Licence {
    id: "health-ai-developer-foundations",
    name: "Health AI Developer Foundations Terms of Use",
    url: "https://developers.google.com/health-ai-developer-foundations/terms",
};

/// A licence as the hub names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Licence {
    /// The hub's word for it.
    pub id: &'static str,
    /// Its title.
    pub name: &'static str,
    /// Where it can be read.
    pub url: &'static str,
}

/// One released checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Hub id, `organisation/name`.
    pub id: &'static str,
    /// The family whose prompts and tokens it speaks.
    pub family: Family,
    /// Name of the network it is a set of weights for; [`Release::shape`] looks it up.
    pub shape: &'static str,
    /// What it was trained for last.
    pub variant: Variant,
    /// When it was released.
    pub month: Month,
    /// Its place in the Arena table, where it had one.
    pub arena: Option<Arena>,
}

impl Release {
    /// The network it is a set of weights for.
    pub fn shape(&self) -> &'static Shape {
        shape(self.shape).expect("every row names a shape of the other table (tested)")
    }

    /// The licence it was released under.
    pub fn licence(&self) -> Licence {
        if self.id.contains("medgemma") { HEALTH_LICENCE } else { LICENCE }
    }
}

/// The checkpoint of this hub id.
///
/// ```
/// let release = gemma_weights::catalogue::release("google/gemma-2-27b-it").expect("in the table");
/// assert_eq!(release.month.to_string(), "2024-06");
/// assert_eq!(release.arena.map(|arena| arena.score), Some(1217));
/// ```
pub fn release(id: &str) -> Option<&'static Release> {
    RELEASES.iter().find(|release| release.id == id)
}

const fn row(
    id: &'static str,
    family: Family,
    shape: &'static str,
    variant: Variant,
    (year, month): (u16, u8),
) -> Release {
    Release { id, family, shape, variant, month: Month { year, month }, arena: None }
}

impl Release {
    const fn arena(self, score: u16, plus_minus: u16, votes: u32, rank: u16) -> Self {
        Self { arena: Some(Arena { score, plus_minus, votes, rank }), ..self }
    }
}

/// Every released checkpoint, by family, oldest first.
#[rustfmt::skip] // one row, one line
pub const RELEASES: &[Release] = &[
    row("google/gemma-2b", Text, "gemma-2b", Pretrained, (2024, 2)),
    row("google/gemma-2b-it", Text, "gemma-2b", Instruct, (2024, 2)).arena(990, 9, 4_921, 114),
    row("google/gemma-7b", Text, "gemma-7b", Pretrained, (2024, 2)),
    row("google/gemma-7b-it", Text, "gemma-7b", Instruct, (2024, 2)),
    row("google/gemma-1.1-2b-it", Text, "gemma-2b", Instruct, (2024, 4)),
    row("google/gemma-1.1-7b-it", Text, "gemma-7b", Instruct, (2024, 4)).arena(1_084, 4, 25_091, 75),
    row("google/gemma-2-9b", Text, "gemma-2-9b", Pretrained, (2024, 6)),
    row("google/gemma-2-9b-it", Text, "gemma-2-9b", Instruct, (2024, 6)).arena(1_187, 4, 25_489, 31),
    row("google/gemma-2-27b", Text, "gemma-2-27b", Pretrained, (2024, 6)),
    row("google/gemma-2-27b-it", Text, "gemma-2-27b", Instruct, (2024, 6)).arena(1_217, 3, 28_365, 19),
    row("google/gemma-2-2b", Text, "gemma-2-2b", Pretrained, (2024, 7)),
    row("google/gemma-2-2b-it", Text, "gemma-2-2b", Instruct, (2024, 7)),
    row("google/shieldgemma-2b", Text, "gemma-2-2b", FineTuned, (2024, 7)),
    row("google/shieldgemma-9b", Text, "gemma-2-9b", FineTuned, (2024, 7)),
    row("google/shieldgemma-27b", Text, "gemma-2-27b", FineTuned, (2024, 7)),
    row("google/gemma-2-2b-jpn-it", Text, "gemma-2-2b", Instruct, (2024, 10)),
    row("google/gemma-3-1b-pt", Text, "gemma-3-1b", Pretrained, (2025, 3)),
    row("google/gemma-3-1b-it", Text, "gemma-3-1b", Instruct, (2025, 3)),
    row("google/gemma-3-4b-pt", Text, "gemma-3-4b", Pretrained, (2025, 3)),
    row("google/gemma-3-4b-it", Text, "gemma-3-4b", Instruct, (2025, 3)),
    row("google/gemma-3-12b-pt", Text, "gemma-3-12b", Pretrained, (2025, 3)),
    row("google/gemma-3-12b-it", Text, "gemma-3-12b", Instruct, (2025, 3)),
    row("google/gemma-3-27b-pt", Text, "gemma-3-27b", Pretrained, (2025, 3)),
    row("google/gemma-3-27b-it", Text, "gemma-3-27b", Instruct, (2025, 3)),
    row("google/gemma-3-270m", Text, "gemma-3-270m", Pretrained, (2025, 8)),
    row("google/gemma-3-270m-it", Text, "gemma-3-270m", Instruct, (2025, 8)),
    row("google/shieldgemma-2-4b-it", Text, "gemma-3-4b", FineTuned, (2025, 3)),
    row("google/medgemma-4b-pt", Text, "gemma-3-4b", Pretrained, (2025, 5)),
    row("google/medgemma-4b-it", Text, "gemma-3-4b", Instruct, (2025, 5)),
    row("google/medgemma-27b-text-it", Text, "gemma-3-27b-text", Instruct, (2025, 5)),
    row("google/medgemma-27b-it", Text, "gemma-3-27b", Instruct, (2025, 7)),
    row("google/medgemma-1.5-4b-it", Text, "gemma-3-4b", Instruct, (2026, 1)),
    row("google/embeddinggemma-300m", Text, "embeddinggemma-300m", FineTuned, (2025, 9)),
    row("google/vaultgemma-1b", Text, "vaultgemma-1b", Pretrained, (2025, 9)),
    row("google/functiongemma-270m-it", Text, "gemma-3-270m", Instruct, (2025, 12)),
    row("google/translategemma-4b-it", Text, "gemma-3-4b", Instruct, (2026, 1)),
    row("google/translategemma-12b-it", Text, "gemma-3-12b", Instruct, (2026, 1)),
    row("google/translategemma-27b-it", Text, "gemma-3-27b", Instruct, (2026, 1)),
    row("google/codegemma-2b", Code, "gemma-2b", Pretrained, (2024, 4)),
    row("google/codegemma-7b", Code, "gemma-7b", Pretrained, (2024, 4)),
    row("google/codegemma-7b-it", Code, "gemma-7b", Instruct, (2024, 4)),
    row("google/codegemma-1.1-2b", Code, "gemma-2b", Pretrained, (2024, 5)),
    row("google/codegemma-1.1-7b-it", Code, "gemma-7b", Instruct, (2024, 5)),
    row("google/paligemma-3b-pt-224", Pali, "paligemma-3b-224", Pretrained, (2024, 5)),
    row("google/paligemma-3b-pt-448", Pali, "paligemma-3b-448", Pretrained, (2024, 5)),
    row("google/paligemma-3b-pt-896", Pali, "paligemma-3b-896", Pretrained, (2024, 5)),
    row("google/paligemma-3b-mix-224", Pali, "paligemma-3b-224", Mix, (2024, 5)),
    row("google/paligemma-3b-mix-448", Pali, "paligemma-3b-448", Mix, (2024, 5)),
    row("google/paligemma-3b-ft-cococap-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-cococap-448", Pali, "paligemma-3b-448", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-docvqa-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-docvqa-448", Pali, "paligemma-3b-448", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-docvqa-896", Pali, "paligemma-3b-896", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-ocrvqa-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-ocrvqa-448", Pali, "paligemma-3b-448", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-ocrvqa-896", Pali, "paligemma-3b-896", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-okvqa-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-refcoco-seg-896", Pali, "paligemma-3b-896", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-screen2words-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-screen2words-448", Pali, "paligemma-3b-448", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-tallyqa-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-tallyqa-448", Pali, "paligemma-3b-448", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-textvqa-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-vqav2-224", Pali, "paligemma-3b-224", FineTuned, (2024, 5)),
    row("google/paligemma-3b-ft-vqav2-448", Pali, "paligemma-3b-448", FineTuned, (2024, 5)),
    row("google/paligemma2-3b-pt-224", Pali, "paligemma2-3b-224", Pretrained, (2024, 12)),
    row("google/paligemma2-3b-pt-448", Pali, "paligemma2-3b-448", Pretrained, (2024, 12)),
    row("google/paligemma2-3b-pt-896", Pali, "paligemma2-3b-896", Pretrained, (2024, 12)),
    row("google/paligemma2-10b-pt-224", Pali, "paligemma2-10b-224", Pretrained, (2024, 12)),
    row("google/paligemma2-10b-pt-448", Pali, "paligemma2-10b-448", Pretrained, (2024, 12)),
    row("google/paligemma2-10b-pt-896", Pali, "paligemma2-10b-896", Pretrained, (2024, 12)),
    row("google/paligemma2-28b-pt-224", Pali, "paligemma2-28b-224", Pretrained, (2024, 12)),
    row("google/paligemma2-28b-pt-448", Pali, "paligemma2-28b-448", Pretrained, (2024, 12)),
    row("google/paligemma2-28b-pt-896", Pali, "paligemma2-28b-896", Pretrained, (2024, 12)),
    row("google/paligemma2-3b-ft-docci-448", Pali, "paligemma2-3b-448", FineTuned, (2024, 12)),
    row("google/paligemma2-10b-ft-docci-448", Pali, "paligemma2-10b-448", FineTuned, (2024, 12)),
    row("google/paligemma2-3b-mix-224", Pali, "paligemma2-3b-224", Mix, (2025, 2)),
    row("google/paligemma2-3b-mix-448", Pali, "paligemma2-3b-448", Mix, (2025, 2)),
    row("google/paligemma2-10b-mix-224", Pali, "paligemma2-10b-224", Mix, (2025, 2)),
    row("google/paligemma2-10b-mix-448", Pali, "paligemma2-10b-448", Mix, (2025, 2)),
    row("google/paligemma2-28b-mix-224", Pali, "paligemma2-28b-224", Mix, (2025, 2)),
    row("google/paligemma2-28b-mix-448", Pali, "paligemma2-28b-448", Mix, (2025, 2)),
    row("google/recurrentgemma-2b", Recurrent, "recurrentgemma-2b", Pretrained, (2024, 4)),
    row("google/recurrentgemma-2b-it", Recurrent, "recurrentgemma-2b", Instruct, (2024, 4)),
    row("google/recurrentgemma-9b", Recurrent, "recurrentgemma-9b", Pretrained, (2024, 6)),
    row("google/recurrentgemma-9b-it", Recurrent, "recurrentgemma-9b", Instruct, (2024, 6)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_names_a_shape_and_every_id_stands_once() {
        for (index, entry) in RELEASES.iter().enumerate() {
            assert_eq!(entry.shape().name, entry.shape, "{}", entry.id);
            let first = RELEASES.iter().position(|other| other.id == entry.id);
            assert_eq!(first, Some(index), "{} stands twice", entry.id);
        }
        assert_eq!(release("google/gemma-5-4b-it"), None);
    }

    #[test]
    fn every_shape_was_released() {
        for shape in SHAPES {
            let users = RELEASES.iter().filter(|release| release.shape == shape.name).count();
            assert!(users > 0, "{}", shape.name);
        }
    }

    #[test]
    fn ids_say_what_the_row_says() {
        for Release { id, family, shape, variant, .. } in RELEASES {
            let name = id.strip_prefix("google/").expect("all by Google");
            let tunes = ["shield", "med", "embedding", "vault", "function", "translate"];
            let tuned = || tunes.iter().any(|tune| name.starts_with(&format!("{tune}gemma")));
            assert!(name.starts_with(family.name()) || tuned(), "{id}");
            let has = |word| name.split('-').any(|part| part == word);
            // ShieldGemma 2 is a judge, whatever its name says
            assert_eq!(has("it") && !name.starts_with("shieldgemma"), *variant == Variant::Instruct, "{id}");
            assert_eq!(has("mix"), *variant == Variant::Mix, "{id}");
            let resolution = name.rsplit('-').next().filter(|_| *family == Family::PaliGemma);
            assert!(resolution.is_none_or(|pixels| shape.ends_with(pixels)), "{id}");
            let shape = super::shape(shape).expect("in the table");
            let sees = *family == Family::PaliGemma
                || ["-4b", "-12b", "-27b"].iter().any(|size| shape.name == format!("gemma-3{size}"));
            assert_eq!(sees, shape.config.contains("vision_config"), "{id}");
        }
    }

    #[test]
    fn arena_scores_are_those_of_august_2024() {
        let ranks: Vec<_> = RELEASES
            .iter()
            .filter_map(|release| release.arena.map(|arena| (arena.rank, arena.score, release.id)))
            .collect();
        let expected = [
            (114, 990, "google/gemma-2b-it"),
            (75, 1084, "google/gemma-1.1-7b-it"),
            (31, 1187, "google/gemma-2-9b-it"),
            (19, 1217, "google/gemma-2-27b-it"),
        ];
        assert_eq!(ranks, expected);
    }

    #[test]
    fn months_print_with_two_digits_and_respect_a_width() {
        let month = Month { year: 2024, month: 2 };
        assert_eq!(month.to_string(), "2024-02");
        assert_eq!(format!("{month:>9}"), "  2024-02");
    }
}
