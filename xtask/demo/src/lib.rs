//! Makes the embedded demo models: generated text, a small tokenizer, training from scratch.
//!
//! Real weights are gated and gigabytes large, so the repository carries a tiny model of the same architecture,
//! trained by this package on text that this package writes:
//!
//! - [`corpus`] writes stories and conversations from a seed, and keeps a tenth of all questions for the test;
//! - [`bpe`] learns word pieces from them, [`tokenizer_files`] stores these as Gemma's tokenizers are stored;
//! - [`scenes`] draws images of shapes and says what is in them, for PaliGemma; [`masks`] spells which pixels they
//!   cover;
//! - [`random`] is the source of all chance, so that the same seed gives the same model.
//!
//! ```
//! use gemma_demo::{Document, held_out_questions, training_text};
//!
//! let stories = training_text(0).filter(|document| matches!(document, Document::Story(_)));
//! assert_eq!(stories.take(3).count(), 3);
//!
//! let question = &held_out_questions(1, 0)[0];
//! assert!(question.is_right(&question.answer));
//! ```

pub mod bpe;
pub mod corpus;
pub mod masks;
pub mod random;
pub mod scenes;
pub mod tokenizer_files;
pub mod train_codegemma;
pub mod train_gemma;
pub mod train_paligemma;
pub mod train_recurrentgemma;
pub mod training;

pub use corpus::{Document, Kind, Question, held_out_questions, revision_text, training_text};

/// How many pieces the demo tokenizer has: nearly every word of a story is one piece. With 640 pieces the stories
/// have a third more tokens.
pub const VOCABULARY_SIZE: usize = 896;

/// How many documents the demo tokenizer is learned from: enough that every word of the grammar is among them.
pub const VOCABULARY_DOCUMENTS: usize = 20_000;

/// The texts of so many documents, for a tokenizer to be learned from.
pub fn vocabulary_text(seed: u64, documents: usize) -> Vec<String> {
    training_text(seed).take(documents).flat_map(Document::into_texts).collect()
}
