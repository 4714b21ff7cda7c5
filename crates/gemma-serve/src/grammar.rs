//! Constrained decoding: grammars and JSON schemas as token masks, by `llguidance`.
//!
//! [`AnswerForm`] says what an answer has to look like, [`Grammars`] compiles it for the vocabulary of a model, and
//! [`GrammarMask`] marks the tokens that keep the answer within it.
//!
//! The trie of a vocabulary is built once per model, when the first grammar comes. Each grammar has limits on its size
//! and on the work of one step, so one that explodes ends its own request and no other.

use std::fmt;
use std::sync::{Arc, OnceLock};

use gemma_tokenizer::{TokenId, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::tokens::token_bytes;

/// Most bytes of a schema or of a list of choices.
pub const LONGEST_GRAMMAR: usize = 256 << 10;
/// Most bytes of a grammar in Lark's notation. The time that the compiler takes grows with their square: a second for this.
pub const LONGEST_LARK: usize = 32 << 10;
/// Most bytes of a regular expression, also of each in a schema: 0.2 s and 50 MB. 120 KB of them took 1.6 GB.
pub const LONGEST_REGEX: usize = 16 << 10;

/// What an answer has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerForm {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema describes. An object has no properties but those that it lists, unless it says
    /// `additionalProperties`: a small model that may invent names goes on inventing. llama.cpp's server does the same.
    Schema(Value),
    /// A regular expression that matches the whole answer.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's notation whose rule is `start`.
    Lark(String),
}

impl AnswerForm {
    /// Whether it is short enough to be compiled.
    ///
    /// # Errors
    /// What is too long.
    fn check(&self) -> Result<(), GrammarError> {
        let at_most = |what: &str, bytes: usize, most: usize| match bytes > most {
            true => Err(GrammarError::Grammar(format!("{what} has {bytes} bytes; at most {most} are read"))),
            false => Ok(()),
        };
        match self {
            Self::JsonObject => Ok(()),
            Self::Regex(regex) => at_most("the regular expression", regex.len(), LONGEST_REGEX),
            Self::Lark(grammar) => at_most("it", grammar.len(), LONGEST_LARK),
            Self::Choice(choices) => at_most("the list", choices.iter().map(String::len).sum(), LONGEST_GRAMMAR),
            Self::Schema(schema) => {
                at_most("a regular expression in it", longest_pattern(schema), LONGEST_REGEX)?;
                at_most("it", schema.to_string().len(), LONGEST_GRAMMAR)
            }
        }
    }

    /// As `llguidance` takes it: Lark text, or a list of grammars in JSON.
    fn source(&self) -> String {
        match self {
            Self::JsonObject => json!({"grammars": [{"json_schema": one_line(json!({"type": "object"}))}]}).to_string(),
            Self::Schema(schema) => {
                let mut schema = schema.clone();
                close(&mut schema);
                json!({"grammars": [{"json_schema": one_line(schema)}]}).to_string()
            }
            Self::Regex(regex) => format!("start: /{}/\n", regex.replace('/', "\\/")),
            Self::Choice(choices) => {
                let quoted: Vec<String> = choices.iter().map(|choice| json!(choice).to_string()).collect();
                format!("start: {}\n", quoted.join(" | "))
            }
            Self::Lark(grammar) => grammar.clone(),
        }
    }
}

/// The length of the longest regular expression in a schema, in bytes: of a `pattern`, or of a name in `patternProperties`.
fn longest_pattern(schema: &Value) -> usize {
    match schema {
        Value::Array(values) => values.iter().map(longest_pattern).max().unwrap_or(0),
        Value::Object(fields) => {
            let own = fields.get("pattern").and_then(Value::as_str).map_or(0, str::len);
            let names = fields.get("patternProperties").and_then(Value::as_object);
            let names = names.into_iter().flat_map(|names| names.keys()).map(String::len);
            names.chain(fields.values().map(longest_pattern)).fold(own, usize::max)
        }
        _ => 0,
    }
}

/// The same schema, for JSON on one line: a small model that may write any white space writes nothing else for ever.
fn one_line(mut schema: Value) -> Value {
    if let Value::Object(schema) = &mut schema {
        let layout = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        schema.entry("x-guidance").or_insert(layout);
    }
    schema
}

/// Keywords beside which, or under which, a list of properties is not the whole of an object.
const COMBINING: [&str; 8] =
    ["$ref", "allOf", "anyOf", "oneOf", "patternProperties", "if", "dependentSchemas", "unevaluatedProperties"];

/// Gives the objects of a schema that list properties no others, where they do not say anything about others.
fn close(schema: &mut Value) {
    // what is combined from parts must not be closed in each of them
    fn combines(schema: &Value) -> bool {
        match schema {
            Value::Object(fields) => fields.contains_key("allOf") || fields.values().any(combines),
            Value::Array(values) => values.iter().any(combines),
            _ => false,
        }
    }
    fn close_in(schema: &mut Value) {
        let Value::Object(fields) = schema else { return };
        let combined = COMBINING.iter().any(|keyword| fields.contains_key(*keyword));
        let lists = fields.get("properties").is_some_and(Value::is_object);
        if lists && !combined {
            fields.entry("additionalProperties").or_insert(Value::Bool(false));
        }
        for keyword in ["properties", "$defs", "definitions"] {
            if let Some(Value::Object(parts)) = fields.get_mut(keyword) {
                parts.values_mut().for_each(close_in);
            }
        }
        for keyword in ["items", "additionalProperties"] {
            fields.get_mut(keyword).into_iter().for_each(close_in);
        }
        for keyword in ["prefixItems", "anyOf", "oneOf"] {
            if let Some(Value::Array(parts)) = fields.get_mut(keyword).filter(|_| !lists) {
                parts.iter_mut().for_each(close_in);
            }
        }
    }
    if !combines(schema) {
        close_in(schema);
    }
}

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrammarError {
    /// The grammar is wrong, or larger than the limits.
    Grammar(String),
    /// The vocabulary cannot be used for grammars at all.
    Vocabulary(String),
}

impl fmt::Display for GrammarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grammar(reason) => write!(f, "the grammar cannot be used: {reason}"),
            Self::Vocabulary(reason) => write!(f, "this vocabulary cannot be used with grammars: {reason}"),
        }
    }
}

impl std::error::Error for GrammarError {}

/// The compiler of one model's grammars.
#[derive(Default)]
pub struct Grammars(OnceLock<Result<ParserFactory, String>>);

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Compiles the grammar of a form.
    ///
    /// # Errors
    /// What is wrong with it, or that it is larger than the limits.
    pub fn compile(&self, form: &AnswerForm, tokenizer: &Tokenizer, vocab: usize) -> Result<GrammarMask, GrammarError> {
        let wrong = |error: String| GrammarError::Grammar(first_line(&error));
        form.check()?;
        let factory = self.0.get_or_init(|| factory(tokenizer, vocab).map_err(|error| error.to_string()));
        let factory = factory.as_ref().map_err(|error| GrammarError::Vocabulary(error.clone()))?;
        let compile = || {
            let grammar = TopLevelGrammar::from_lark_or_grammar_list(&form.source())?;
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
        Ok(GrammarMask { matcher, stop })
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
pub struct GrammarMask {
    matcher: Matcher,
    /// Tokens that end an answer: allowed where the grammar may end.
    stop: Vec<TokenId>,
}

impl fmt::Debug for GrammarMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarMask").field("stop", &self.stop).finish_non_exhaustive()
    }
}

impl GrammarMask {
    /// Writes for each token whether it may come next; `allowed` has one place per column of the logits.
    ///
    /// # Errors
    /// When the grammar took more than its limits.
    pub fn allow(&mut self, allowed: &mut [bool]) -> Result<(), String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| stuck(&error))?;
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

    /// Takes the token that was sampled, a stop token as well.
    ///
    /// # Errors
    /// When the token was not allowed, or the grammar took more than its limits.
    pub fn accept(&mut self, token: TokenId) -> Result<(), String> {
        if self.stop.contains(&token) || self.matcher.is_stopped() {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| stuck(&error))
    }
}

fn stuck(error: &dyn fmt::Display) -> String {
    format!("the grammar cannot go on: {}", first_line(&error.to_string()))
}

/// The first line of a reason, which may quote the grammar, in a length that can be read.
fn first_line(reason: &str) -> String {
    const MOST: usize = 300;
    reason.lines().next().unwrap_or_default().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_the_compiler_long_is_refused_by_its_length() {
        let long = |bytes: usize| "a".repeat(bytes);
        for (form, most) in [
            (AnswerForm::Regex as fn(String) -> AnswerForm, LONGEST_REGEX),
            (AnswerForm::Lark, LONGEST_LARK),
            (|choice| AnswerForm::Choice(vec![choice]), LONGEST_GRAMMAR),
            (|pattern| AnswerForm::Schema(json!({"items": [{"pattern": pattern}]})), LONGEST_REGEX),
            (|name| AnswerForm::Schema(json!({"$defs": {"x": {"patternProperties": {name: {}}}}})), LONGEST_REGEX),
        ] {
            assert_eq!(form(long(most)).check(), Ok(()));
            let error = form(long(most + 1)).check().unwrap_err().to_string();
            assert!(error.contains(&format!("at most {most}")), "{error}");
        }
    }

    #[test]
    fn objects_that_list_their_properties_have_no_others_unless_they_say_so() {
        let person = |more: Value| {
            let mut person = json!({"type": "object", "properties": {"age": {"type": "integer"}}});
            person.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            person
        };
        let (open, closed) = (person(json!({})), person(json!({"additionalProperties": false})));
        for (given, expected) in [
            (open.clone(), closed.clone()),
            (closed.clone(), closed.clone()),
            (person(json!({"additionalProperties": true})), person(json!({"additionalProperties": true}))),
            (json!({"type": "object"}), json!({"type": "object"})),
            (json!({"items": open}), json!({"items": closed})),
            (json!({"$defs": {"P": open}, "$ref": "#/$defs/P"}), json!({"$defs": {"P": closed}, "$ref": "#/$defs/P"})),
            (json!({"anyOf": [open, {"type": "null"}]}), json!({"anyOf": [closed, {"type": "null"}]})),
            // a property that is called like a keyword
            (person(json!({"properties": {"allOf_": open}})), {
                let mut whole = person(json!({"properties": {"allOf_": closed}}));
                whole["additionalProperties"] = json!(false);
                whole
            }),
            // parts of one object
            (json!({"allOf": [open, open]}), json!({"allOf": [open, open]})),
            (person(json!({"anyOf": [open, open]})), person(json!({"anyOf": [open, open]}))),
        ] {
            let mut found = given.clone();
            close(&mut found);
            assert_eq!(found, expected, "{given}");
        }
    }
}
