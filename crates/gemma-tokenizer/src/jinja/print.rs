//! Values as text: `str`, `repr` and JSON, as Python writes them.

use super::budget::{Budget, Fault};
use super::text::{Builder, Text};
use super::value::Value;

/// `str(value)`, appended.
pub(super) fn write(builder: &mut Builder, value: &Value, budget: &Budget) -> Result<(), Fault> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => builder.push_text(text, budget),
        Value::Caller(text) => builder.push_text(text, budget),
        other => represent(builder, other, budget),
    }
}

/// `str(value)`.
pub(super) fn text(value: &Value, budget: &Budget) -> Result<Text, Fault> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        other => {
            let mut builder = Builder::default();
            write(&mut builder, other, budget)?;
            Ok(builder.finish())
        }
    }
}

/// `repr(value)`, appended.
pub(super) fn represent(builder: &mut Builder, value: &Value, budget: &Budget) -> Result<(), Fault> {
    budget.spend(value.weight())?;
    match value {
        Value::Undefined(_) => builder.push_template("Undefined", budget),
        Value::None => builder.push_template("None", budget),
        Value::Bool(value) => builder.push_template(if *value { "True" } else { "False" }, budget),
        Value::Int(value) => builder.push_template(&value.to_string(), budget),
        Value::Float(value) => builder.push_template(&float(*value), budget),
        Value::Str(text) => quoted(builder, text, budget),
        Value::List(items) => sequence(builder, ["[", "]"], &items.items, budget),
        Value::Tuple(items) => {
            let end = if items.items.len() == 1 { ",)" } else { ")" };
            sequence(builder, ["(", end], &items.items, budget)
        }
        Value::Dict(dict) => {
            builder.push_template("{", budget)?;
            for (index, (key, value)) in dict.entries.iter().enumerate() {
                if index > 0 {
                    builder.push_template(", ", budget)?;
                }
                represent(builder, key, budget)?;
                builder.push_template(": ", budget)?;
                represent(builder, value, budget)?;
            }
            builder.push_template("}", budget)
        }
        Value::Caller(text) => builder.push_text(text, budget),
        Value::Namespace(_) => builder.push_template("<Namespace>", budget),
        Value::Loop(state) => {
            builder.push_template(&format!("<LoopContext {}/{}>", state.index.get() + 1, state.items.len()), budget)
        }
        Value::Macro(macro_) => builder.push_template(&format!("<Macro '{}'>", macro_.name), budget),
        Value::Function(name) => builder.push_template(&format!("<function {name}>"), budget),
    }
}

fn sequence(builder: &mut Builder, brackets: [&str; 2], items: &[Value], budget: &Budget) -> Result<(), Fault> {
    builder.push_template(brackets[0], budget)?;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            builder.push_template(", ", budget)?;
        }
        represent(builder, item, budget)?;
    }
    builder.push_template(brackets[1], budget)
}

/// A text in quotes, with Python's escapes.
fn quoted(builder: &mut Builder, text: &Text, budget: &Budget) -> Result<(), Fault> {
    let quote = if text.as_str().contains('\'') && !text.as_str().contains('"') { '"' } else { '\'' };
    builder.push_template(quote.encode_utf8(&mut [0; 4]), budget)?;
    for (segment, message) in text.segments() {
        let mut escaped = String::with_capacity(segment.len());
        for c in segment.chars() {
            match c {
                '\\' => escaped += "\\\\",
                '\n' => escaped += "\\n",
                '\r' => escaped += "\\r",
                '\t' => escaped += "\\t",
                c if c == quote => escaped.extend(['\\', c]),
                c if (c as u32) < 0x20 || c as u32 == 0x7F => escaped += &format!("\\x{:02x}", c as u32),
                c => escaped.push(c),
            }
        }
        builder.push(&escaped, message, budget)?;
    }
    builder.push_template(quote.encode_utf8(&mut [0; 4]), budget)
}

/// A number as `repr` writes it: the shortest digits that are the same number.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let spelled = format!("{value:e}");
    let (digits, exponent) = spelled.split_once('e').unwrap_or((&spelled, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// How `tojson` writes.
pub(super) struct JsonStyle {
    /// Spaces an indentation has, or what stands in front of each level.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) ascii: bool,
    pub(super) sort_keys: bool,
}

/// `json.dumps(value)`, appended.
pub(super) fn json(
    builder: &mut Builder,
    value: &Value,
    style: &JsonStyle,
    level: usize,
    budget: &Budget,
) -> Result<(), Fault> {
    budget.spend(value.weight())?;
    let newline = |builder: &mut Builder, level: usize| match &style.indent {
        Some(indent) => {
            budget.allocate(indent.len().saturating_mul(level))?;
            builder.push_template(&format!("\n{}", indent.repeat(level)), budget)
        }
        None => Ok(()),
    };
    match value {
        Value::None => builder.push_template("null", budget),
        Value::Bool(value) => builder.push_template(if *value { "true" } else { "false" }, budget),
        Value::Int(value) => builder.push_template(&value.to_string(), budget),
        Value::Float(value) if value.is_nan() => builder.push_template("NaN", budget),
        Value::Float(value) if value.is_infinite() => {
            builder.push_template(if *value > 0.0 { "Infinity" } else { "-Infinity" }, budget)
        }
        Value::Float(value) => builder.push_template(&float(*value), budget),
        Value::Str(text) => json_text(builder, text, style.ascii, budget),
        Value::List(items) | Value::Tuple(items) => {
            if items.items.is_empty() {
                return builder.push_template("[]", budget);
            }
            builder.push_template("[", budget)?;
            for (index, item) in items.items.iter().enumerate() {
                if index > 0 {
                    builder.push_template(&style.item_separator, budget)?;
                }
                newline(builder, level + 1)?;
                json(builder, item, style, level + 1, budget)?;
            }
            newline(builder, level)?;
            builder.push_template("]", budget)
        }
        Value::Dict(dict) => {
            if dict.entries.is_empty() {
                return builder.push_template("{}", budget);
            }
            let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
            if style.sort_keys {
                entries.sort_by(|(left, _), (right, _)| match (left, right) {
                    (Value::Str(left), Value::Str(right)) => left.as_str().cmp(right.as_str()),
                    _ => std::cmp::Ordering::Equal,
                });
            }
            builder.push_template("{", budget)?;
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    builder.push_template(&style.item_separator, budget)?;
                }
                newline(builder, level + 1)?;
                match key {
                    Value::Str(text) => json_text(builder, text, style.ascii, budget)?,
                    Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                        builder.push_template("\"", budget)?;
                        json(builder, key, style, level, budget)?;
                        builder.push_template("\"", budget)?;
                    }
                    other => {
                        return Fault::failed(format!(
                            "keys must be str, int, float, bool or None, not {}",
                            other.kind()
                        ));
                    }
                }
                builder.push_template(&style.key_separator, budget)?;
                json(builder, value, style, level + 1, budget)?;
            }
            newline(builder, level)?;
            builder.push_template("}", budget)
        }
        other => Fault::failed(format!("Object of type {} is not JSON serializable", other.kind())),
    }
}

fn json_text(builder: &mut Builder, text: &Text, ascii: bool, budget: &Budget) -> Result<(), Fault> {
    builder.push_template("\"", budget)?;
    for (segment, message) in text.segments() {
        let mut escaped = String::with_capacity(segment.len());
        for c in segment.chars() {
            match c {
                '"' => escaped += "\\\"",
                '\\' => escaped += "\\\\",
                '\n' => escaped += "\\n",
                '\r' => escaped += "\\r",
                '\t' => escaped += "\\t",
                '\u{8}' => escaped += "\\b",
                '\u{C}' => escaped += "\\f",
                c if (c as u32) < 0x20 => escaped += &format!("\\u{:04x}", c as u32),
                c if ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        escaped += &format!("\\u{unit:04x}");
                    }
                }
                c => escaped.push(c),
            }
        }
        builder.push(&escaped, message, budget)?;
    }
    builder.push_template("\"", budget)
}
