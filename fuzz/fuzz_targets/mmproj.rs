//! cargo-fuzz target; what it runs is in `xtask/fuzz/src/targets.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gemma_fuzz::run("mmproj", data));
