//! What a rendering may cost, and how it ends when it costs more.

use std::cell::Cell;

/// Why a template could not be used. The reasons are short texts for people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The template called `raise_exception`.
    Refused(String),
    /// A mistake in the template, or something this interpreter does not do.
    Failed(String),
    /// The source is longer, or nested deeper, than any template needs.
    Limit(String),
    /// The budget of steps or of memory is used up.
    Cost,
}

impl Fault {
    /// A mistake, in words.
    pub(super) fn failed<T>(reason: impl Into<String>) -> Result<T, Fault> {
        Err(Fault::Failed(reason.into()))
    }
}

/// Steps and bytes that are left. Every evaluated node is a step, every value that is looked at another; every byte
/// that is copied counts, whether it is kept or not.
#[derive(Debug)]
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
}

impl Budget {
    pub(super) fn new(steps: u64, bytes: u64) -> Self {
        Self { steps: Cell::new(steps), bytes: Cell::new(bytes) }
    }

    /// Takes steps.
    pub(super) fn spend(&self, steps: u64) -> Result<(), Fault> {
        take(&self.steps, steps)
    }

    /// Takes memory; call it before the memory is asked for.
    pub(super) fn allocate(&self, bytes: usize) -> Result<(), Fault> {
        take(&self.bytes, bytes as u64)
    }
}

fn take(left: &Cell<u64>, amount: u64) -> Result<(), Fault> {
    let rest = left.get().checked_sub(amount).ok_or(Fault::Cost)?;
    left.set(rest);
    Ok(())
}
