//! From a prompt to a probability.

use burn::tensor::Tensor;
use gemma_generate::{CausalModel, Segment};
use gemma_model::{Model, Network};
use gemma_tokenizer::{TokenId, Tokenizer};

use crate::{Error, Guideline, Subject, text_prompt};

/// How likely a text violates a guideline, from 0 to 1.
///
/// # Errors
/// When the guideline says nothing about such a text, the prompt does not fit, or the checkpoint came without a
/// tokenizer.
pub fn judge<N: Network>(model: &Model<N>, subject: Subject<'_>, guideline: &Guideline) -> Result<f64, Error> {
    let tokenizer = model.tokenizer()?;
    let prompt = tokenizer.encode_chat(&text_prompt(subject, guideline)?);
    Ok(judge_tokens(model.network(), &[prompt], yes_and_no(tokenizer)?)?.remove(0))
}

/// How likely the answer to each row of tokens begins with Yes and not with No; rows are read exactly as given.
///
/// # Errors
/// When a row is empty or too long, or a token unknown; and as [`violation`].
pub fn judge_tokens<M: CausalModel>(
    network: &M,
    rows: &[Vec<TokenId>],
    yes_and_no: [TokenId; 2],
) -> Result<Vec<f64>, Error> {
    let row = |tokens: &Vec<TokenId>| {
        check(network, tokens)?;
        let mut cache = network.no_cache();
        let logits = network.last_logits(tokens, &[Segment::causal(0, tokens.len())], &mut [&mut cache]);
        violation(logits, yes_and_no)
    };
    rows.iter().map(row).collect()
}

/// The probability of Yes against No from the final logits `[1, vocab]` after a question.
///
/// # Errors
/// When one of the two logits is NaN or infinite, so that no probability follows from them.
///
/// # Panics
/// When a token is not below the vocabulary size.
pub fn violation(logits: Tensor<2>, [yes, no]: [TokenId; 2]) -> Result<f64, Error> {
    let one = |token: TokenId| {
        let value: Vec<f32> = logits.clone().narrow(1, token as usize, 1).into_data().try_into_vec().expect("f32");
        let (logit, token) = (value[0], token as usize);
        let wrong = || gemma_generate::Error::NotFinite { token, logit };
        logit.is_finite().then_some(f64::from(logit)).ok_or_else(|| Error::Model(wrong().into()))
    };
    Ok(1.0 / (1.0 + (one(no)? - one(yes)?).exp()))
}

/// The tokens `Yes` and `No` of a vocabulary, without a space in front.
///
/// # Errors
/// [`Error::MissingPiece`]
pub fn yes_and_no(tokenizer: &Tokenizer) -> Result<[TokenId; 2], Error> {
    let token = |piece: &'static str| tokenizer.token(piece).ok_or(Error::MissingPiece { piece });
    Ok([token("Yes")?, token("No")?])
}

fn check<M: CausalModel>(network: &M, tokens: &[TokenId]) -> Result<(), Error> {
    use gemma_generate::Error as Prompt;
    let wrong = |error: Prompt| Err(Error::Model(error.into()));
    if tokens.is_empty() {
        return wrong(Prompt::EmptyPrompt);
    }
    let vocab = network.vocab();
    if let Some(place) = tokens.iter().position(|token| *token as usize >= vocab) {
        return wrong(Prompt::TokenOutOfRange { token: tokens[place], place, vocab });
    }
    match network.context_length().filter(|limit| tokens.len() > *limit) {
        Some(limit) => wrong(Prompt::PromptTooLong { tokens: tokens.len(), limit }),
        None => Ok(()),
    }
}
