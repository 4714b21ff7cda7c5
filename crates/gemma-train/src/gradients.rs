//! The trainable parameters of a network and their gradients, by name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Gradients as Recorded, Tensor, TensorData};
use gemma_model::BlockStack;
use gemma_nn::{LoraFactors, Saver, Weight};

use crate::Error;

/// What PEFT writes before the path of a module.
pub(crate) const PEFT_PREFIX: &str = "base_model.model.";

/// The values of one parameter, or of its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// The shape by which files know it.
    pub shape: Vec<usize>,
    /// f32 values in row-major order.
    pub values: Vec<f32>,
}

/// Values by the name of a parameter: that of the checkpoint, and of LoRA factors PEFT's
/// (`base_model.model.….lora_A.weight`).
pub type NamedValues = BTreeMap<String, Values>;

/// The loss of a batch and its gradient, both summed over what is learned.
#[derive(Clone, Debug, Default)]
pub struct BatchGradients {
    /// The sum of the losses, in nats.
    pub loss: f64,
    /// How many losses: tokens to be learned, or pairs.
    pub count: usize,
    /// Tokens read.
    pub tokens: usize,
    /// The gradient of the sum, by the name of the parameter.
    pub gradients: NamedValues,
}

impl BatchGradients {
    /// The mean loss and its gradient.
    ///
    /// # Errors
    /// When there is nothing to learn.
    pub(crate) fn mean(mut self, step: usize) -> Result<(f64, NamedValues), Error> {
        if self.count == 0 {
            return Err(Error::EmptyBatch { step });
        }
        let weight = 1.0 / self.count as f32;
        self.gradients.values_mut().flat_map(|gradient| &mut gradient.values).for_each(|value| *value *= weight);
        Ok((self.loss / self.count as f64, self.gradients))
    }
}

/// Called for each trainable parameter.
trait Visit {
    fn parameter<const D: usize>(&mut self, name: String, shape: Vec<usize>, param: &Param<Tensor<D>>);
}

/// Turns what a network hands to a saver into visits of its trainable parameters.
struct Visitor<'a, V>(&'a mut V);

impl<V: Visit> Visitor<'_, V> {
    fn visit<const D: usize>(&mut self, name: String, shape: Vec<usize>, param: &Param<Tensor<D>>) {
        if param.val().is_require_grad() {
            self.0.parameter(name, shape, param);
        }
    }
}

impl<V: Visit> Saver for Visitor<'_, V> {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        if let Weight::Dense(param) = weight {
            self.visit(name.to_owned(), weight.shape().to_vec(), param);
        }
    }

    fn vector(&mut self, name: &str, values: &Param<Tensor<1>>) {
        let shape = values.val().dims().to_vec();
        self.visit(name.to_owned(), shape, values);
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: &Param<Tensor<1>>) {
        self.visit(name.to_owned(), shape.to_vec(), values);
    }

    fn lora(&mut self, name: &str, factors: &LoraFactors) {
        for (part, factor) in [("lora_A", &factors.lora_a), ("lora_B", &factors.lora_b)] {
            self.matrix(&format!("{PEFT_PREFIX}{name}.{part}.weight"), factor);
        }
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to f32")
}

/// The trainable parameters of a network, with the numbers by which the module knows them.
pub(crate) fn parameters<M: BlockStack>(model: &M) -> BTreeMap<String, (ParamId, Values)> {
    struct Collect(BTreeMap<String, (ParamId, Values)>);
    impl Visit for Collect {
        fn parameter<const D: usize>(&mut self, name: String, shape: Vec<usize>, param: &Param<Tensor<D>>) {
            let values = host(param.val().without_autodiff());
            self.0.insert(name, (param.id, Values { shape, values }));
        }
    }
    let mut collect = Collect(BTreeMap::new());
    model.save_parameters(&mut Visitor(&mut collect));
    collect.0
}

/// Adds what a backward pass has left for the parameters of `model` to `sums`.
pub(crate) fn accumulate<M: BlockStack>(model: &M, recorded: &mut Recorded, sums: &mut NamedValues) {
    struct Add<'a>(&'a mut Recorded, &'a mut NamedValues);
    impl Visit for Add<'_> {
        fn parameter<const D: usize>(&mut self, name: String, shape: Vec<usize>, param: &Param<Tensor<D>>) {
            let Some(gradient) = param.val().grad_remove(self.0) else { return };
            let gradient = host(gradient);
            match self.1.get_mut(&name) {
                Some(sum) => sum.values.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value),
                None => drop(self.1.insert(name, Values { shape, values: gradient })),
            }
        }
    }
    model.save_parameters(&mut Visitor(&mut Add(recorded, sums)));
}

/// The same network with other values for some of its parameters.
pub(crate) fn replaced<'v, M: Module>(model: M, values: impl IntoIterator<Item = (ParamId, &'v [f32])>) -> M {
    struct Replace<'a>(BTreeMap<u64, &'a [f32]>);
    impl ModuleMapper for Replace<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(values) = self.0.get(&param.id.val()) else { return param };
            param.map(|old| {
                let data = TensorData::new(values.to_vec(), old.dims());
                Tensor::from_data(data, &old.device()).require_grad()
            })
        }
    }
    let values = values.into_iter().map(|(id, values)| (id.val(), values)).collect();
    model.map(&mut Replace(values))
}
