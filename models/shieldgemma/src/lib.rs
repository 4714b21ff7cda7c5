//! ShieldGemma: how likely a text or an image violates a guideline, on Burn.
//!
//! ```no_run
//! use gemma::{Gemma, default_device};
//! use shieldgemma::{Guideline, Subject, judge};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Gemma::load("google/shieldgemma-2b", &default_device()?)?;
//! let rule = Guideline::named("harassment")?;
//! println!("{:.3}", judge(&model, Subject::Prompt("You are all fools."), &rule)?);
//! # Ok(())
//! # }
//! ```
//!
//! ShieldGemma 1 is Gemma 2 and judges texts; ShieldGemma 2 is Gemma 3 4B and judges images. Both are asked a question
//! that begins its answer with Yes or No ([`text_prompt`], [`image_prompt`]), and the probability of a violation is
//! `exp(z_Yes) / (exp(z_Yes) + exp(z_No))` of the final logits after the question ([`violation`]). A [`Guideline`] is
//! data: five are built in, others come from a file or a sentence.

mod error;
mod guideline;
mod judge;
mod prompt;

pub use error::Error;
pub use guideline::Guideline;
pub use judge::{judge, judge_tokens, violation, yes_and_no};
pub use prompt::{Subject, image_prompt, text_prompt};
