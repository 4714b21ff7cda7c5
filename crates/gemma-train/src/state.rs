//! The checkpoint of a training: what it takes to go on as if nothing had happened.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use gemma_model::BlockStack;
use gemma_weights::{Dtype, Format, SavedTensor, StoredTensor, read_safetensors_with_metadata, save_safetensors};

use crate::adamw::Moments;
use crate::gradients::{NamedValues, Values};
use crate::{AdamW, Error, Trainer};

/// What stands before the names of values in the file, by what they are.
const PARTS: [&str; 3] = ["parameter.", "first_moment.", "second_moment."];
/// The setting that may be larger when a training goes on than it was when it was kept.
pub const STEPS_SETTING: &str = "--steps";
/// The metadata that say where a training stands, and what it is of.
const STEP: &str = "step";
const RUN: &str = "run";

impl<M: BlockStack + Module> Trainer<M> {
    /// Writes parameters, optimizer and step into one file, which appears complete or not at all. `run` describes the data
    /// and the settings, a line `name: value` each, where the name of a setting is a flag and that of a digest is none. Only a
    /// training with the same description resumes from the file, but that [`STEPS_SETTING`] may be larger.
    ///
    /// # Errors
    /// When the file cannot be written; what was there is then as it was.
    pub fn save_state(&self, path: &Path, run: &str) -> Result<(), Error> {
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (STEP.to_owned(), self.steps().to_string()),
            (RUN.to_owned(), run.to_owned()),
        ]);
        let tensor = |part: usize, name: &str, shape: &[usize], values: &[f32]| -> SavedTensor {
            let mut bytes = vec![0; values.len() * 4];
            Format::F32.encode_row(values, &mut bytes);
            (format!("{}{name}", PARTS[part]), Dtype::F32, shape.to_vec(), bytes.into())
        };
        let values = self.values().iter().map(|(name, values)| tensor(0, name, &values.shape, &values.values));
        let moments = self.optimizer().moments().iter().flat_map(|(name, moments)| {
            [(1, &moments.first), (2, &moments.second)]
                .map(|(part, values)| tensor(part, name, &[values.len()], values))
        });
        Ok(save_safetensors(path, metadata, &mut values.chain(moments))?)
    }

    /// Goes on from a file that [`save_state`](Self::save_state) has written.
    ///
    /// # Errors
    /// When it is not such a file, or one of another training.
    pub fn load_state(&mut self, path: &Path, run: &str) -> Result<(), Error> {
        let failed = |reason: &str| Error::State { path: path.to_owned(), reason: reason.to_owned() };
        let (tensors, metadata) = read_safetensors_with_metadata(path)?;
        let text = |key: &str| metadata.get(key).map(String::as_str);
        let step: usize = text(STEP).and_then(|step| step.parse().ok()).ok_or_else(|| failed("it says no step"))?;
        if let Some(reason) = other_training(text(RUN).unwrap_or_default(), run) {
            return Err(failed(&reason));
        }
        let mut values = NamedValues::new();
        let mut moments: BTreeMap<String, Moments> = BTreeMap::new();
        for (name, tensor) in tensors {
            let found = PARTS.iter().enumerate().find_map(|(part, prefix)| Some((part, name.strip_prefix(prefix)?)));
            let Some((part, name)) = found else { return Err(failed("it holds something else")) };
            if !self.values().contains_key(name) || tensor.format != Format::F32 {
                return Err(failed("it holds other parameters than the model has"));
            }
            let numbers = StoredTensor::to_f32(&tensor);
            if numbers.len() != self.values()[name].values.len() {
                return Err(failed("a parameter has another size than in the model"));
            }
            match part {
                0 => drop(
                    values
                        .insert(name.to_owned(), Values { shape: self.values()[name].shape.clone(), values: numbers }),
                ),
                1 => moments.entry(name.to_owned()).or_default().first = numbers,
                _ => moments.entry(name.to_owned()).or_default().second = numbers,
            }
        }
        let whole = moments.values().all(|moments| moments.first.len() == moments.second.len());
        if values.len() != self.values().len() || !whole {
            return Err(failed("parameters are missing"));
        }
        let optimizer = AdamW::resumed(self.options().adamw, step as u64, moments);
        self.restore(step, values, optimizer);
        Ok(())
    }
}

/// Why a training as `now` describes it cannot go on from one as `before` does; `None` where it can: all is the same, or
/// only the number of steps is larger.
fn other_training(before: &str, now: &str) -> Option<String> {
    let settings = |text: &str| -> Vec<(String, String)> {
        text.lines()
            .map(|line| line.split_once(": ").unwrap_or((line, "")))
            .map(|(a, b)| (a.into(), b.into()))
            .collect()
    };
    let (before, now) = (settings(before), settings(now));
    if before.iter().map(|(name, _)| name).ne(now.iter().map(|(name, _)| name)) {
        return Some("it belongs to a training with other data or other settings".to_owned());
    }
    let differing =
        before.iter().zip(&now).filter(|(before, now)| before != now).filter(|((name, before), (_, now))| {
            let steps = |text: &str| text.parse::<usize>().unwrap_or(0);
            name != STEPS_SETTING || steps(now) < steps(before)
        });
    // what is no flag is a digest, and may follow from a flag
    let (flags, digests): (Vec<_>, Vec<_>) = differing.partition(|((name, _), _)| name.starts_with("--"));
    let told: Vec<String> = match flags.is_empty() {
        true => digests.into_iter().map(|((name, _), _)| format!("{name} is another")).collect(),
        false => {
            let told = |((name, before), (_, now)): (&(String, String), &(String, String))| {
                format!("{name} was {before} and is {now}")
            };
            flags.into_iter().map(told).collect()
        }
    };
    (!told.is_empty())
        .then(|| format!("it belongs to a training with other data or other settings ({})", told.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_and_more_steps_are_the_same_training() {
        let run = |steps: usize, rank: usize| format!("--steps: {steps}\n--rank: {rank}\nthe model: {rank}");
        assert_eq!(other_training(&run(60, 8), &run(60, 8)), None);
        assert_eq!(other_training(&run(60, 8), &run(100, 8)), None);
        let said = |now: &str| other_training(&run(60, 8), now).expect("another training");
        assert!(said(&run(40, 8)).contains("(--steps was 60 and is 40)"));
        assert!(said(&run(100, 16)).contains("(--rank was 8 and is 16)"));
        assert!(said("--steps: 60\n--rank: 8\nthe model: 9").contains("(the model is another)"));
        assert!(said("lora 8 seed 0").contains("other data or other settings"));
    }
}
