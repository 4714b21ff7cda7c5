//! Jinja's filters that concern one value: texts, numbers, JSON. Those over lists are in `collections`.

use super::arguments::{Values, flag_or, int_or, size_or, text_or};
use super::budget::{Budget, Fault};
use super::format;
use super::methods;
use super::print::{self, JsonStyle};
use super::text::{Builder, Text};
use super::value::Value;

/// Applies a filter; `None` when it is not one of these.
pub(super) fn apply(name: &str, value: &Value, arguments: Values, budget: &Budget) -> Option<Result<Value, Fault>> {
    let text = || print::text(value, budget);
    Some(match name {
        "trim" => (|| {
            let [chars] = arguments.bind(name, ["chars"])?;
            let text = text()?;
            budget.spend(text.as_str().len() as u64 / 8)?;
            let part = methods::stripped(text.as_str(), true, true, chars.as_ref())?;
            text.part(part, budget).map(Value::Str)
        })(),
        "upper" => text().and_then(|text| text.map(budget, str::to_uppercase)).map(Value::Str),
        "lower" => text().and_then(|text| text.map(budget, str::to_lowercase)).map(Value::Str),
        "capitalize" => text().and_then(|text| methods::capitalized(&text, budget)).map(Value::Str),
        "title" => text().and_then(|text| titled(&text, budget)).map(Value::Str),
        "string" => text().map(Value::Str),
        "safe" => Ok(value.clone()),
        "pprint" => (|| {
            let mut builder = Builder::default();
            print::represent(&mut builder, value, budget)?;
            Ok(Value::Str(builder.finish()))
        })(),
        "replace" => (|| {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"])?;
            let (old, new) = (text_or(old, "", name)?, text_or(new, "", name)?);
            methods::replaced(&text()?, &old, &new, int_or(count, -1, name)?, budget).map(Value::Str)
        })(),
        "escape" | "e" | "forceescape" => text().and_then(|text| text.map(budget, escaped)).map(Value::Str),
        "striptags" => text().and_then(|text| without_tags(&text, budget)).map(Value::Str),
        "center" => (|| {
            let [width] = arguments.bind(name, ["width"])?;
            methods::padded(&text()?, size_or(width, 80, name)?, name, &Text::template(" "), budget).map(Value::Str)
        })(),
        "indent" => indented(text(), arguments, budget),
        "truncate" => truncated(text(), arguments, budget),
        "wordcount" => text().map(|text| {
            let words = text.as_str().split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            Value::Int(words.count() as i64)
        }),
        "format" => (|| {
            let text = text()?;
            let values = if arguments.named.is_empty() {
                Value::tuple(arguments.positional, budget)?
            } else {
                let pairs = arguments.named.into_iter().map(|(name, value)| (Value::text(&name), value));
                Value::dict(pairs.collect(), budget)?
            };
            format::percent(&text, &values, budget).map(Value::Str)
        })(),
        "abs" => match value {
            Value::Float(number) => Ok(Value::Float(number.abs())),
            other => match other.as_int().and_then(i64::checked_abs) {
                Some(number) => Ok(Value::Int(number)),
                None => Fault::failed(format!("abs of a {}", other.kind())),
            },
        },
        "int" => (|| {
            let [default, base] = arguments.bind(name, ["default", "base"])?;
            let default = default.unwrap_or(Value::Int(0));
            let base = u32::try_from(int_or(base, 10, name)?).ok().filter(|base| *base == 0 || (2..=36).contains(base));
            let Some(base) = base else { return Fault::failed("int with a base that is none") };
            Ok(integer(value, base)?.map_or(default, Value::Int))
        })(),
        "float" => (|| {
            let [default] = arguments.bind(name, ["default"])?;
            let parsed = match value {
                Value::Str(text) => plain_number(text.as_str()).and_then(|text| text.parse().ok()),
                other => other.as_number(),
            };
            Ok(parsed.map_or(default.unwrap_or(Value::Float(0.0)), Value::Float))
        })(),
        "round" => rounded(value, arguments),
        "tojson" => to_json(value, arguments, budget),
        "default" | "d" => (|| {
            let [default, boolean] = arguments.bind(name, ["default_value", "boolean"])?;
            let missing = matches!(value, Value::Undefined(_)) || (flag_or(boolean, false) && !value.is_true());
            Ok(if missing { default.unwrap_or(Value::text("")) } else { value.clone() })
        })(),
        "urlencode" => text()
            .and_then(|text| {
                text.map(budget, |segment| {
                    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte);
                    segment
                        .bytes()
                        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
                        .collect()
                })
            })
            .map(Value::Str),
        _ => return None,
    })
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&#34;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

fn without_tags(text: &Text, budget: &Budget) -> Result<Text, Fault> {
    let own = text.as_str();
    let mut kept = Builder::default();
    let mut rest = own;
    while let Some(open) = rest.find('<') {
        let Some(close) = rest[open..].find('>') else { break };
        kept.push_text(&text.part(&rest[..open], budget)?, budget)?;
        rest = &rest[open + close + 1..];
    }
    kept.push_text(&text.part(rest, budget)?, budget)?;
    let kept = kept.finish();
    let mut words = Builder::default();
    for (index, word) in kept.as_str().split(methods::is_space).filter(|word| !word.is_empty()).enumerate() {
        if index > 0 {
            words.push_template(" ", budget)?;
        }
        words.push_text(&kept.part(word, budget)?, budget)?;
    }
    Ok(words.finish())
}

fn indented(text: Result<Text, Fault>, arguments: Values, budget: &Budget) -> Result<Value, Fault> {
    let text = text?;
    let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"])?;
    let indentation = match width {
        Some(Value::Str(text)) => text,
        width => Text::template(&" ".repeat(size_or(width, 4, "indent")?)),
    };
    let (first, blank) = (flag_or(first, false), flag_or(blank, false));
    let mut builder = Builder::default();
    let lines = methods::lines(text.as_str());
    // a line break at the end has an empty line behind it
    let ends_open = lines.last().is_none_or(|(line, whole)| line.len() < whole.len());
    let lines = lines.into_iter().map(|(line, _)| Some(line)).chain(ends_open.then_some(None));
    for (index, line) in lines.enumerate() {
        if index > 0 {
            builder.push_template("\n", budget)?;
        }
        let is_empty = line.is_none_or(str::is_empty);
        if (index > 0 && (blank || !is_empty)) || (index == 0 && first) {
            builder.push_text(&indentation, budget)?;
        }
        if let Some(line) = line {
            builder.push_text(&text.part(line, budget)?, budget)?;
        }
    }
    Ok(Value::Str(builder.finish()))
}

fn truncated(text: Result<Text, Fault>, arguments: Values, budget: &Budget) -> Result<Value, Fault> {
    let text = text?;
    let [length, kill_words, end, leeway] = arguments.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let (length, leeway) = (size_or(length, 255, "truncate")?, size_or(leeway, 5, "truncate")?);
    let end = text_or(end, "...", "truncate")?;
    let own = text.as_str();
    let place = |characters: usize| own.char_indices().nth(characters).map_or(own.len(), |(at, _)| at);
    if own.chars().count() <= length + leeway {
        return Ok(Value::Str(text));
    }
    let mut cut = &own[..place(length.saturating_sub(end.as_str().chars().count()))];
    if !flag_or(kill_words, false) {
        cut = cut.rsplit_once(' ').map_or(cut, |(words, _)| words);
    }
    let mut builder = Builder::default();
    builder.push_text(&text.part(cut, budget)?, budget)?;
    builder.push_text(&end, budget)?;
    Ok(Value::Str(builder.finish()))
}

/// A text whose words begin with capitals; unlike the method of this name only what stands behind a space, a hyphen or an
/// opening bracket begins a word.
fn titled(text: &Text, budget: &Budget) -> Result<Text, Fault> {
    let mut begins = true;
    text.map(budget, |segment| {
        let mut out = String::with_capacity(segment.len());
        for c in segment.chars() {
            match begins {
                true => out.extend(c.to_uppercase()),
                false => out.extend(c.to_lowercase()),
            }
            begins = methods::is_space(c) || ['-', '(', '{', '[', '<'].contains(&c);
        }
        out
    })
}

/// The text of a number without the white space around it and the underscores between its digits, as Python allows them.
fn plain_number(text: &str) -> Option<String> {
    let text = text.trim_matches(methods::is_space);
    let inside = |at: usize| {
        let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        is_digit(text.as_bytes().get(at.wrapping_sub(1))) && is_digit(text.as_bytes().get(at + 1))
    };
    text.match_indices('_').all(|(at, _)| inside(at)).then(|| text.replace('_', ""))
}

/// Python's `int(text, base)`: a base of 0 is that of the prefix.
fn python_int(text: &str, base: u32) -> Option<i64> {
    let text = plain_number(text)?;
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text.as_str()),
    };
    let lower = digits.to_ascii_lowercase();
    let of_prefix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(prefix, _)| lower.starts_with(prefix));
    let (digits, base) = match (of_prefix, base) {
        (Some((prefix, own)), base) if base == 0 || base == own => (&lower[prefix.len()..], own),
        // a zero in front of a number is that of an old octal one
        (None, 0) if lower.len() > 1 && lower.starts_with('0') && lower.bytes().any(|digit| digit != b'0') => {
            return None;
        }
        (_, 0) => (&lower[..], 10),
        (_, base) => (&lower[..], base),
    };
    if !digits.bytes().next().is_some_and(|digit| digit.is_ascii_alphanumeric()) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), base).ok()
}

fn integer(value: &Value, base: u32) -> Result<Option<i64>, Fault> {
    // Python has integers of any size
    let cut = |number: f64| match number.is_finite() {
        true if number.abs() < 2_f64.powi(63) => Ok(Some(number as i64)),
        true => Fault::failed("a number beyond 64 bits"),
        false => Ok(None),
    };
    match value {
        Value::Str(text) => match python_int(text.as_str(), base) {
            Some(number) => Ok(Some(number)),
            None => plain_number(text.as_str()).and_then(|text| text.parse().ok()).map_or(Ok(None), cut),
        },
        Value::Float(number) => cut(*number),
        other => Ok(other.as_int()),
    }
}

fn rounded(value: &Value, arguments: Values) -> Result<Value, Fault> {
    let [precision, method] = arguments.bind("round", ["precision", "method"])?;
    let precision = int_or(precision, 0, "round")?.clamp(-300, 300) as i32;
    let method = text_or(method, "common", "round")?;
    let Some(number) = value.as_number() else { return Fault::failed(format!("round of a {}", value.kind())) };
    let scale = 10_f64.powi(precision);
    let scaled = number * scale;
    let whole = match method.as_str() {
        "ceil" => scaled.ceil(),
        "floor" => scaled.floor(),
        // integers stay what they are
        "common" if precision >= 0 && value.as_int().is_some() => return Ok(Value::Int(value.as_int().unwrap_or(0))),
        // the decimal digits of the number itself, and not those of a product
        "common" if precision >= 0 && number.is_finite() => {
            let digits = format!("{number:.*}", precision.unsigned_abs() as usize);
            return Ok(Value::Float(digits.parse().unwrap_or(number)));
        }
        "common" => scaled.round_ties_even(),
        _ => return Fault::failed("round knows common, ceil and floor"),
    };
    // Python's ceil and floor are integers, which have no zero with a sign
    Ok(Value::Float(if whole.is_finite() { whole / scale + 0.0 } else { number }))
}

/// As transformers defines it: `json.dumps` without HTML's escapes, letters as they are.
fn to_json(value: &Value, arguments: Values, budget: &Budget) -> Result<Value, Fault> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let mut arguments = arguments;
    // Jinja's own takes the indentation first
    if let [Value::Int(_)] = arguments.positional[..] {
        let indent = arguments.positional.remove(0);
        arguments.named.push(("indent".into(), indent));
    }
    let [ascii, indent, separators, sort_keys] = arguments.bind("tojson", names)?;
    let indent = match indent {
        None | Some(Value::None | Value::Undefined(_)) => None,
        Some(Value::Str(text)) => Some(text.as_str().to_owned()),
        width => Some(" ".repeat(size_or(width, 0, "tojson")?)),
    };
    let (item_separator, key_separator) = match separators {
        Some(Value::Tuple(items) | Value::List(items)) if items.items.len() == 2 => {
            let text = |value: &Value| text_or(Some(value.clone()), "", "tojson").map(|text| text.as_str().to_owned());
            (text(&items.items[0])?, text(&items.items[1])?)
        }
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(_) => return Fault::failed("tojson wants two separators"),
    };
    let (ascii, sort_keys) = (flag_or(ascii, false), flag_or(sort_keys, false));
    let style = JsonStyle { indent, item_separator, key_separator, ascii, sort_keys };
    let mut builder = Builder::default();
    print::json(&mut builder, value, &style, 0, budget)?;
    Ok(Value::Str(builder.finish()))
}
