//! Reads a beginning once and goes on from it in several ways: its cache is cloned, or kept in a file.
//!
//! ```text
//! cargo run --release -p recurrentgemma --example fork
//! cargo run --release -p recurrentgemma --example fork -- google/recurrentgemma-2b "The sea"
//! ```

use recurrentgemma::{
    CausalModel, GenerateOptions, Generation, Griffin, GriffinCache, RecurrentGemma, Sequence, TextStream,
    default_device, load_state, save_state,
};

fn main() -> anyhow::Result<()> {
    let beginning = std::env::args().nth(2).unwrap_or_else(|| "Once upon a time".to_owned());
    for text in run(std::env::args().nth(1), &beginning)? {
        println!("{beginning}{text}\n");
    }
    Ok(())
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library. Returns what follows
/// `beginning`: three times from a clone, each with another seed, and once more with the last seed from a file.
pub fn run(model: Option<String>, beginning: &str) -> anyhow::Result<Vec<String>> {
    let device = default_device()?;
    let model = match model {
        Some(model) => RecurrentGemma::load(&model, &device)?,
        None => recurrentgemma::demo(&device)?,
    };
    let network: &Griffin = model.network();

    let mut stem = Sequence::new(network.new_cache());
    stem.push(&model.tokenizer()?.encode(beginning));
    stem.prefill(network, 512, || true);
    let go_on = |branch: Sequence<GriffinCache>, seed| -> anyhow::Result<String> {
        let options = GenerateOptions { max_tokens: 80, seed: Some(seed), ..GenerateOptions::default() };
        let generation = Generation::follow(network, branch, &[], &options, model.stop_tokens())?;
        Ok(TextStream::new(generation, model.tokenizer()?.stream()).finish()?.text)
    };
    let mut texts = (1..=3).map(|seed| go_on(stem.clone(), seed)).collect::<anyhow::Result<Vec<_>>>()?;

    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stem.state");
    save_state(network, &stem, &file)?;
    texts.push(go_on(load_state(network, &file)?, 3)?);
    Ok(texts)
}
