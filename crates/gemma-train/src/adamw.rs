//! The optimizer.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::gradients::NamedValues;

/// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), on f32 values in memory: its state can be written to
/// a file and read again without losing a bit.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    options: AdamWOptions,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// The constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// How slowly the mean of the gradients forgets.
    pub beta1: f32,
    /// How slowly the mean of their squares forgets.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub epsilon: f32,
    /// Decoupled weight decay, applied to matrices and not to vectors (norms, biases).
    pub weight_decay: f32,
}

/// As PEFT's users mostly have it: 0.9, 0.999, 1e-8, no decay.
impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The two running means of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
}

impl AdamW {
    /// An optimizer that has seen nothing.
    pub fn new(options: AdamWOptions) -> Self {
        Self { options, steps: 0, moments: BTreeMap::new() }
    }

    /// One that goes on after `steps` steps from what it had then.
    pub(crate) fn resumed(options: AdamWOptions, steps: u64, moments: BTreeMap<String, Moments>) -> Self {
        Self { options, steps, moments }
    }

    pub(crate) fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Changes `parameters` by one step against `gradients`, which are divided by `divisor` first. Parameters without a
    /// gradient stay as they are.
    pub fn step(&mut self, parameters: &mut NamedValues, gradients: &NamedValues, divisor: f32, learning_rate: f64) {
        self.steps += 1;
        let AdamWOptions { beta1, beta2, epsilon, weight_decay } = self.options;
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(i32::try_from(self.steps).unwrap_or(i32::MAX));
        let (first_correction, second_correction) = (correction(beta1), correction(beta2));
        let rate = (learning_rate / first_correction) as f32;
        let root_correction = second_correction.sqrt() as f32;
        for (name, gradient) in gradients {
            if parameters.contains_key(name) {
                let moments = self.moments.entry(name.clone()).or_default();
                moments.first.resize(gradient.values.len(), 0.0);
                moments.second.resize(gradient.values.len(), 0.0);
            }
        }
        // every value has a step of its own, so that the threads change nothing
        let mut moments: BTreeMap<&String, &mut Moments> = self.moments.iter_mut().collect();
        let steps: Vec<_> = parameters
            .iter_mut()
            .filter_map(|(name, parameter)| Some((parameter, gradients.get(name)?, moments.remove(name)?)))
            .collect();
        steps.into_par_iter().for_each(|(parameter, gradient, moments)| {
            let keep = if parameter.shape.len() > 1 { 1.0 - learning_rate as f32 * weight_decay } else { 1.0 };
            let moments = moments.first.iter_mut().zip(&mut moments.second);
            for ((value, gradient), (first, second)) in parameter.values.iter_mut().zip(&gradient.values).zip(moments) {
                let gradient = gradient / divisor;
                *first = beta1 * *first + (1.0 - beta1) * gradient;
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                *value = *value * keep - rate * *first / (second.sqrt() / root_correction + epsilon);
            }
        });
    }
}

/// The norm of all gradients together.
pub(crate) fn norm(gradients: &NamedValues) -> f64 {
    gradients.values().flat_map(|gradient| &gradient.values).map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradients::Values;

    fn named(values: &[f32]) -> NamedValues {
        [("w".to_owned(), Values { shape: vec![1, values.len()], values: values.to_vec() })].into()
    }

    #[test]
    fn steps_are_those_of_the_paper() {
        // by hand, in f64
        let options = AdamWOptions { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
        let (mut value, mut first, mut second) = (0.5f64, 0.0, 0.0);
        let mut parameters = named(&[0.5]);
        let mut optimizer = AdamW::new(options);
        for (step, gradient) in [0.3f64, -0.2, 0.7].into_iter().enumerate() {
            optimizer.step(&mut parameters, &named(&[gradient as f32]), 1.0, 0.01);
            first = 0.9 * first + 0.1 * gradient;
            second = 0.99 * second + 0.01 * gradient * gradient;
            let t = step as i32 + 1;
            let corrected = (first / (1.0 - 0.9f64.powi(t)), second / (1.0 - 0.99f64.powi(t)));
            value -= 0.01 * (corrected.0 / (corrected.1.sqrt() + 1e-8) + 0.1 * value);
            assert!((f64::from(parameters["w"].values[0]) - value).abs() < 1e-6, "step {step}");
        }
    }

    #[test]
    fn a_resumed_optimizer_goes_on_to_the_bit() {
        let run = |from: usize, optimizer: &mut AdamW, parameters: &mut NamedValues| {
            for step in from..from + 3 {
                let gradient = named(&[(step as f32).sin(), (step as f32).cos()]);
                optimizer.step(parameters, &gradient, 2.0, 0.01);
            }
        };
        let (mut whole, mut parameters) = (AdamW::new(AdamWOptions::default()), named(&[1.0, -1.0]));
        run(0, &mut whole, &mut parameters);
        let kept = (whole.steps, whole.moments().clone(), parameters.clone());
        run(3, &mut whole, &mut parameters);
        let mut resumed = AdamW::resumed(AdamWOptions::default(), kept.0, kept.1);
        let mut again = kept.2;
        run(3, &mut resumed, &mut again);
        assert_eq!((resumed, again), (whole, parameters));
    }

    #[test]
    fn the_norm_is_that_of_all_values() {
        let mut both = named(&[3.0]);
        both.insert("v".to_owned(), Values { shape: vec![1], values: vec![-4.0] });
        assert_eq!(norm(&both), 5.0);
    }
}
