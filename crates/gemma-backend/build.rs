//! Refuses a build without any backend while Burn is still being compiled, rather than minutes later.
//!
//! Cargo compiles a build script with the features of its package, and needs nothing else for it. Burn itself
//! accepts a build without a backend and panics at the first tensor, so nobody else would say it.

#[cfg(not(any(feature = "ndarray", feature = "flex", feature = "wgpu")))]
compile_error!(
    "no backend is selected: enable at least one of the features `ndarray` (CPU, the default), `flex` (CPU), `wgpu` (GPU), `vulkan` (wgpu with SPIR-V) or `metal` (wgpu with MSL), for example `--no-default-features --features wgpu`"
);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
