//! Many prompts at once: the engine, run to the end of all requests.
//!
//! The prompts lie one after the other on the token axis, each as a segment of its own length, so nothing is padded and
//! nothing of one sequence reaches another. By default a token may differ from that of a generation alone where two logits
//! are closer than the rounding of a product, which depends on the number of its rows.

use std::collections::HashMap;

use gemma_tokenizer::Tokenizer;

use crate::{CausalModel, Engine, EngineOptions, Error, Event, Generated, Request, TextDecoder};

/// Continues all prompts together and returns the answers in the order of the requests.
///
/// Each step is one forward pass: sequences in the decode phase take the one token that was sampled last, prompts that are
/// still being prefilled share as many further tokens as the largest
/// [`prefill_chunk`](crate::GenerateOptions::prefill_chunk) of the requests, first come first served. An answer that is
/// over leaves the batch, and its cache is freed.
///
/// [`Timings`](crate::Timings) hold the seconds that passed for the whole batch while a request was in it.
///
/// # Errors
///
/// [`Error::Request`], before anything is computed, when a request is wrong; a failing request, model or device ends the
/// batch. An [`Engine`] goes on without the request that failed.
pub fn generate_batch<'a, M: CausalModel>(
    model: &'a M,
    tokenizer: &'a Tokenizer,
    requests: Vec<Request<'a>>,
) -> Result<Vec<Generated>, Error> {
    let prefill_tokens = requests.iter().map(|request| request.options.prefill_chunk).max().unwrap_or(0).max(1);
    let options = EngineOptions { prefill_tokens, max_requests: requests.len().max(1), ..EngineOptions::default() };
    let mut engine = Engine::new(model, options)?;
    let mut places = HashMap::new();
    let mut answers: Vec<Generated> = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        let decoder = TextDecoder::new(tokenizer.stream(), &request.options.stop);
        let stop_rule = request.stop_rule.or_else(|| Some(Box::new(decoder)));
        let id = engine
            .submit(Request { stop_rule, ..request })
            .map_err(|error| Error::Request { index, source: Box::new(error) })?;
        places.insert(id, index);
        answers.push(Generated::default());
    }
    while !engine.is_idle() {
        for event in engine.step() {
            let answer = &mut answers[places[&event.id()]];
            match event {
                Event::Failed { error, .. } => return Err(error),
                event => answer.take(event),
            }
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests;
