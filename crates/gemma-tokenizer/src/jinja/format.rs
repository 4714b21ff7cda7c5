//! Text from a format: Python's `%` and the simple part of `str.format`.

use super::arguments::Values;
use super::budget::{Budget, Fault};
use super::print;
use super::text::{Builder, Text};
use super::value::Value;

/// Widest field and most digits.
const MAX_WIDTH: usize = 10_000;

/// `format % values`.
pub(super) fn percent(format: &Text, values: &Value, budget: &Budget) -> Result<Text, Fault> {
    let positional: Vec<Value> = match values {
        Value::Tuple(items) => items.items.clone(),
        other => vec![other.clone()],
    };
    let mut positional = positional.into_iter();
    let mut builder = Builder::default();
    let source = format.as_str();
    let mut rest = source;
    while let Some(at) = rest.find('%') {
        builder.push_text(&format.part(&rest[..at], budget)?, budget)?;
        let mut spec = &rest[at + 1..];
        if let Some(after) = spec.strip_prefix('%') {
            builder.push_template("%", budget)?;
            rest = after;
            continue;
        }
        let mut key = None;
        if let Some(after) = spec.strip_prefix('(') {
            let Some((name, after)) = after.split_once(')') else { return Fault::failed("incomplete format key") };
            key = Some(name);
            spec = after;
        }
        let flags = spec.len() - spec.trim_start_matches(['-', '+', '0', ' ', '#']).len();
        let (flags, after) = spec.split_at(flags);
        let (width, after) = number(after)?;
        let (precision, after) = match after.strip_prefix('.') {
            Some(after) => number(after).map(|(digits, after)| (Some(digits.unwrap_or(0)), after))?,
            None => (None, after),
        };
        let Some(kind) = after.chars().next() else { return Fault::failed("incomplete format") };
        rest = &after[kind.len_utf8()..];
        let value = match (key, values) {
            (Some(key), Value::Dict(dict)) => dict.get_str(key, budget)?.cloned(),
            (Some(_), _) => return Fault::failed("format requires a mapping"),
            (None, _) => positional.next(),
        };
        let Some(value) = value else { return Fault::failed("not enough arguments for format string") };
        let number_kind = matches!(kind, 'd' | 'i' | 'u' | 'f' | 'F' | 'e' | 'x' | 'X' | 'o' | 'g');
        let (shown, sign) = match kind {
            's' => (print::text(&value, budget)?, false),
            'r' => {
                let mut own = Builder::default();
                print::represent(&mut own, &value, budget)?;
                (own.finish(), false)
            }
            _ if number_kind => (Text::template(&digits(kind, &value, precision, flags)?), true),
            other => return Fault::failed(format!("unsupported format character {other:?}")),
        };
        let shown = match (kind, precision) {
            ('s' | 'r', Some(most)) => {
                let end = shown.as_str().char_indices().nth(most).map_or(shown.as_str().len(), |(at, _)| at);
                shown.slice(0..end, budget)?
            }
            _ => shown,
        };
        let missing = width.unwrap_or(0).saturating_sub(shown.as_str().chars().count());
        if flags.contains('-') {
            builder.push_text(&shown, budget)?;
            builder.push_template(&" ".repeat(missing), budget)?;
        } else if sign && flags.contains('0') {
            let head = usize::from(shown.as_str().starts_with(['-', '+', ' ']));
            builder.push_text(&shown.slice(0..head, budget)?, budget)?;
            builder.push_template(&"0".repeat(missing), budget)?;
            builder.push_text(&shown.slice(head..shown.as_str().len(), budget)?, budget)?;
        } else {
            builder.push_template(&" ".repeat(missing), budget)?;
            builder.push_text(&shown, budget)?;
        }
    }
    builder.push_text(&format.part(rest, budget)?, budget)?;
    if matches!(values, Value::Tuple(_)) && positional.next().is_some() {
        return Fault::failed("not all arguments converted during string formatting");
    }
    Ok(builder.finish())
}

fn number(text: &str) -> Result<(Option<usize>, &str), Fault> {
    let length = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (digits, rest) = text.split_at(length);
    if digits.is_empty() {
        return Ok((None, rest));
    }
    match digits.parse() {
        Ok(number) if number <= MAX_WIDTH => Ok((Some(number), rest)),
        _ => Fault::failed(format!("a format is wider than {MAX_WIDTH}")),
    }
}

/// A number, written as the format's letter says.
fn digits(kind: char, value: &Value, precision: Option<usize>, flags: &str) -> Result<String, Fault> {
    let Some(number) = value.as_number() else {
        return Fault::failed(format!("%{kind} format: a number is required, not {}", value.kind()));
    };
    let whole = || value.as_int().unwrap_or(number as i64);
    let precision = precision.unwrap_or(6);
    let shown = match kind {
        'd' | 'i' | 'u' => whole().to_string(),
        'x' => format!("{:x}", whole()),
        'X' => format!("{:X}", whole()),
        'o' => format!("{:o}", whole()),
        'e' => {
            let spelled = format!("{number:.precision$e}");
            let (digits, exponent) = spelled.split_once('e').unwrap_or((&spelled, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        'g' => print::float(number).trim_end_matches(".0").to_owned(),
        _ => format!("{number:.precision$}"),
    };
    Ok(match (number < 0.0, flags) {
        (false, flags) if flags.contains('+') => format!("+{shown}"),
        (false, flags) if flags.contains(' ') => format!(" {shown}"),
        _ => shown,
    })
}

/// `format.format(...)`: fields `{}`, `{0}`, `{name}`, without conversions or formats of their own.
pub(super) fn braces(format: &Text, values: &Values, budget: &Budget) -> Result<Text, Fault> {
    let mut builder = Builder::default();
    let mut rest = format.as_str();
    let mut next = 0;
    while let Some(at) = rest.find(['{', '}']) {
        builder.push_text(&format.part(&rest[..at], budget)?, budget)?;
        let (bracket, after) = rest[at..].split_at(1);
        if let Some(after) = after.strip_prefix(bracket) {
            builder.push_template(bracket, budget)?;
            rest = after;
            continue;
        }
        let field = after.split_once('}').filter(|_| bracket == "{");
        let Some((field, after)) = field else { return Fault::failed("a single brace in a format string") };
        rest = after;
        let value = if field.is_empty() {
            next += 1;
            values.positional.get(next - 1)
        } else if let Ok(index) = field.parse::<usize>() {
            values.positional.get(index)
        } else {
            values.named.iter().find(|(name, _)| **name == *field).map(|(_, value)| value)
        };
        match value {
            Some(value) => print::write(&mut builder, value, budget)?,
            None => return Fault::failed(format!("no argument for the field {{{}}}", super::cut(field))),
        }
    }
    builder.push_text(&format.part(rest, budget)?, budget)?;
    Ok(builder.finish())
}
