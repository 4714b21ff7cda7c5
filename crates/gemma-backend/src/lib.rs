//! The one place where a backend feature becomes a device.
//!
//! A program names no Burn backend; it asks here for a [`Device`], and every tensor
//! made on that device computes there. Which backends exist is decided by Cargo features when compiling, and
//! any non-empty combination of them compiles; which of them runs is decided here, at run time:
//!
//! | feature   | [`Backend`]          | computes on                                                          |
//! |-----------|----------------------|----------------------------------------------------------------------|
//! | `ndarray` | [`Backend::NdArray`] | the CPU; the default feature                                         |
//! | `flex`    | [`Backend::Flex`]    | the CPU; Burn's successor of ndarray                                 |
//! | `wgpu`    | [`Backend::Wgpu`]    | a GPU through whichever API the system offers, in WGSL               |
//! | `vulkan`  | [`Backend::Vulkan`]  | a GPU through Vulkan, in SPIR-V; implies `wgpu`                      |
//! | `metal`   | [`Backend::Metal`]   | an Apple GPU through Metal, in MSL; implies `wgpu`                   |
//!
//! ```
//! // What the user asked for with GEMMA_BACKEND, else the best that this build and this machine offer.
//! let device = gemma_backend::default_device()?;
//! println!("{}", gemma_backend::describe(&device));
//!
//! // Or by name, as a command line would.
//! match "wgpu".parse::<gemma_backend::Backend>()?.device() {
//!     Ok(device) => println!("{}", gemma_backend::describe(&device)),
//!     Err(reason) => println!("no wgpu here: {reason}"),
//! }
//! # Ok::<(), gemma_backend::BackendError>(())
//! ```
//!
//! Nothing in this crate panics for want of a feature, a driver or an adapter: each is a [`BackendError`] that
//! says which one is missing. (A build without any backend does not get that far; see `build.rs`.)

mod backend;
mod choice;
mod describe;
mod error;
#[cfg(feature = "wgpu")]
mod gpu;
mod open;

pub use backend::{Backend, ENVIRONMENT};
pub use burn::tensor::Device;
pub use choice::{default_backend, default_device};
pub use describe::describe;
pub use error::BackendError;
