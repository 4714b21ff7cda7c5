//! The decoding loop: sampler, stop conditions, batches of sequences, text streams.
