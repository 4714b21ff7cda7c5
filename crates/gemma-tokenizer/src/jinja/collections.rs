//! Jinja's filters over lists and dictionaries.

use std::cmp::Ordering;

use super::arguments::{Values, flag_or, int_or, required, size_or, text_or};
use super::budget::{Budget, Fault};
use super::operators;
use super::print;
use super::subscript;
use super::text::Builder;
use super::value::{Value, equal};
use super::{methods, predicates};

/// What a filter over items asks of the interpreter that runs it.
pub(super) trait Interpreter<'b> {
    /// What the rendering may still spend.
    fn budget(&self) -> &'b Budget;

    /// Applies another filter, by name, to one item.
    fn filter(&mut self, name: &str, value: &Value, arguments: Values) -> Result<Value, Fault>;

    /// `value.name`.
    fn attribute(&mut self, value: &Value, name: &str) -> Result<Value, Fault>;
}

/// Applies a filter; `None` when it is not one of these.
pub(super) fn apply<'b, I: Interpreter<'b>>(
    renderer: &mut I,
    name: &str,
    value: &Value,
    mut arguments: Values,
) -> Option<Result<Value, Fault>> {
    let budget = renderer.budget();
    Some(match name {
        "length" | "count" => value.length().map(|length| Value::Int(length as i64)),
        "list" => value.iterate(budget).and_then(|items| Value::list(items, budget)),
        "first" => {
            value.iterate(budget).map(|items| items.into_iter().next().unwrap_or(Value::undefined("first item")))
        }
        "last" => value.iterate(budget).map(|items| items.into_iter().last().unwrap_or(Value::undefined("last item"))),
        "random" => Fault::failed("random is not supported: a prompt is always the same"),
        "reverse" => reversed(value, budget),
        "items" => match value {
            Value::Dict(dict) => methods::pairs(dict, budget),
            Value::Undefined(_) => Value::list(Vec::new(), budget),
            other => Fault::failed(format!("items of a {}", other.kind())),
        },
        "join" => (|| {
            let [separator, attribute] = arguments.bind(name, ["d", "attribute"])?;
            let separator = match separator {
                None => super::text::Text::template(""),
                Some(value) => print::text(&value, budget)?,
            };
            let mut builder = Builder::default();
            for (index, item) in value.iterate(budget)?.into_iter().enumerate() {
                if index > 0 {
                    builder.push_text(&separator, budget)?;
                }
                let item = attribute_of(item, attribute.as_ref(), budget)?;
                print::write(&mut builder, &item, budget)?;
            }
            Ok(Value::Str(builder.finish()))
        })(),
        "sort" => (|| {
            let [reverse, case, attribute] = arguments.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let keyed = value
                .iterate(budget)?
                .into_iter()
                .map(|item| Ok((attribute_of(item.clone(), attribute.as_ref(), budget)?, item)));
            let keyed: Result<Vec<_>, Fault> = keyed.collect();
            let sorted = sorted(keyed?, flag_or(case, false), flag_or(reverse, false), budget)?;
            Value::list(sorted, budget)
        })(),
        "dictsort" => (|| {
            let [case, by, reverse] = arguments.bind(name, ["case_sensitive", "by", "reverse"])?;
            let Value::Dict(dict) = value else { return Fault::failed(format!("dictsort of a {}", value.kind())) };
            let by_value = text_or(by, "key", name)?.as_str() == "value";
            let mut keyed = Vec::new();
            for (key, value) in &dict.entries {
                let pair = Value::tuple(vec![key.clone(), value.clone()], budget)?;
                keyed.push((if by_value { value.clone() } else { key.clone() }, pair));
            }
            Value::list(sorted(keyed, flag_or(case, false), flag_or(reverse, false), budget)?, budget)
        })(),
        "unique" => (|| {
            let [case, attribute] = arguments.bind(name, ["case_sensitive", "attribute"])?;
            let case = flag_or(case, false);
            let (mut seen, mut kept): (Vec<Value>, Vec<Value>) = Default::default();
            'items: for item in value.iterate(budget)? {
                let key = folded(&attribute_of(item.clone(), attribute.as_ref(), budget)?, case, budget)?;
                for other in &seen {
                    if equal(other, &key, budget)? {
                        continue 'items;
                    }
                }
                seen.push(key);
                kept.push(item);
            }
            Value::list(kept, budget)
        })(),
        "min" | "max" => (|| {
            let [case, attribute] = arguments.bind(name, ["case_sensitive", "attribute"])?;
            let case = flag_or(case, false);
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<(Value, Value)> = None;
            for item in value.iterate(budget)? {
                let key = folded(&attribute_of(item.clone(), attribute.as_ref(), budget)?, case, budget)?;
                let better = match &best {
                    Some((best, _)) => operators::order(&key, best, budget)? == Some(wanted),
                    None => true,
                };
                if better {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or(Value::undefined("item"), |(_, item)| item))
        })(),
        "sum" => (|| {
            let [attribute, start] = arguments.bind(name, ["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in value.iterate(budget)? {
                let item = attribute_of(item, attribute.as_ref(), budget)?;
                sum = operators::binary(super::syntax::Operator::Add, &sum, &item, budget)?;
            }
            Ok(sum)
        })(),
        "batch" | "slice" => grouped(name, value, arguments, budget),
        "groupby" => (|| {
            let [attribute, default, case] = arguments.bind(name, ["attribute", "default", "case_sensitive"])?;
            let case = flag_or(case, false);
            let attribute = required(attribute, name)?;
            let mut keyed = Vec::new();
            for item in value.iterate(budget)? {
                let key = match (attribute_of(item.clone(), Some(&attribute), budget)?, &default) {
                    (Value::Undefined(_), Some(default)) => default.clone(),
                    (key, _) => key,
                };
                keyed.push((key.clone(), Value::tuple(vec![key, item], budget)?));
            }
            let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
            for pair in sorted(keyed, case, false, budget)? {
                let Value::Tuple(pair) = pair else { continue };
                let [key, item] = [pair.items[0].clone(), pair.items[1].clone()];
                let same = match groups.last() {
                    Some((last, _)) => equal(&folded(last, case, budget)?, &folded(&key, case, budget)?, budget)?,
                    None => false,
                };
                match groups.last_mut() {
                    Some((_, items)) if same => items.push(item),
                    _ => groups.push((key, vec![item])),
                }
            }
            let groups: Result<Vec<Value>, Fault> = groups
                .into_iter()
                .map(|(key, items)| Value::tuple(vec![key, Value::list(items, budget)?], budget))
                .collect();
            Value::list(groups?, budget)
        })(),
        "map" => (|| {
            let attribute = take_named(&mut arguments, "attribute");
            let default = take_named(&mut arguments, "default");
            let mut mapped = Vec::new();
            if let Some(attribute) = attribute {
                for item in value.iterate(budget)? {
                    let found = attribute_of(item, Some(&attribute), budget)?;
                    mapped.push(match (found, &default) {
                        (Value::Undefined(_), Some(default)) => default.clone(),
                        (found, _) => found,
                    });
                }
            } else {
                if arguments.positional.is_empty() {
                    return Fault::failed("map wants a filter or an attribute");
                }
                let filter = text_or(Some(arguments.positional.remove(0)), "", name)?;
                for item in value.iterate(budget)? {
                    let arguments = Values { positional: arguments.positional.clone(), named: arguments.named.clone() };
                    budget.spend(1 + arguments.positional.len() as u64)?;
                    mapped.push(renderer.filter(filter.as_str(), &item, arguments)?);
                }
            }
            Value::list(mapped, budget)
        })(),
        "select" | "reject" | "selectattr" | "rejectattr" => (|| {
            let by_attribute = name.ends_with("attr");
            let attribute = match by_attribute {
                true if arguments.positional.is_empty() => return Fault::failed(format!("{name} wants an attribute")),
                true => Some(arguments.positional.remove(0)),
                false => None,
            };
            let test = match arguments.positional.is_empty() {
                true => None,
                false => Some(text_or(Some(arguments.positional.remove(0)), "", name)?),
            };
            let mut kept = Vec::new();
            for item in value.iterate(budget)? {
                let tested = attribute_of(item.clone(), attribute.as_ref(), budget)?;
                let holds = match &test {
                    Some(test) => {
                        budget.spend(1 + arguments.positional.len() as u64)?;
                        predicates::holds(test.as_str(), &tested, &arguments.positional, budget)?
                    }
                    None => tested.is_true(),
                };
                if holds == name.starts_with("select") {
                    kept.push(item);
                }
            }
            Value::list(kept, budget)
        })(),
        "attr" => (|| {
            let [attribute] = arguments.bind(name, ["name"])?;
            let attribute = text_or(attribute, "", name)?;
            // what `.` finds among the items of a dictionary is none of its attributes
            match value {
                Value::Dict(_) => Ok(Value::undefined(attribute.as_str())),
                other => renderer.attribute(other, attribute.as_str()),
            }
        })(),
        _ => return None,
    })
}

fn take_named(arguments: &mut Values, name: &str) -> Option<Value> {
    let place = arguments.named.iter().position(|(own, _)| **own == *name)?;
    Some(arguments.named.swap_remove(place).1)
}

/// An attribute of an item by its path (`function.name`, `0`); the item itself without one.
fn attribute_of(item: Value, attribute: Option<&Value>, budget: &Budget) -> Result<Value, Fault> {
    let Some(attribute) = attribute else { return Ok(item) };
    if let Some(index) = attribute.as_int() {
        return subscript::index(&item, &Value::Int(index), budget);
    }
    let path = text_or(Some(attribute.clone()), "", "an attribute")?;
    let mut found = item;
    for part in path.as_str().split('.') {
        let key = part.parse::<i64>().map_or_else(|_| Value::text(part), Value::Int);
        found = subscript::index(&found, &key, budget)?;
    }
    Ok(found)
}

/// A key for sorting: texts without regard to case unless asked.
fn folded(value: &Value, case_sensitive: bool, budget: &Budget) -> Result<Value, Fault> {
    match value {
        Value::Str(text) if !case_sensitive => text.map(budget, str::to_lowercase).map(Value::Str),
        other => Ok(other.clone()),
    }
}

/// Values by their keys; equal keys keep their order.
fn sorted(
    keyed: Vec<(Value, Value)>,
    case_sensitive: bool,
    reverse: bool,
    budget: &Budget,
) -> Result<Vec<Value>, Fault> {
    let mut folded_keys = Vec::with_capacity(keyed.len());
    for (key, value) in keyed {
        folded_keys.push((folded(&key, case_sensitive, budget)?, value));
    }
    let first = |left: &(Value, Value), right: &(Value, Value)| {
        let (left, right) = if reverse { (right, left) } else { (left, right) };
        // what is equal needs no order: an attribute that no item has sorts nothing
        Ok(equal(&left.0, &right.0, budget)? || operators::order(&left.0, &right.0, budget)? != Some(Ordering::Greater))
    };
    Ok(merge_sorted(folded_keys, &first)?.into_iter().map(|(_, value)| value).collect())
}

/// Merge sort with a comparison that can fail: `first` says whether the left item may stand before the right one.
fn merge_sorted<T>(mut items: Vec<T>, first: &impl Fn(&T, &T) -> Result<bool, Fault>) -> Result<Vec<T>, Fault> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = items.split_off(items.len() / 2);
    let mut left = merge_sorted(items, first)?.into_iter().peekable();
    let mut right = merge_sorted(right, first)?.into_iter().peekable();
    let mut merged = Vec::with_capacity(left.len() + right.len());
    loop {
        let next = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) => {
                if first(l, r)? {
                    left.next()
                } else {
                    right.next()
                }
            }
            (Some(_), None) => left.next(),
            (None, _) => right.next(),
        };
        match next {
            Some(item) => merged.push(item),
            None => return Ok(merged),
        }
    }
}

fn reversed(value: &Value, budget: &Budget) -> Result<Value, Fault> {
    match value {
        Value::Str(text) => {
            let mut builder = Builder::default();
            for character in text.characters(budget)?.iter().rev() {
                builder.push_text(character, budget)?;
            }
            Ok(Value::Str(builder.finish()))
        }
        other => {
            let mut items = other.iterate(budget)?;
            items.reverse();
            Value::list(items, budget)
        }
    }
}

/// `batch(n)`: lists of n items; `slice(n)`: n lists.
fn grouped(name: &str, value: &Value, arguments: Values, budget: &Budget) -> Result<Value, Fault> {
    let [count, fill] = arguments.bind(name, ["count", "fill_with"])?;
    let count = size_or(count, 0, name)?;
    if count == 0 {
        return Fault::failed(format!("{name} wants a positive number"));
    }
    budget.spend(count as u64)?;
    budget.allocate(count.saturating_mul(64))?;
    let items = value.iterate(budget)?;
    let mut groups: Vec<Vec<Value>> = Vec::new();
    if name == "batch" {
        groups.extend(items.chunks(count).map(<[Value]>::to_vec));
        if let (Some(last), Some(fill)) = (groups.last_mut(), fill) {
            last.resize(count, fill);
        }
    } else {
        let (each, longer) = (items.len() / count, items.len() % count);
        let mut rest = &items[..];
        for group in 0..count {
            let (taken, after) = rest.split_at(each + usize::from(group < longer));
            rest = after;
            let mut taken = taken.to_vec();
            if let Some(fill) = fill.as_ref().filter(|_| group >= longer) {
                taken.push(fill.clone());
            }
            groups.push(taken);
        }
    }
    let groups: Result<Vec<Value>, Fault> = groups.into_iter().map(|group| Value::list(group, budget)).collect();
    Value::list(groups?, budget)
}

/// `range(...)`.
pub(super) fn range(arguments: Values, budget: &Budget) -> Result<Value, Fault> {
    let [first, second, step] = arguments.bind("range", ["start", "stop", "step"])?;
    let first = int_or(first, 0, "range")?;
    let (start, stop) = match second {
        None => (0, first),
        second => (first, int_or(second, 0, "range")?),
    };
    let step = int_or(step, 1, "range")?;
    if step == 0 {
        return Fault::failed("range() arg 3 must not be zero");
    }
    let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let count = if span <= 0 { 0 } else { (span as u64).div_ceil(step.unsigned_abs()) };
    budget.spend(count)?;
    budget.allocate(usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(64))?;
    Value::list((0..count as i64).map(|index| Value::Int(start + index * step)).collect(), budget)
}
