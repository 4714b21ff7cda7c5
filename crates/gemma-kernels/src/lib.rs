//! The operations Burn lacks, as Burn backend extensions: packed weights and attention over a cache.
