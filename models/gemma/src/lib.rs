//! Gemma 1, 1.1 and 2: text generation on Burn.
