//! The backends by name, and the way from a name to a device.

use crate::{BackendError, Device};
use std::{fmt, str::FromStr};

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

    /// The backend's device, ready for tensors.
    ///
    /// A GPU is set up on the first call and shared by all later ones, from any thread. Which one, where there
    /// are several: the one wgpu calls high-performance, or the one that the environment variable
    /// `CUBECL_WGPU_DEFAULT_DEVICE` names (`DiscreteGpu(1)`, `IntegratedGpu(0)`, `Cpu`, …).
    ///
    /// # Errors
    /// [`BackendError::NotCompiled`], or [`BackendError::NoAdapter`] and [`BackendError::Setup`] for a GPU that
    /// is not there or does not work.
    pub fn device(self) -> Result<Device, BackendError> {
        match self {
            #[cfg(feature = "ndarray")]
            Backend::NdArray =>
            {
                #[allow(
                    deprecated,
                    reason = "Burn moves on to flex; its version is pinned to the last one with ndarray, which this workspace promises"
                )]
                Ok(Device::ndarray())
            }
            #[cfg(feature = "flex")]
            Backend::Flex => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu | Backend::Vulkan | Backend::Metal if self.is_compiled() => crate::gpu::device(self),
            #[allow(unreachable_patterns, reason = "reachable unless every feature is on")]
            backend => Err(BackendError::NotCompiled { backend }),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Backend::ALL
            .into_iter()
            .find(|backend| word.trim().eq_ignore_ascii_case(backend.name()))
            .ok_or_else(|| BackendError::Unknown { name: word.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tensor;

    #[test]
    fn names_come_back() {
        for backend in Backend::ALL {
            assert_eq!(backend.name().parse(), Ok(backend));
            assert_eq!(format!(" {} ", backend.name().to_uppercase()).parse(), Ok(backend));
        }
        assert_eq!("cuda".parse::<Backend>(), Err(BackendError::Unknown { name: "cuda".into() }));
    }

    #[test]
    fn what_is_not_compiled_is_refused_by_name() {
        assert!(!Backend::compiled().is_empty());
        for backend in Backend::ALL.into_iter().filter(|backend| !backend.is_compiled()) {
            assert_eq!(backend.device().unwrap_err(), BackendError::NotCompiled { backend });
        }
    }

    #[test]
    fn every_device_of_this_build_adds() {
        for backend in Backend::compiled() {
            let device = match backend.device() {
                Ok(device) => device,
                Err(reason @ (BackendError::NoAdapter { .. } | BackendError::Setup { .. })) => {
                    println!("skipped {backend}: {reason}");
                    continue;
                }
                Err(reason) => panic!("{backend}: {reason}"),
            };
            let sum = Tensor::<1>::from_floats([1.0, 2.0], &device) + 0.5;
            assert_eq!(sum.into_data().try_to_vec::<f32>().unwrap(), [1.5, 2.5], "{backend}");
        }
    }

    #[test]
    fn asking_twice_and_from_many_threads_gives_one_device() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| Backend::compiled().into_iter().map(|b| b.device().ok()).collect::<Vec<_>>())
            })
            .collect();
        let answers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        for answer in &answers {
            assert_eq!(answer, &answers[0]);
        }
    }
}
