//! wgpu: finding an adapter, setting it up once per process, and describing it.
//!
//! Burn's own `Device::wgpu` sets the runtime up at the first tensor and panics when that fails. Here it is set
//! up when the device is asked for, through the calls that return errors.

use crate::{Backend, BackendError, Device};
use burn::backend::{CubeDevice, DispatchDevice, WgpuDevice, WgpuDeviceKind};
use burn::tensor::DeviceType as Kind;
use burn::tensor::wgpu::{WgpuBackend, WgpuInitError, WgpuSetup, wgpu::DeviceType};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A device that this process has set up.
struct Ready {
    device: Device,
    /// Absent when somebody else in the process had set the runtime up before.
    setup: Option<WgpuSetup>,
}

/// The devices set up so far: at most one per graphics API.
///
/// The lock is held during set-up: a runtime can be registered once only, and Vulkan loaders do not like two
/// threads creating instances.
static READY: Mutex<Vec<Ready>> = Mutex::new(Vec::new());

/// The device of a wgpu backend, set up on the first call that succeeds.
pub(crate) fn device(backend: Backend) -> Result<Device, BackendError> {
    let api = api(backend);
    let wanted = Device::from(WgpuDevice::default().on(api));
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if ready.iter().any(|known| known.device == wanted) {
        return Ok(wanted);
    }
    let setup = match Device::wgpu_options().graphics_api(api).init_with_setup() {
        Ok((_, setup)) => Some(setup),
        // The application made tensors there before it asked us, or set its own options: then it works.
        Err(WgpuInitError::Registration { .. }) => None,
        Err(error) => return Err(refusal(backend, &error)),
    };
    ready.push(Ready { device: wanted.clone(), setup });
    Ok(wanted)
}

/// Whether some adapter is more than a software rasterizer. Asks the drivers once per process.
pub(crate) fn is_present() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        if !may_have_gpu() {
            return false;
        }
        let _one_at_a_time = READY.lock().unwrap_or_else(PoisonError::into_inner);
        Device::enumerate(Kind::Wgpu).iter().any(|device| {
            matches!(device.as_dispatch(), DispatchDevice::Cube(CubeDevice::Wgpu(device)) if device.kind != WgpuDeviceKind::Cpu)
        })
    })
}

/// Whether there can be a GPU at all. On Linux each driver has a file of its own under `/dev`; without one, asking the
/// graphics libraries takes a tenth of a second, and some of them complain on standard error.
fn may_have_gpu() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    const NAMES: [&str; 6] = ["dri", "nvidia", "dxg", "kgsl", "mali", "pvr"];
    let Ok(devices) = std::fs::read_dir("/dev") else { return true };
    let mut names = devices.flatten().map(|device| device.file_name());
    names.any(|name| NAMES.iter().any(|known| name.to_string_lossy().starts_with(known)))
}

/// One line about a device of a CubeCL runtime.
pub(crate) fn describe(device: &Device) -> String {
    let name = match device.as_dispatch() {
        DispatchDevice::Cube(CubeDevice::Wgpu(device)) => match device.backend {
            WgpuBackend::Vulkan => Backend::Vulkan.name(),
            WgpuBackend::Metal => Backend::Metal.name(),
            _ => Backend::Wgpu.name(),
        },
        _ => "cube",
    };
    let ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    let setup = ready.iter().find(|known| known.device == *device).and_then(|known| known.setup.as_ref());
    let Some(setup) = setup else {
        // not ours: say what Burn knows, without opening the device
        return format!("{name}: {:?}", device.as_dispatch());
    };
    let adapter = setup.adapter.get_info();
    let kind = match adapter.device_type {
        DeviceType::DiscreteGpu => "discrete GPU",
        DeviceType::IntegratedGpu => "integrated GPU",
        DeviceType::VirtualGpu => "virtual GPU",
        DeviceType::Cpu => "software, runs on the CPU",
        DeviceType::Other => "adapter of unknown kind",
    };
    let driver = match (adapter.driver.as_str(), adapter.driver_info.as_str()) {
        ("", "") => String::new(),
        (driver, info) => one_line(&format!(", driver {driver} {info}")),
    };
    let limits = setup.device.limits();
    let binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) >> 20;
    format!("{name}: {} ({kind}), {:?}{driver}, bindings up to {binding} MiB", one_line(&adapter.name), adapter.backend)
}

fn api(backend: Backend) -> WgpuBackend {
    match backend {
        Backend::Vulkan => WgpuBackend::Vulkan,
        Backend::Metal => WgpuBackend::Metal,
        _ => WgpuBackend::Auto,
    }
}

fn refusal(backend: Backend, error: &WgpuInitError) -> BackendError {
    match error {
        WgpuInitError::AdapterUnavailable { message, .. } => {
            BackendError::NoAdapter { backend, reason: one_line(message) }
        }
        WgpuInitError::UnsupportedGraphicsApi { .. } => {
            BackendError::NoAdapter { backend, reason: "this system does not have its graphics API".to_owned() }
        }
        other => BackendError::Setup { backend, reason: one_line(&other.to_string()) },
    }
}

/// Drivers answer in paragraphs; errors are one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_adapter_and_a_bad_setting_are_told_apart() {
        let missing =
            WgpuInitError::AdapterUnavailable { device: WgpuDevice::default(), message: "none\n  found".into() };
        let BackendError::NoAdapter { reason, .. } = refusal(Backend::Wgpu, &missing) else {
            panic!("expected a missing adapter")
        };
        assert_eq!(reason, "none found");
        let setting = WgpuInitError::InvalidConfiguration { message: "tasks_max".into() };
        assert!(matches!(refusal(Backend::Wgpu, &setting), BackendError::Setup { .. }));
    }
}
