//! The values of `general.architecture` that are read.

/// The architectures of text models that are read; all but `gemma` have norms after the sublayers, too.
pub(crate) const ARCHITECTURES: [&str; 4] = ["gemma", "gemma2", "gemma3", "gemma-embedding"];
