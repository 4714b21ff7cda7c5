//! Grammars as token masks, by `llguidance`: which tokens keep the answer within the grammar.
//!
//! The trie of a vocabulary is built once per model, when the first grammar comes. Each grammar has limits on its size
//! and on the work of one step, so one that explodes ends its own request and no other.

use std::sync::{Arc, OnceLock};

use gemma_tokenizer::{TokenId, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::backend::TokenMask;
use super::error::Refusal;
use super::tokens::token_bytes;

/// The compiler of one model's grammars.
#[derive(Default)]
pub(crate) struct Grammars(OnceLock<Result<ParserFactory, String>>);

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Compiles a grammar: Lark text whose rule is `start`, or llguidance's JSON.
    ///
    /// # Errors
    /// What is wrong with it, or that it is larger than the limits.
    pub(crate) fn compile(
        &self,
        source: &str,
        tokenizer: &Tokenizer,
        vocab: usize,
    ) -> Result<Box<dyn TokenMask>, Refusal> {
        let wrong = |error: String| {
            let first = error.lines().next().unwrap_or_default().to_owned();
            Refusal::field("response_format", format!("the grammar cannot be used: {first}"))
        };
        let factory = self.0.get_or_init(|| factory(tokenizer, vocab).map_err(|error| error.to_string()));
        let factory = factory.as_ref().map_err(|error| Refusal::failed(error.clone()))?;
        let compile = || {
            let grammar = TopLevelGrammar::from_lark_or_grammar_list(source)?;
            factory.create_parser(grammar)
        };
        // the compiler meets every grammar that anybody sends; a panic in it is that grammar's fault alone
        let parser = std::panic::catch_unwind(std::panic::AssertUnwindSafe(compile));
        let parser =
            parser.map_err(|_| wrong("its compiler failed".to_owned()))?.map_err(|error| wrong(error.to_string()))?;
        let mut matcher = Matcher::new(Ok(parser));
        if let Some(error) = matcher.get_error() {
            return Err(wrong(error));
        }
        // the first mask is where a grammar that explodes shows
        matcher.compute_mask_or_eos().map_err(|error| wrong(error.to_string()))?;
        let stop = tokenizer.end_of_turn().into_iter().chain([tokenizer.eos()]).collect();
        Ok(Box::new(GrammarMask { matcher, stop }))
    }
}

fn factory(tokenizer: &Tokenizer, vocab: usize) -> Result<ParserFactory, anyhow::Error> {
    let words: Vec<Vec<u8>> = (0..vocab as TokenId)
        .map(|id| match tokenizer.piece(id) {
            None => Vec::new(),
            Some(piece) if tokenizer.is_control(id) => {
                let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                word.extend_from_slice(piece.as_bytes());
                word
            }
            Some(_) => token_bytes(tokenizer, id),
        })
        .collect();
    let info = TokRxInfo {
        vocab_size: vocab as u32,
        tok_eos: tokenizer.eos(),
        tok_bos: Some(tokenizer.bos()),
        tok_pad: None,
        tok_unk: None,
        tok_end_of_turn: tokenizer.end_of_turn(),
    };
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
    let mut factory = ParserFactory::new_simple(&env)?;
    factory.quiet();
    let limits = factory.limits_mut();
    // half of the library's own: a step then takes tens of milliseconds at the very worst
    limits.initial_lexer_fuel = 500_000;
    limits.step_lexer_fuel = 100_000;
    limits.step_max_items = 25_000;
    limits.max_lexer_states = 50_000;
    limits.max_grammar_size = 250_000;
    limits.verbose_errors = false;
    Ok(factory)
}

/// A grammar and where in it the answer is.
struct GrammarMask {
    matcher: Matcher,
    /// Tokens that end an answer: allowed where the grammar may end.
    stop: Vec<TokenId>,
}

impl TokenMask for GrammarMask {
    fn allowed(&mut self, allowed: &mut [bool]) -> Result<(), String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| one_line(&error))?;
        for (token, place) in allowed.iter_mut().enumerate() {
            *place = token < mask.len() && mask.is_allowed(token as TokenId);
        }
        let may_end = self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false);
        for token in &self.stop {
            if let Some(place) = allowed.get_mut(*token as usize) {
                *place = may_end;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        if self.stop.contains(&token) || self.matcher.is_stopped() {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| one_line(&error))
    }
}

fn one_line(error: &dyn std::fmt::Display) -> String {
    format!("the grammar cannot go on: {}", error.to_string().lines().next().unwrap_or_default())
}
