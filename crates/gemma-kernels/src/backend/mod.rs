//! The operations, backend by backend: one file implements all operation traits of one backend.

mod autodiff;
#[cfg(feature = "wgpu")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod slices;
