//! Chat templates: a small Jinja interpreter for programs of strangers.
//!
//! A template comes with a model from the internet and runs in every verb that asks a question, so two things matter
//! that a general template engine does not give.
//!
//! **Nothing it does can hang, crash or fill memory.** The parser limits lengths and nesting ([`parser`]), chains of
//! operators are lists rather than deep trees ([`syntax`]), every step and every byte copied is paid from a budget
//! ([`budget`]), values cannot hold themselves, and know their size before somebody prints or compares them
//! ([`value`]). The whole runs on a thread with a stack that is large enough for the deepest tree allowed.
//!
//! **Messages cannot become control tokens.** Every text remembers which of its characters came from a message
//! ([`text`]), whatever the template does to them, so that the finished prompt says exactly which characters the
//! tokenizer may take for `<end_of_turn>`.
//!
//! The language is Jinja's as transformers sets it up: `trim_blocks`, `lstrip_blocks`, `break` and `continue`,
//! `{% generation %}`, `raise_exception`, `strftime_now`, `tojson` without HTML's escapes; values print as Python's do.
//! Not done: `include`, `import`, `extends`, recursive loops, arguments with `*`.

mod arguments;
mod budget;
mod clock;
mod collections;
mod filters;
mod format;
mod lexer;
mod methods;
mod operators;
mod parser;
mod predicates;
mod print;
mod render;
mod subscript;
mod syntax;
mod text;
mod value;

use std::thread;

use serde_json::Value as Json;

use budget::Budget;
pub(crate) use budget::Fault;
use value::Value;

/// Steps for any conversation, and for each byte of it; Gemma's template takes about sixty for a turn.
const STEPS: u64 = 5_000_000;
const STEPS_PER_BYTE: u64 = 16;
/// Bytes copied for any conversation, and for each byte of it.
const BYTES: u64 = 200 << 20;
const BYTES_PER_BYTE: u64 = 64;
/// The stack of the thread that renders. Only what is used of it is ever taken from the machine.
const STACK: usize = 64 << 20;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<syntax::Node>,
}

/// What a template is rendered with.
#[derive(Debug, Default)]
pub(crate) struct Context<'c> {
    /// Names and values of the conversation; their texts are not the template's.
    pub(crate) values: Vec<(&'c str, &'c Json)>,
    /// Names and texts that the template may use as its own, such as `bos_token`.
    pub(crate) texts: Vec<(&'c str, &'c str)>,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// [`Fault::Failed`] for a mistake, or where a limit is passed.
    pub(crate) fn parse(source: &str) -> Result<Self, Fault> {
        on_a_large_stack(|| parser::parse(source).map(|nodes| Self { nodes }))
    }

    /// Renders it: the stretches of the prompt in order, with whether each came from a message.
    ///
    /// # Errors
    /// What the template refuses or fails at.
    pub(crate) fn render(&self, context: &Context<'_>) -> Result<Vec<(String, bool)>, Fault> {
        let size: u64 = context.values.iter().map(|(_, json)| json_size(json)).sum();
        on_a_large_stack(|| {
            let bytes = BYTES.saturating_add(size.saturating_mul(BYTES_PER_BYTE));
            let budget = Budget::new(STEPS.saturating_add(size.saturating_mul(STEPS_PER_BYTE)), bytes);
            let mut values = Vec::new();
            for (name, json) in &context.values {
                values.push((*name, Value::from_json(json, &budget)?));
            }
            values.extend(context.texts.iter().map(|(name, text)| (*name, Value::text(text))));
            let text = render::render(&self.nodes, values, &budget)?;
            Ok(text.segments().into_iter().map(|(segment, message)| (segment.to_owned(), message)).collect())
        })
    }
}

/// About how many bytes a value has, counted without recursion.
fn json_size(json: &Json) -> u64 {
    let mut size = 0_u64;
    let mut left = vec![json];
    while let Some(json) = left.pop() {
        size += 8;
        match json {
            Json::String(text) => size += text.len() as u64,
            Json::Array(items) => left.extend(items),
            Json::Object(entries) => {
                size += entries.keys().map(|key| 8 + key.len() as u64).sum::<u64>();
                left.extend(entries.values());
            }
            _ => {}
        }
    }
    size
}

fn on_a_large_stack<T: Send>(work: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("chat template".into()).stack_size(STACK).spawn_scoped(scope, work);
        match thread.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Fault::failed("the interpreter has a fault of its own"),
            Err(error) => Fault::failed(format!("no thread can be started ({error})")),
        }
    })
}

/// A text of somebody else for a message, at most about a line long and without control characters.
pub(crate) fn cut(text: &str) -> String {
    const MOST: usize = 60;
    let mut characters = text.chars();
    let mut shown = String::new();
    for character in characters.by_ref().take(MOST) {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    if characters.next().is_some() { shown + "..." } else { shown }
}
