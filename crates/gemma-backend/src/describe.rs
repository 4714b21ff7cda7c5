//! A device in words, for `gemma inspect`, `gemma bench` and bug reports.

use crate::Device;
use burn::backend::DispatchDevice;

/// One line about a device: the backend and what it runs on.
///
/// For a GPU: the adapter's name, whether it is software, graphics API, driver, and the largest buffer that a
/// kernel can see at once.
///
/// ```
/// let device = gemma_backend::default_device()?;
/// // "ndarray: CPU", "wgpu: NVIDIA GeForce RTX 4070 (discrete GPU), Vulkan, driver …, bindings up to 4096 MiB"
/// println!("{}", gemma_backend::describe(&device));
/// # Ok::<(), gemma_backend::BackendError>(())
/// ```
pub fn describe(device: &Device) -> String {
    let device = device.clone().without_autodiff();
    match device.as_dispatch() {
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => cpu("ndarray"),
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => cpu("flex"),
        #[cfg(feature = "wgpu")]
        DispatchDevice::Cube(_) => crate::gpu::describe(&device),
        // devices of backends that this crate does not offer, and the autodiff wrapper taken off above
        #[allow(unreachable_patterns)]
        other => format!("{other:?}"),
    }
}

#[cfg(any(feature = "ndarray", feature = "flex"))]
fn cpu(backend: &str) -> String {
    format!("{backend}: CPU")
}

#[cfg(test)]
mod tests {
    use crate::{Backend, describe};

    #[test]
    fn a_description_names_the_backend_with_or_without_autodiff() {
        for backend in Backend::compiled() {
            let Ok(device) = backend.device() else { continue };
            let line = describe(&device);
            println!("{line}");
            assert!(line.starts_with(&format!("{backend}: ")), "{line}");
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(describe(&device.autodiff()), line);
        }
    }
}
