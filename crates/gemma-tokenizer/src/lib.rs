//! Text to tokens and back for the Gemma family: control tokens, chat template, incremental decoding.
