//! Which backend runs when the program does not say.

use crate::{Backend, BackendError, Device, ENVIRONMENT};

/// The device of [`default_backend`].
///
/// # Errors
/// As [`default_backend`] and [`Backend::device`].
pub fn default_device() -> Result<Device, BackendError> {
    default_backend()?.device()
}

/// The backend that `GEMMA_BACKEND` names; else wgpu, where it is compiled in and the machine has a GPU that is
/// not a software rasterizer; else ndarray; else flex; else wgpu after all, being the only one of this build.
///
/// # Errors
/// [`BackendError::UnknownInEnvironment`] when `GEMMA_BACKEND` holds something else than a backend's name.
/// Whether that backend is compiled in is for [`Backend::device`] to say.
pub fn default_backend() -> Result<Backend, BackendError> {
    let named = std::env::var_os(ENVIRONMENT);
    let named = named.as_ref().map(|word| word.to_string_lossy());
    choose(named.as_deref(), &Backend::compiled(), has_gpu)
}

/// The rule of [`default_backend`], apart from the world. An empty variable counts as unset, as shells leave it.
fn choose(named: Option<&str>, compiled: &[Backend], has_gpu: impl FnOnce() -> bool) -> Result<Backend, BackendError> {
    if let Some(word) = named.filter(|word| !word.trim().is_empty()) {
        return word.parse().map_err(|_| BackendError::UnknownInEnvironment { name: word.to_owned() });
    }
    if compiled.contains(&Backend::Wgpu) && has_gpu() {
        return Ok(Backend::Wgpu);
    }
    let on_cpu = [Backend::NdArray, Backend::Flex].into_iter().find(|backend| compiled.contains(backend));
    Ok(on_cpu.unwrap_or(Backend::Wgpu))
}

fn has_gpu() -> bool {
    #[cfg(feature = "wgpu")]
    {
        crate::gpu::is_present()
    }
    #[cfg(not(feature = "wgpu"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Backend::{Flex, Metal, NdArray, Wgpu};

    #[test]
    fn a_real_gpu_comes_first_and_software_does_not() {
        let all = [NdArray, Flex, Wgpu];
        assert_eq!(choose(None, &all, || true), Ok(Wgpu));
        assert_eq!(choose(None, &all, || false), Ok(NdArray));
        assert_eq!(choose(None, &[Flex, Wgpu], || false), Ok(Flex));
        assert_eq!(choose(None, &[Wgpu], || false), Ok(Wgpu));
    }

    #[test]
    fn no_adapter_is_looked_for_in_vain() {
        let unasked = || panic!("asked the graphics driver");
        assert_eq!(choose(None, &[NdArray], unasked), Ok(NdArray));
        assert_eq!(choose(Some("flex"), &[NdArray, Wgpu], unasked), Ok(Flex));
    }

    #[test]
    fn the_environment_decides_when_it_says_something() {
        assert_eq!(choose(Some("Metal"), &[NdArray], || false), Ok(Metal));
        assert_eq!(choose(Some(" "), &[NdArray], || false), Ok(NdArray));
        let error = choose(Some("gpu"), &[NdArray], || false).unwrap_err();
        assert_eq!(error, BackendError::UnknownInEnvironment { name: "gpu".into() });
    }

    #[test]
    fn the_default_device_exists() {
        // whatever GEMMA_BACKEND says while the tests run
        let backend = default_backend().unwrap();
        match default_device() {
            Ok(device) => assert_eq!(device, backend.device().unwrap()),
            Err(reason) => println!("skipped: {reason}"),
        }
    }
}
