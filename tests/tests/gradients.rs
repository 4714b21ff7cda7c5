//! Training through the layers: the gradient of every parameter against the reference.

use burn::Tensor;
use burn::module::Param;
use burn::tensor::Gradients;
use gemma::{Backend, Decoder, Network};
use gemma_nn::{Saver, Segment, Trainable, Weight};
use gemma_tests::{References, goldens, shared};
use gemma_train::cross_entropy;
use gemma_weights::{Checkpoint, Loader};
use recurrentgemma::Griffin;
use std::path::Path;

/// The largest permitted difference of a gradient, relative to its largest value.
const RELATIVE: f64 = 1e-3;

/// Compares each parameter's gradient with the reference's.
struct Compare<'a> {
    gradients: &'a Gradients,
    expected: &'a References,
    context: String,
    compared: usize,
}

impl Compare<'_> {
    fn compare<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let found: Vec<f32> =
            param.val().grad(self.gradients).expect("a gradient").into_data().try_into_vec().expect("f32");
        let expected = self.expected.tensor(&format!("grad.{name}"));
        let largest = expected.values.iter().fold(0f64, |m, v| m.max(v.abs()));
        let distance = gemma_tests::max_distance(&found, &expected.values);
        assert!(distance <= RELATIVE * largest, "{}: gradient of {name} is {distance} off, of {largest}", self.context);
        self.compared += 1;
    }
}

impl Saver for Compare<'_> {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        let Weight::Dense(param) = weight else { panic!("{name} is not trainable") };
        self.compare(name, param);
    }

    fn vector(&mut self, name: &str, values: &Param<Tensor<1>>) {
        self.compare(name, values);
    }

    fn tensor(&mut self, name: &str, _shape: &[usize], values: &Param<Tensor<1>>) {
        self.compare(name, values);
    }
}

fn check<N: Network>(folder: &Path, expected: &References, tokens: &[u32], targets: &[Option<u32>]) {
    for backend in [Backend::NdArray, Backend::Flex, Backend::Wgpu].into_iter().filter(|backend| backend.is_compiled())
    {
        let device = backend.device().expect("a compiled backend opens");
        let checkpoint = Checkpoint::open(folder).expect("a model folder");
        let config = N::config_of(&checkpoint).expect("a configuration");
        let mut loader = Loader::new(&checkpoint, None, &device);
        let model = N::load(&mut Trainable::new(&mut loader), &config, checkpoint.dtype());
        let inputs = &tokens[..tokens.len() - 1];
        let loss = cross_entropy(model.uncached_logits(inputs, &[Segment::causal(0, inputs.len())]), targets);
        let found = f64::from(loss.clone().into_scalar::<f32>());
        let context = format!("{} on {backend}", folder.display());
        assert!((found - expected.tensor("loss").values[0]).abs() < 1e-4, "{context}: loss {found}");
        let gradients = loss.backward();
        let mut compare = Compare { gradients: &gradients, expected, context, compared: 0 };
        model.save(&mut compare);
        assert_eq!(compare.compared, N::tensors(&config, &device).len());
    }
}

/// The training case of a folder of this repository.
fn check_golden<N: Network>(name: &str) {
    let folder = goldens().join(name);
    let expected = References::open(&folder.join("expected.safetensors"));
    let tokens: Vec<u32> = expected.tensor("tokens").values.iter().map(|id| *id as u32).collect();
    let targets: Vec<Option<u32>> = tokens[1..].iter().copied().map(Some).collect();
    check::<N>(&folder, &expected, &tokens, &targets);
}

/// The training case of a folder of the shared set.
fn check_shared<N: Network>(name: &str) {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures").join(name);
    let expected = References::open(&folder.join("train.safetensors"));
    let tokens: Vec<u32> = expected.tensor("input_ids").values.iter().map(|id| *id as u32).collect();
    let labels = expected.tensor("labels").values;
    let targets: Vec<Option<u32>> = labels[1..].iter().map(|label| (*label >= 0.0).then_some(*label as u32)).collect();
    check::<N>(&folder, &expected, &tokens, &targets);
}

#[test]
fn goldens_of_this_repository() {
    check_golden::<Decoder>("gemma1-f32");
    check_golden::<Decoder>("gemma2-f32");
    check_golden::<Griffin>("recurrentgemma-f32");
}

#[test]
fn fixtures_of_the_shared_set() {
    check_shared::<Decoder>("gemma1_mqa/f32");
    check_shared::<Griffin>("recurrentgemma/f32");
}
