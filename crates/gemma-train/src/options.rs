//! How to train.

use crate::{AdamWOptions, Error};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Along half a cosine.
    #[default]
    Cosine,
    /// Along a line.
    Linear,
    /// Not at all.
    Constant,
}

/// The settings of a training that do not depend on its data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingOptions {
    /// Number of optimizer steps; the schedule ends with the last.
    pub steps: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to it.
    pub warmup: usize,
    /// How it falls after that.
    pub schedule: Schedule,
    /// The part of the highest learning rate that is left at the end.
    pub floor: f64,
    /// The optimizer's constants.
    pub adamw: AdamWOptions,
    /// The largest norm of all gradients together; larger ones are scaled down to it. `None`: no limit.
    pub clip: Option<f64>,
    /// Tokens that are read at once. The examples of a step are packed into parts of at most so many; a longer example is
    /// a part of its own.
    pub pack_tokens: usize,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        Self {
            steps: 100,
            learning_rate: 2e-4,
            warmup: 5,
            schedule: Schedule::Cosine,
            floor: 0.0,
            adamw: AdamWOptions::default(),
            clip: Some(1.0),
            pack_tokens: 1024,
        }
    }
}

impl TrainingOptions {
    /// The learning rate of a step, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = done.min(1.0);
        let left = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Schedule::Linear => 1.0 - done,
            Schedule::Constant => 1.0,
        };
        self.learning_rate * (self.floor + (1.0 - self.floor) * left)
    }

    /// Whether every option is inside its range.
    ///
    /// # Errors
    /// [`Error::Option`] with the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        let positive = |name, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(Error::Option { name, value: value.to_string(), expected: "a positive number" }),
        };
        let part = |name, value: f64, expected| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(Error::Option { name, value: value.to_string(), expected }),
        };
        positive("learning_rate", self.learning_rate)?;
        self.clip.map_or(Ok(()), |clip| positive("clip", clip))?;
        part("floor", self.floor, "from 0 to 1")?;
        part("weight_decay", self.adamw.weight_decay.into(), "from 0 to 1")?;
        if self.pack_tokens == 0 {
            return Err(Error::Option { name: "pack_tokens", value: "0".into(), expected: "at least 1" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_as_the_schedule_says() {
        let options = TrainingOptions { steps: 14, warmup: 4, learning_rate: 1.0, ..TrainingOptions::default() };
        assert_eq!(options.learning_rate_at(0), 0.25);
        assert_eq!(options.learning_rate_at(3), 1.0);
        assert_eq!(options.learning_rate_at(4), 1.0);
        assert!((options.learning_rate_at(9) - 0.5).abs() < 1e-12);
        assert!(options.learning_rate_at(14) < 1e-12);
        let linear = TrainingOptions { schedule: Schedule::Linear, floor: 0.2, ..options };
        assert!((linear.learning_rate_at(9) - 0.6).abs() < 1e-12);
        assert_eq!(TrainingOptions { schedule: Schedule::Constant, ..options }.learning_rate_at(13), 1.0);
    }

    #[test]
    fn options_outside_their_range_are_refused() {
        let default = TrainingOptions::default();
        assert!(default.check().is_ok());
        for wrong in [
            TrainingOptions { learning_rate: 0.0, ..default },
            TrainingOptions { learning_rate: f64::NAN, ..default },
            TrainingOptions { clip: Some(-1.0), ..default },
            TrainingOptions { floor: 2.0, ..default },
            TrainingOptions { pack_tokens: 0, ..default },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
