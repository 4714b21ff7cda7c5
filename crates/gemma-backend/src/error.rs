//! What can stand between a backend's name and a device.

use crate::Backend;

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A word that names no backend.
    #[error("unknown backend `{name}`; the backends are {}", names(&Backend::ALL))]
    Unknown {
        /// The word.
        name: String,
    },
    /// `GEMMA_BACKEND` holds a word that names no backend.
    #[error(
        "the environment variable {} names the unknown backend `{name}`; the backends are {}; unset it to let the program choose",
        crate::ENVIRONMENT,
        names(&Backend::ALL)
    )]
    UnknownInEnvironment {
        /// The word.
        name: String,
    },
    /// The backend's feature was off when this program was built.
    #[error(
        "the backend `{backend}` is not compiled into this program; rebuild it with `--features {backend}`, or choose {}",
        names(&Backend::compiled())
    )]
    NotCompiled {
        /// The backend asked for, whose name is also its feature's.
        backend: Backend,
    },
    /// No adapter of this machine offers the graphics API.
    #[error("no GPU is reachable for the backend `{backend}` ({reason}); {}", driver_hint(*.backend))]
    NoAdapter {
        /// The backend asked for.
        backend: Backend,
        /// What the graphics library said.
        reason: String,
    },
    /// There is an adapter, but it could not be set up.
    #[error(
        "the GPU could not be set up for the backend `{backend}` ({reason}); update its driver, or check the environment variables CUBECL_WGPU_DEFAULT_DEVICE and CUBECL_WGPU_MAX_TASKS"
    )]
    Setup {
        /// The backend asked for.
        backend: Backend,
        /// What the graphics library said.
        reason: String,
    },
}

/// Names in a sentence: "`a`, `b` or `c`".
fn names(backends: &[Backend]) -> String {
    let quoted: Vec<String> = backends.iter().map(|backend| format!("`{backend}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// What to install where no adapter answers.
fn driver_hint(backend: Backend) -> &'static str {
    if backend == Backend::Metal {
        return "Metal exists on Apple systems only; use `wgpu` or a CPU backend elsewhere";
    }
    if cfg!(target_os = "linux") {
        "install the Vulkan driver of your GPU (Debian and Ubuntu: mesa-vulkan-drivers for AMD and Intel, the nvidia-driver package for NVIDIA) and the loader libvulkan1; mesa-vulkan-drivers also brings a software Vulkan for machines without a GPU"
    } else if cfg!(target_os = "macos") && backend == Backend::Vulkan {
        "install MoltenVK, or use `wgpu`, which runs on Metal"
    } else {
        "install or update the driver of your GPU, or use a CPU backend"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_one_line_and_says_what_to_do() {
        let reason = || "driver said no".to_owned();
        for backend in Backend::ALL {
            for (error, needle) in [
                (BackendError::Unknown { name: "gpu".into() }, "`metal`"),
                (BackendError::UnknownInEnvironment { name: "gpu".into() }, "GEMMA_BACKEND"),
                (BackendError::NotCompiled { backend }, "--features"),
                (BackendError::NoAdapter { backend, reason: reason() }, "driver said no"),
                (BackendError::Setup { backend, reason: reason() }, "update its driver"),
            ] {
                let message = error.to_string();
                assert!(message.contains(needle), "{message}");
                assert!(!message.contains('\n'), "{message}");
            }
        }
    }

    #[test]
    fn names_read_as_a_sentence() {
        assert_eq!(names(&[Backend::Wgpu]), "`wgpu`");
        assert_eq!(names(&Backend::ALL), "`ndarray`, `flex`, `wgpu`, `vulkan` or `metal`");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_missing_driver_is_named() {
        let error = BackendError::NoAdapter { backend: Backend::Wgpu, reason: String::new() };
        assert!(error.to_string().contains("mesa-vulkan-drivers"));
    }
}
