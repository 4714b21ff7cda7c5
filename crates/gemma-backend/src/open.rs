//! The way from a backend's name to its device.

use crate::{Backend, BackendError, Device};
use std::str::FromStr;

impl Backend {
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
