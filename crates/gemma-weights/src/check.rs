//! Strict loading: the checkpoint's tensors must be exactly those that the configuration asks for.

use crate::{Checkpoint, Error, TensorSpec};

impl Checkpoint {
    /// Tells a GGUF file that holds a vocabulary alone from a model.
    ///
    /// # Errors
    /// [`Error::NoTensors`]
    pub fn require_tensors(&self) -> Result<(), Error> {
        match (self.tensors().next(), self.path()) {
            (None, Some(path)) => Err(Error::NoTensors { path: path.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Compares names and shapes with what a model needs. Tensors that the model does not need are an error too,
    /// unless `ignored` says of their name that they carry nothing (a stored `lm_head.weight` when it is tied).
    ///
    /// # Errors
    /// [`Error::NoTensors`] when there are none, [`Error::Tensors`], once, with every missing, unexpected and misshapen name.
    pub fn check(&self, expected: &[TensorSpec], ignored: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        self.require_tensors()?;
        let missing: Vec<String> =
            expected.iter().filter(|spec| self.get(&spec.name).is_none()).map(|spec| spec.name.clone()).collect();
        let misshapen: Vec<String> = expected
            .iter()
            .filter_map(|spec| {
                let found = &self.get(&spec.name)?.shape;
                (*found != spec.shape).then(|| format!("{}: expected {:?}, found {found:?}", spec.name, spec.shape))
            })
            .collect();
        let known: std::collections::BTreeSet<&str> = expected.iter().map(|spec| spec.name.as_str()).collect();
        let unexpected: Vec<String> = self
            .tensors()
            .filter(|(name, _)| !known.contains(name) && !ignored(name))
            .map(|(name, _)| name.to_owned())
            .collect();
        if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
            Ok(())
        } else {
            Err(Error::Tensors { missing, unexpected, misshapen })
        }
    }
}
