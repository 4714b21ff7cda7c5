//! What the end-to-end tests share: where the reference data lies, and how it is read.
//!
//! Two sets of reference data exist. `tests/goldens` is part of the repository (`make.py` there says how it was
//! made). A larger set is found through the environment variable `GEMMA_TEST_SHARED`; tests that use it say that they
//! skipped when it is unset.

pub mod tiny;

use gemma_backend::{Backend, Device};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

/// The folder of the goldens in this repository.
pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

/// The folder of the larger reference set; prints that the test was skipped when there is none.
pub fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("GEMMA_TEST_SHARED").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: GEMMA_TEST_SHARED is not set");
    }
    folder
}

/// A tensor of a reference file, as f64 values whatever it was stored in.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f64>,
}

impl Reference {
    /// Row `index` of the first axis.
    pub fn row(&self, index: usize) -> &[f64] {
        let width: usize = self.shape[1..].iter().product();
        &self.values[index * width..(index + 1) * width]
    }
}

/// A file of reference tensors.
#[derive(Debug)]
pub struct References {
    bytes: Vec<u8>,
}

impl References {
    /// Reads `file`.
    ///
    /// # Panics
    /// When it cannot be read: reference data that is there must be right.
    pub fn open(file: &Path) -> Self {
        Self { bytes: std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())) }
    }

    /// The tensor called `name`, if the file has it.
    pub fn get(&self, name: &str) -> Option<Reference> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let view = file.tensor(name).ok()?;
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::I32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::I64 => data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Dtype::BF16 => data
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)))
                .collect(),
            Dtype::U8 => data.iter().map(|byte| f64::from(*byte)).collect(),
            other => panic!("{name} is stored as {other:?}"),
        };
        Some(Reference { shape: view.shape().to_vec(), values })
    }

    /// The tensor called `name`.
    ///
    /// # Panics
    /// When the file lacks it.
    pub fn tensor(&self, name: &str) -> Reference {
        self.get(name).unwrap_or_else(|| panic!("the reference has no tensor {name}"))
    }

    /// Every name in the file.
    pub fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        file.names().into_iter().map(str::to_owned).collect()
    }
}

/// Every compiled backend and its device; one stands for the three kinds of shader.
///
/// # Panics
/// When one does not open.
pub fn devices() -> Vec<(Backend, Device)> {
    Backend::compiled()
        .into_iter()
        .filter(|backend| !matches!(backend, Backend::Vulkan | Backend::Metal))
        .map(|backend| (backend, backend.device().expect("a compiled backend opens")))
        .collect()
}

/// The largest distance between two lists of numbers.
pub fn max_distance(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "two lists of one length");
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

/// The root of the mean squared distance between two lists of numbers.
pub fn rms_distance(a: impl IntoIterator<Item = f64>, b: &[f64]) -> f64 {
    let sum: f64 = a.into_iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (sum / b.len() as f64).sqrt()
}
