//! The backends by name.

use std::fmt;

/// The environment variable in which a user names a backend: `GEMMA_BACKEND=wgpu`.
pub const ENVIRONMENT: &str = "GEMMA_BACKEND";

/// Where tensors live and compute.
///
/// All variants exist in every build, so that a program can talk about backends it was not compiled with;
/// [`Backend::is_compiled`] tells them apart and [`Backend::device`] refuses the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Burn's ndarray backend, on the CPU.
    NdArray,
    /// Burn's flex backend, on the CPU.
    Flex,
    /// wgpu on whichever graphics API the system offers first, preferring a real GPU.
    Wgpu,
    /// wgpu pinned to Vulkan.
    Vulkan,
    /// wgpu pinned to Metal.
    Metal,
}

impl Backend {
    /// Every backend, compiled in or not.
    pub const ALL: [Backend; 5] = [Backend::NdArray, Backend::Flex, Backend::Wgpu, Backend::Vulkan, Backend::Metal];

    /// The word for it on command lines, in `GEMMA_BACKEND` and among Cargo features.
    pub fn name(self) -> &'static str {
        match self {
            Backend::NdArray => "ndarray",
            Backend::Flex => "flex",
            Backend::Wgpu => "wgpu",
            Backend::Vulkan => "vulkan",
            Backend::Metal => "metal",
        }
    }

    /// Whether its Cargo feature was on when this program was built.
    pub fn is_compiled(self) -> bool {
        match self {
            Backend::NdArray => cfg!(feature = "ndarray"),
            Backend::Flex => cfg!(feature = "flex"),
            Backend::Wgpu => cfg!(feature = "wgpu"),
            Backend::Vulkan => cfg!(feature = "vulkan"),
            Backend::Metal => cfg!(feature = "metal"),
        }
    }

    /// The backends of this build, in the order of [`Backend::ALL`]: all, or those that the environment variable
    /// `GEMMA_BACKENDS` lists by name (`ndarray,flex`), which keeps a test run off a slow one.
    pub fn compiled() -> Vec<Backend> {
        let wanted = std::env::var("GEMMA_BACKENDS").ok();
        Backend::ALL
            .into_iter()
            .filter(|backend| backend.is_compiled() && backend.is_listed(wanted.as_deref()))
            .collect()
    }

    /// Whether a comma-separated list names the backend; no list names all.
    fn is_listed(self, list: Option<&str>) -> bool {
        list.is_none_or(|list| list.split(',').any(|name| name.trim() == self.name()))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
