//! Items and slices of values.

use super::budget::{Budget, Fault};
use super::text::Builder;
use super::value::Value;
use super::{cut, print};

/// `value[key]`.
pub(super) fn index(value: &Value, key: &Value, budget: &Budget) -> Result<Value, Fault> {
    budget.spend(1)?;
    let missing = || {
        let key = match key {
            Value::Str(text) => format!("'{}'", cut(text.as_str())),
            Value::Int(index) => index.to_string(),
            other => other.kind().to_owned(),
        };
        Value::undefined(&format!("'{} object' has no element {key}", value.kind()))
    };
    let place = |length: usize| {
        let index = key.as_int()?;
        let index = if index < 0 { index.checked_add(length as i64)? } else { index };
        usize::try_from(index).ok().filter(|index| *index < length)
    };
    Ok(match value {
        Value::Undefined(what) => return Fault::failed(format!("{what} is undefined")),
        Value::Dict(dict) => dict.get(key, budget)?.cloned().unwrap_or_else(missing),
        Value::List(items) | Value::Tuple(items) => {
            place(items.items.len()).map_or_else(missing, |place| items.items[place].clone())
        }
        Value::Str(text) => {
            let own = text.as_str();
            budget.spend(own.len() as u64 / 16)?;
            match place(own.chars().count()).and_then(|place| own.char_indices().nth(place)) {
                Some((at, c)) => Value::Str(text.slice(at..at + c.len_utf8(), budget)?),
                None => missing(),
            }
        }
        Value::Namespace(namespace) => match key {
            Value::Str(key) => namespace.borrow().get(key.as_str()).cloned().unwrap_or_else(missing),
            _ => missing(),
        },
        _ => missing(),
    })
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, [start, stop, step]: [Option<i64>; 3], budget: &Budget) -> Result<Value, Fault> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Fault::failed("slice step cannot be zero");
    }
    let items = match value {
        Value::Str(text) if step == 1 => {
            let own = text.as_str();
            budget.spend(own.len() as u64 / 16)?;
            let length = own.chars().count() as i64;
            let (start, stop) = (bound(start, 0, length, 0), bound(stop, length, length, 0));
            let at = |characters: i64| own.char_indices().nth(characters as usize).map_or(own.len(), |(at, _)| at);
            return text.slice(at(start)..at(stop.max(start)), budget).map(Value::Str);
        }
        Value::Str(_) | Value::List(_) | Value::Tuple(_) => value.iterate(budget)?,
        Value::Undefined(what) => return Fault::failed(format!("{what} is undefined")),
        other => return Ok(Value::undefined(&format!("a slice of a {}", other.kind()))),
    };
    let length = items.len() as i64;
    let mut taken = Vec::new();
    if step > 0 {
        let (mut at, stop) = (bound(start, 0, length, 0), bound(stop, length, length, 0));
        while at < stop {
            taken.push(items[at as usize].clone());
            at = at.saturating_add(step);
        }
    } else {
        let (mut at, stop) = (bound(start, length - 1, length - 1, -1), bound(stop, -1, length - 1, -1));
        while at > stop && at >= 0 {
            taken.push(items[at as usize].clone());
            at = at.saturating_add(step);
        }
    }
    match value {
        Value::Str(_) => {
            let mut builder = Builder::default();
            for item in &taken {
                print::write(&mut builder, item, budget)?;
            }
            Ok(Value::Str(builder.finish()))
        }
        Value::Tuple(_) => Value::tuple(taken, budget),
        _ => Value::list(taken, budget),
    }
}

/// A bound of a slice of `length` (or, backwards, one less) items.
fn bound(value: Option<i64>, default: i64, most: i64, least: i64) -> i64 {
    let Some(value) = value else { return default };
    let length = if least < 0 { most + 1 } else { most };
    let value = if value < 0 { value.saturating_add(length) } else { value };
    value.clamp(least, most.max(least))
}
