//! The Python module `gemma_burn`: any Gemma-family model behind one class, as a pipeline of HF transformers is.
//!
//! | Module | What is in it |
//! |---|---|
//! | `gemma` | the class `Gemma`: arguments in, Python values out |
//! | `opened` | an opened model, and what each verb does with it |
//! | `options` | keyword arguments as options of the library |
//! | `image` | paths, bytes and arrays as images |
//! | `worker` | the thread that computes while Python goes on, and Ctrl-C |
//! | `failure` | what can fail, and the exception that it becomes |

#![warn(missing_docs, unreachable_pub)]

mod failure;
mod gemma;
mod image;
mod opened;
mod options;
mod worker;

use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: gemma_kernels::LargeBlocks = gemma_kernels::LargeBlocks::new();

/// Google's Gemma models, computed by Rust on the Burn framework.
#[pymodule]
fn gemma_burn(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<gemma::Gemma>()?;
    module.add_class::<gemma::TextStream>()
}
