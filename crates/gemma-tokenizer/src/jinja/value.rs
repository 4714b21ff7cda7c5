//! Values of a rendering: Python's, as far as chat templates see them, and nothing that can be changed but a namespace.
//!
//! A container knows how large it is with everything inside, counted as often as it appears, and how deep. Printing and
//! comparing ask for that many steps first, so that a list that holds itself doubled forty times costs nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value as Json;

use super::budget::{Budget, Fault};
use super::syntax::{Macro, Name};
use super::text::Text;

/// Deepest value: containers inside each other.
const MAX_DEPTH: u32 = 100;
/// What a value in a container is counted as, in bytes.
const VALUE_BYTES: usize = 64;

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A name, attribute or key that is not there, with how it was asked for.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Text),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    Namespace(Rc<RefCell<HashMap<Name, Value>>>),
    Loop(Rc<Loop>),
    Macro(Arc<Macro>),
    /// The body of a call block, which is already rendered for the parameters it has none of.
    Caller(Rc<Text>),
    /// One of the functions that every template has.
    Function(&'static str),
}

/// The items of a list or a tuple.
#[derive(Debug)]
pub(super) struct Items {
    pub(super) items: Vec<Value>,
    size: Size,
}

/// Keys and values in the order in which they were given.
#[derive(Debug)]
pub(super) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    size: Size,
}

/// A running loop, as templates see it.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) items: Vec<Value>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Vec<Value>>>,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    weight: u64,
    depth: u32,
    namespace: bool,
}

impl Size {
    fn of<'v>(values: impl Iterator<Item = &'v Value>) -> Result<Self, Fault> {
        let mut size = Size { weight: 1, depth: 0, namespace: false };
        for value in values {
            let inner = value.size();
            size.weight = size.weight.saturating_add(inner.weight);
            size.depth = size.depth.max(inner.depth);
            size.namespace |= inner.namespace;
        }
        size.depth += 1;
        if size.depth > MAX_DEPTH {
            return Fault::failed(format!("too deep: a value of more than {MAX_DEPTH} lists inside each other"));
        }
        Ok(size)
    }
}

impl Value {
    pub(super) fn undefined(what: &str) -> Self {
        Value::Undefined(what.into())
    }

    /// A text of the template.
    pub(super) fn text(text: &str) -> Self {
        Value::Str(Text::template(text))
    }

    pub(super) fn list(items: Vec<Value>, budget: &Budget) -> Result<Self, Fault> {
        Ok(Value::List(Self::items(items, budget)?))
    }

    pub(super) fn tuple(items: Vec<Value>, budget: &Budget) -> Result<Self, Fault> {
        Ok(Value::Tuple(Self::items(items, budget)?))
    }

    fn items(items: Vec<Value>, budget: &Budget) -> Result<Rc<Items>, Fault> {
        budget.spend(items.len() as u64)?;
        budget.allocate(items.len() * VALUE_BYTES)?;
        let size = Size::of(items.iter())?;
        Ok(Rc::new(Items { items, size }))
    }

    /// A dictionary; of equal keys the last one counts, at the place of the first.
    pub(super) fn dict(pairs: Vec<(Value, Value)>, budget: &Budget) -> Result<Self, Fault> {
        budget.spend(pairs.len() as u64)?;
        budget.allocate(2 * pairs.len() * VALUE_BYTES)?;
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        let mut places: HashMap<String, usize> = HashMap::new();
        for (key, value) in pairs {
            let spelled = key.key()?;
            match places.get(&spelled) {
                Some(place) => entries[*place].1 = value,
                None => {
                    places.insert(spelled, entries.len());
                    entries.push((key, value));
                }
            }
        }
        let size = Size::of(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Value::Dict(Rc::new(Dict { entries, size })))
    }

    /// What tells keys of a dictionary apart.
    fn key(&self) -> Result<String, Fault> {
        Ok(match self {
            Value::Str(text) => format!("s{}", text.as_str()),
            Value::Int(value) => format!("i{value}"),
            Value::Bool(value) => format!("i{}", i64::from(*value)),
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => format!("i{}", *value as i64),
            Value::Float(value) => format!("f{value}"),
            Value::None => "n".into(),
            Value::Tuple(items) if items.items.len() <= 8 => {
                let keys: Result<Vec<String>, Fault> = items.items.iter().map(Value::key).collect();
                format!("t{:?}", keys?)
            }
            other => return Fault::failed(format!("a {} cannot be the key of a dictionary", other.kind())),
        })
    }

    /// A value of a message or of another part of the conversation: its texts are not the template's.
    pub(super) fn from_json(json: &Json, budget: &Budget) -> Result<Self, Fault> {
        Self::nested_json(json, 0, budget)
    }

    fn nested_json(json: &Json, depth: u32, budget: &Budget) -> Result<Self, Fault> {
        if depth > MAX_DEPTH {
            return Fault::failed(format!("a message has more than {MAX_DEPTH} lists inside each other"));
        }
        Ok(match json {
            Json::Null => Value::None,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(value), _) => Value::Int(value),
                (_, Some(value)) => Value::Float(value),
                _ => return Fault::failed("a number of a message is out of range"),
            },
            Json::String(text) => Value::Str(Text::message(text)),
            Json::Array(items) => {
                let items: Result<Vec<Value>, Fault> =
                    items.iter().map(|item| Self::nested_json(item, depth + 1, budget)).collect();
                Value::list(items?, budget)?
            }
            Json::Object(entries) => {
                let pair = |(key, value): (&String, &Json)| {
                    let value = match value {
                        // names that the format itself has
                        Json::String(text) if matches!(&**key, "role" | "type") && STRUCTURE.contains(&&**text) => {
                            Value::text(text)
                        }
                        value => Self::nested_json(value, depth + 1, budget)?,
                    };
                    Ok((Value::Str(Text::message(key)), value))
                };
                let pairs: Result<Vec<_>, Fault> = entries.iter().map(pair).collect();
                Value::dict(pairs?, budget)?
            }
        })
    }

    fn size(&self) -> Size {
        match self {
            Value::List(items) | Value::Tuple(items) => items.size,
            Value::Dict(dict) => dict.size,
            Value::Str(text) => Size { weight: 1 + text.as_str().len() as u64 / 16, depth: 0, namespace: false },
            Value::Namespace(_) | Value::Loop(_) => Size { weight: 1, depth: 0, namespace: true },
            _ => Size { weight: 1, depth: 0, namespace: false },
        }
    }

    /// How many values it is made of, each counted as often as it appears.
    pub(super) fn weight(&self) -> u64 {
        self.size().weight
    }

    /// Does it hold a namespace or a loop, which other values may be put into?
    pub(super) fn holds_namespace(&self) -> bool {
        self.size().namespace
    }

    /// Python's name of its type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Namespace(_) => "Namespace",
            Value::Loop(_) => "LoopContext",
            Value::Macro(_) | Value::Caller(_) => "Macro",
            Value::Function(_) => "function",
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.as_str().is_empty(),
            Value::List(items) | Value::Tuple(items) => !items.items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    /// As an integer, where Python would take it for one.
    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    pub(super) fn as_number(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    pub(super) fn as_text(&self) -> Option<&Text> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// What a loop over it gives.
    pub(super) fn iterate(&self, budget: &Budget) -> Result<Vec<Value>, Fault> {
        let items = match self {
            Value::Undefined(_) => Vec::new(),
            Value::List(items) | Value::Tuple(items) => {
                budget.allocate(items.items.len() * VALUE_BYTES)?;
                items.items.clone()
            }
            Value::Dict(dict) => {
                budget.allocate(dict.entries.len() * VALUE_BYTES)?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Value::Str(text) => {
                budget.allocate(text.as_str().len() * VALUE_BYTES)?;
                text.characters(budget)?.into_iter().map(Value::Str).collect()
            }
            other => return Fault::failed(format!("'{}' object is not iterable", other.kind())),
        };
        budget.spend(items.len() as u64)?;
        Ok(items)
    }

    /// How many items it has.
    pub(super) fn length(&self) -> Result<usize, Fault> {
        Ok(match self {
            Value::Undefined(_) => 0,
            Value::List(items) | Value::Tuple(items) => items.items.len(),
            Value::Dict(dict) => dict.entries.len(),
            Value::Str(text) => text.as_str().chars().count(),
            other => return Fault::failed(format!("object of type '{}' has no len()", other.kind())),
        })
    }
}

/// Values of `role` and `type` that belong to the format of a conversation, and may be part of what a template writes
/// around messages.
const STRUCTURE: [&str; 17] = [
    "system",
    "developer",
    "user",
    "assistant",
    "model",
    "tool",
    "function",
    "text",
    "image",
    "image_url",
    "audio",
    "video",
    "object",
    "string",
    "array",
    "input_audio",
    "input_text",
];

impl Dict {
    /// The value of a key.
    pub(super) fn get(&self, key: &Value, budget: &Budget) -> Result<Option<&Value>, Fault> {
        budget.spend(1 + self.entries.len() as u64 / 16)?;
        for (own, value) in &self.entries {
            let same = match (own, key) {
                (Value::Str(own), Value::Str(key)) => own.as_str() == key.as_str(),
                (Value::Str(_), _) | (_, Value::Str(_)) => false,
                _ => equal(own, key, budget)?,
            };
            if same {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The value of a key that is a text.
    pub(super) fn get_str(&self, key: &str, budget: &Budget) -> Result<Option<&Value>, Fault> {
        budget.spend(1 + self.entries.len() as u64 / 16)?;
        let found = self.entries.iter().find(|(own, _)| own.as_text().is_some_and(|own| own.as_str() == key));
        Ok(found.map(|(_, value)| value))
    }
}

/// `left == right`.
pub(super) fn equal(left: &Value, right: &Value, budget: &Budget) -> Result<bool, Fault> {
    budget.spend(1 + left.weight().min(right.weight()))?;
    same(left, right, budget)
}

/// [`equal`] where the comparison is already paid.
pub(super) fn same(left: &Value, right: &Value, budget: &Budget) -> Result<bool, Fault> {
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(left == right);
    }
    if let (Some(left), Some(right)) = (left.as_number(), right.as_number()) {
        return Ok(left == right);
    }
    Ok(match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(left), Value::Str(right)) => left.as_str() == right.as_str(),
        (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
            if left.items.len() != right.items.len() {
                return Ok(false);
            }
            for (left, right) in left.items.iter().zip(&right.items) {
                if !same(left, right, budget)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(left), Value::Dict(right)) => {
            if left.entries.len() != right.entries.len() {
                return Ok(false);
            }
            for (key, value) in &left.entries {
                match right.get(key, budget)? {
                    Some(other) if same(value, other, budget)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Namespace(left), Value::Namespace(right)) => Rc::ptr_eq(left, right),
        (Value::Macro(left), Value::Macro(right)) => Arc::ptr_eq(left, right),
        (Value::Function(left), Value::Function(right)) => left == right,
        _ => false,
    })
}
