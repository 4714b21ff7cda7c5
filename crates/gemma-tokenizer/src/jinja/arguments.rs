//! The arguments of a call, as values, and how a function takes them.

use super::budget::Fault;
use super::syntax::Name;
use super::text::Text;
use super::value::Value;

/// Evaluated arguments.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Name, Value)>,
}

impl Values {
    /// The arguments in the order of `names`, which are all that there may be.
    pub(super) fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Result<[Option<Value>; N], Fault> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return Fault::failed(format!("{function} takes at most {N} arguments"));
        }
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|known| **known == *name) {
                Some(index) if bound[index].is_none() => bound[index] = Some(value),
                _ => return Fault::failed(format!("{function} has no argument {:?} left", super::cut(&name))),
            }
        }
        Ok(bound)
    }
}

/// An argument that must be there.
pub(super) fn required(value: Option<Value>, function: &str) -> Result<Value, Fault> {
    value.ok_or_else(|| Fault::Failed(format!("{function} lacks an argument")))
}

/// A text, or the default.
pub(super) fn text_or(value: Option<Value>, default: &str, function: &str) -> Result<Text, Fault> {
    match value {
        None | Some(Value::None | Value::Undefined(_)) => Ok(Text::template(default)),
        Some(Value::Str(text)) => Ok(text),
        Some(other) => Fault::failed(format!("{function} wants a str, not a {}", other.kind())),
    }
}

/// An integer, or the default.
pub(super) fn int_or(value: Option<Value>, default: i64, function: &str) -> Result<i64, Fault> {
    match value {
        None | Some(Value::None | Value::Undefined(_)) => Ok(default),
        Some(other) => match other.as_int() {
            Some(value) => Ok(value),
            None => Fault::failed(format!("{function} wants an int, not a {}", other.kind())),
        },
    }
}

/// A width, an indentation or another size, which has a limit so that no template makes a text of gigabytes.
pub(super) fn size_or(value: Option<Value>, default: usize, function: &str) -> Result<usize, Fault> {
    const MOST: i64 = 100_000;
    match int_or(value, default as i64, function)? {
        size if size > MOST => Fault::failed(format!("{function} with a size of more than {MOST}")),
        size => Ok(size.max(0) as usize),
    }
}

/// True or false, or the default.
pub(super) fn flag_or(value: Option<Value>, default: bool) -> bool {
    value.map_or(default, |value| value.is_true())
}
