//! Training for the Gemma family: losses, packed batches, the optimizer loop.
