//! Jinja's tests: what stands behind `is`.

use super::budget::{Budget, Fault};
use super::operators;
use super::print;
use super::syntax::{Comparison, Operator};
use super::value::{Value, equal};

/// Does the test hold?
pub(super) fn holds(name: &str, value: &Value, arguments: &[Value], budget: &Budget) -> Result<bool, Fault> {
    budget.spend(1)?;
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(Comparison::Equal),
        "ne" | "!=" => Some(Comparison::NotEqual),
        "lt" | "lessthan" | "<" => Some(Comparison::Less),
        "le" | "<=" => Some(Comparison::LessEqual),
        "gt" | "greaterthan" | ">" => Some(Comparison::Greater),
        "ge" | ">=" => Some(Comparison::GreaterEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    let argument = || match arguments {
        [argument] => Ok(argument),
        _ => Fault::failed(format!("the test {} wants one argument", super::cut(name))),
    };
    if let Some(comparison) = comparison {
        return operators::compare(comparison, value, argument()?, budget);
    }
    let leaves = |rest: i64, divisor: &Value| match value.as_number() {
        Some(_) => equal(&operators::binary(Operator::Modulo, value, divisor, budget)?, &Value::Int(rest), budget),
        None => Fault::failed(format!("the test {} of a {}", super::cut(name), value.kind())),
    };
    // as the value is printed
    let text = |test: fn(&str) -> bool| print::text(value, budget).map(|text| test(text.as_str()));
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_number().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => {
            matches!(value, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_))
        }
        "iterable" => {
            matches!(value, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_))
        }
        "callable" => matches!(value, Value::Macro(_) | Value::Function(_) | Value::Caller(_)),
        "even" => leaves(0, &Value::Int(2))?,
        "odd" => leaves(1, &Value::Int(2))?,
        "divisibleby" => match argument()?.as_number() {
            Some(divisor) if divisor != 0.0 => leaves(0, argument()?)?,
            _ => return Fault::failed("divisibleby wants a number that is not zero"),
        },
        "lower" => text(|text| text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase))?,
        "upper" => text(|text| text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase))?,
        "sameas" => {
            let other = argument()?;
            value.kind() == other.kind() && equal(value, other, budget)?
        }
        "escaped" => false,
        _ => return Fault::failed(format!("there is no test {:?}", super::cut(name))),
    })
}
