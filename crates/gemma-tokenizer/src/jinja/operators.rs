//! Operators as Python defines them.

use std::cmp::Ordering;

use super::budget::{Budget, Fault};
use super::print;
use super::syntax::{Comparison, Operator, Sign};
use super::text::Builder;
use super::value::{Value, equal, same};

/// `left operator right`.
pub(super) fn binary(operator: Operator, left: &Value, right: &Value, budget: &Budget) -> Result<Value, Fault> {
    if operator == Operator::Concat {
        let mut builder = Builder::default();
        print::write(&mut builder, left, budget)?;
        print::write(&mut builder, right, budget)?;
        return Ok(Value::Str(builder.finish()));
    }
    for value in [left, right] {
        if let Value::Undefined(what) = value {
            return Fault::failed(format!("{what} is undefined"));
        }
    }
    if let (Operator::Modulo, Value::Str(format)) = (operator, left) {
        return Ok(Value::Str(super::format::percent(format, right, budget)?));
    }
    match (operator, left, right) {
        (Operator::Add, Value::Str(left), Value::Str(right)) => {
            let mut builder = Builder::default();
            builder.push_text(left, budget)?;
            builder.push_text(right, budget)?;
            return Ok(Value::Str(builder.finish()));
        }
        (Operator::Add, Value::List(left), Value::List(right)) => {
            budget.allocate((left.items.len() + right.items.len()) * 64)?;
            return Value::list(left.items.iter().chain(&right.items).cloned().collect(), budget);
        }
        (Operator::Add, Value::Tuple(left), Value::Tuple(right)) => {
            budget.allocate((left.items.len() + right.items.len()) * 64)?;
            return Value::tuple(left.items.iter().chain(&right.items).cloned().collect(), budget);
        }
        (Operator::Multiply, sequence @ (Value::Str(_) | Value::List(_) | Value::Tuple(_)), count)
        | (Operator::Multiply, count, sequence @ (Value::Str(_) | Value::List(_) | Value::Tuple(_)))
            if count.as_int().is_some() =>
        {
            return repeat(sequence, count.as_int().unwrap_or(0), budget);
        }
        _ => {}
    }
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return integers(operator, left, right);
    }
    match (left.as_number(), right.as_number()) {
        (Some(left), Some(right)) => floats(operator, left, right),
        _ => Fault::failed(format!(
            "unsupported operand type(s) for {}: '{}' and '{}'",
            spelled(operator),
            left.kind(),
            right.kind()
        )),
    }
}

fn spelled(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Modulo => "%",
        Operator::Power => "**",
        Operator::Concat => "~",
    }
}

fn repeat(sequence: &Value, count: i64, budget: &Budget) -> Result<Value, Fault> {
    let count = usize::try_from(count).unwrap_or(0);
    let total = |length: usize, bytes: usize| {
        let total = length.saturating_mul(count);
        budget.spend(total as u64)?;
        budget.allocate(total.saturating_mul(bytes))
    };
    match sequence {
        Value::Str(text) => {
            total(text.as_str().len() + 1, 1)?;
            let mut builder = Builder::default();
            for _ in 0..if text.as_str().is_empty() { 0 } else { count } {
                builder.push_text(text, budget)?;
            }
            Ok(Value::Str(builder.finish()))
        }
        Value::List(items) | Value::Tuple(items) => {
            total(items.items.len() + 1, 64)?;
            let repeated: Vec<Value> =
                (0..if items.items.is_empty() { 0 } else { count }).flat_map(|_| items.items.iter().cloned()).collect();
            if matches!(sequence, Value::List(_)) {
                Value::list(repeated, budget)
            } else {
                Value::tuple(repeated, budget)
            }
        }
        _ => Fault::failed("only texts and lists can be repeated"),
    }
}

fn integers(operator: Operator, left: i64, right: i64) -> Result<Value, Fault> {
    let result = match operator {
        Operator::Add => left.checked_add(right),
        Operator::Subtract => left.checked_sub(right),
        Operator::Multiply => left.checked_mul(right),
        Operator::Divide | Operator::FloorDivide | Operator::Modulo if right == 0 => {
            return Fault::failed("division by zero");
        }
        Operator::Divide => return Ok(Value::Float(left as f64 / right as f64)),
        Operator::FloorDivide => left.checked_div_euclid(right).map(|quotient| {
            // Euclid's quotient differs from Python's floor only for negative divisors
            if right < 0 && left.checked_rem_euclid(right).unwrap_or(0) != 0 { quotient - 1 } else { quotient }
        }),
        Operator::Modulo => {
            let rest = left.wrapping_rem(right);
            Some(if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest })
        }
        Operator::Power if right < 0 => return floats(operator, left as f64, right as f64),
        Operator::Power => u32::try_from(right).ok().and_then(|exponent| left.checked_pow(exponent)),
        Operator::Concat => None,
    };
    match result {
        Some(value) => Ok(Value::Int(value)),
        None => Fault::failed("a number beyond 64 bits"),
    }
}

fn floats(operator: Operator, left: f64, right: f64) -> Result<Value, Fault> {
    Ok(Value::Float(match operator {
        Operator::Divide | Operator::FloorDivide | Operator::Modulo if right == 0.0 => {
            return Fault::failed("division by zero");
        }
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        Operator::FloorDivide => {
            let quotient = (left - remainder(left, right)) / right;
            // the quotient is an integer but for rounding
            if quotient == 0.0 { 0.0_f64.copysign(left / right) } else { quotient.round() }
        }
        Operator::Modulo => remainder(left, right),
        Operator::Power => left.powf(right),
        Operator::Concat => return Fault::failed("no numbers"),
    }))
}

/// Python's `%` of two floats, which is exact and has the sign of `right`.
fn remainder(left: f64, right: f64) -> f64 {
    let rest = left % right;
    if rest == 0.0 {
        0.0_f64.copysign(right)
    } else if (rest < 0.0) != (right < 0.0) {
        rest + right
    } else {
        rest
    }
}

/// Signs in front of a value, the innermost last.
pub(super) fn signed(signs: &[Sign], value: Value) -> Result<Value, Fault> {
    let negative = signs.iter().filter(|sign| **sign == Sign::Minus).count() % 2 == 1;
    match (value, negative) {
        (Value::Float(value), true) => Ok(Value::Float(-value)),
        (Value::Float(value), false) => Ok(Value::Float(value)),
        (value, negative) => match (value.as_int(), negative) {
            (Some(value), false) => Ok(Value::Int(value)),
            (Some(value), true) if value != i64::MIN => Ok(Value::Int(-value)),
            (Some(_), true) => Fault::failed("a number beyond 64 bits"),
            (None, _) => Fault::failed(format!("a sign in front of a {}", value.kind())),
        },
    }
}

/// `left comparison right`.
pub(super) fn compare(comparison: Comparison, left: &Value, right: &Value, budget: &Budget) -> Result<bool, Fault> {
    Ok(match comparison {
        Comparison::Equal => equal(left, right, budget)?,
        Comparison::NotEqual => !equal(left, right, budget)?,
        Comparison::In => contains(right, left, budget)?,
        Comparison::NotIn => !contains(right, left, budget)?,
        Comparison::Less => order(left, right, budget)? == Some(Ordering::Less),
        Comparison::LessEqual => matches!(order(left, right, budget)?, Some(Ordering::Less | Ordering::Equal)),
        Comparison::Greater => order(left, right, budget)? == Some(Ordering::Greater),
        Comparison::GreaterEqual => matches!(order(left, right, budget)?, Some(Ordering::Greater | Ordering::Equal)),
    })
}

/// Which of two values comes first; `None` for numbers that are none.
pub(super) fn order(left: &Value, right: &Value, budget: &Budget) -> Result<Option<Ordering>, Fault> {
    budget.spend(1 + left.weight().min(right.weight()))?;
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(Some(left.cmp(&right)));
    }
    if let (Some(left), Some(right)) = (left.as_number(), right.as_number()) {
        return Ok(left.partial_cmp(&right));
    }
    match (left, right) {
        (Value::Str(left), Value::Str(right)) => Ok(Some(left.as_str().cmp(right.as_str()))),
        (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
            for (left, right) in left.items.iter().zip(&right.items) {
                if !same(left, right, budget)? {
                    return order(left, right, budget);
                }
            }
            Ok(Some(left.items.len().cmp(&right.items.len())))
        }
        _ => Fault::failed(format!("'{}' and '{}' cannot be ordered", left.kind(), right.kind())),
    }
}

/// `item in container`.
pub(super) fn contains(container: &Value, item: &Value, budget: &Budget) -> Result<bool, Fault> {
    match container {
        Value::Undefined(_) => Ok(false),
        Value::Str(text) => match item {
            Value::Str(part) => {
                budget.spend(1 + text.as_str().len() as u64 / 16)?;
                Ok(text.as_str().contains(part.as_str()))
            }
            other => Fault::failed(format!("'in <string>' requires string as left operand, not {}", other.kind())),
        },
        Value::List(items) | Value::Tuple(items) => {
            for own in &items.items {
                if equal(own, item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Dict(dict) => Ok(dict.get(item, budget)?.is_some()),
        other => Fault::failed(format!("argument of type '{}' is not iterable", other.kind())),
    }
}
