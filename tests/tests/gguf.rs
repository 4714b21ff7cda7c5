//! Models in GGUF files: the same logits as the reference computes from the weights they stand for.

use crate::parity::{Case, check_with, ids};
use gemma::{Backend, Gemma, GenerateOptions};
use gemma_model::{Activations, LoadOptions};
use gemma_tests::{References, max_distance, shared};
use gemma_weights::Checkpoint;

/// The largest permitted distance of a value from what the reference reads in the same block.
const VALUES: f64 = 1e-6;

#[test]
fn files_of_the_shared_set() {
    let Some(shared) = shared() else { return };
    for (name, kinds) in [("gemma1_mha", &["q8_0", "q4_0"][..]), ("gemma2", &["f16"][..])] {
        let folder = shared.join("reference/fixtures").join(name).join("f32");
        let expected = References::open(&folder.join("gguf.expected.safetensors"));
        for kind in kinds {
            let file = folder.join(format!("model-{kind}.gguf"));
            let dequantized = expected.tensor(&format!("{kind}.dequantised.blk.0.ffn_down.weight"));
            let checkpoint = Checkpoint::open(&file).expect("a GGUF file");
            let found = checkpoint.get("model.layers.0.mlp.down_proj.weight").expect("under the folder's name");
            assert_eq!(found.shape, dequantized.shape);
            assert!(max_distance(&found.to_f32(), &dequantized.values) < VALUES, "{}", file.display());
            let case = Case {
                name: (*kind).to_owned(),
                tokens: ids(&expected.tensor("input_ids").values),
                logits: expected.tensor(&format!("{kind}.logits")).values,
                wide: None,
                greedy: None,
            };
            let options = LoadOptions { activations: Activations::Exact, ..LoadOptions::default() };
            check_with::<gemma::Decoder>(&file, &options, &[case]);
        }
    }
}

/// The file brings its own tokenizer, which cuts texts as the folder's does.
#[test]
fn the_tokenizer_in_the_file_is_that_of_the_folder() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("reference/fixtures/gemma1_mha/f32");
    let device = Backend::compiled()[0].device().expect("a compiled backend opens");
    let open = |name: &str| Gemma::load(folder.join(name).to_str().expect("a plain path"), &device).expect("a model");
    let (file, folder) = (open("model-q8_0.gguf"), open(""));
    let texts = ["Hello, world", "  two spaces\n\n\tand a tab", "naïve café 12345 <b>bold</b>", "日本語 \u{1f600}", ""];
    for text in texts {
        let tokens = |gemma: &Gemma| gemma.tokenizer().expect("a tokenizer").encode(text);
        assert_eq!(tokens(&file), tokens(&folder), "{text:?}");
    }
    assert_eq!(file.stop_tokens(), folder.stop_tokens());
    assert!(file.generate("Hello", &GenerateOptions::greedy(4)).is_ok());
}
