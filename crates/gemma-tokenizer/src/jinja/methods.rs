//! Methods of texts, dictionaries and lists.

use super::arguments::{Values, flag_or, int_or, required, size_or, text_or};
use super::budget::{Budget, Fault};
use super::format;
use super::text::{Builder, Text};
use super::value::{Dict, Items, Value, equal};

/// White space as Python's `str.strip` sees it.
pub(super) fn is_space(c: char) -> bool {
    crate::chat::is_space(c)
}

/// Calls a method; `None` when the value has none of that name.
pub(super) fn call(value: &Value, name: &str, arguments: Values, budget: &Budget) -> Option<Result<Value, Fault>> {
    match value {
        Value::Str(text) => of_text(text, name, arguments, budget),
        Value::Dict(dict) => of_dict(dict, name, arguments, budget),
        Value::List(items) | Value::Tuple(items) => of_items(items, name, arguments, budget),
        _ => None,
    }
}

fn of_dict(dict: &Dict, name: &str, arguments: Values, budget: &Budget) -> Option<Result<Value, Fault>> {
    Some(match name {
        "get" => (|| {
            let [key, default] = arguments.bind(name, ["key", "default"])?;
            let found = dict.get(&required(key, name)?, budget)?.cloned();
            Ok(found.or(default).unwrap_or(Value::None))
        })(),
        "keys" => Value::list(dict.entries.iter().map(|(key, _)| key.clone()).collect(), budget),
        "values" => Value::list(dict.entries.iter().map(|(_, value)| value.clone()).collect(), budget),
        "items" => pairs(dict, budget),
        "copy" => Value::dict(dict.entries.clone(), budget),
        "update" | "pop" | "setdefault" | "clear" | "popitem" => {
            Fault::failed(format!("{name} changes a dictionary, which templates may not do"))
        }
        _ => return None,
    })
}

/// Keys and values as a list of pairs.
pub(super) fn pairs(dict: &Dict, budget: &Budget) -> Result<Value, Fault> {
    let pairs: Result<Vec<Value>, Fault> =
        dict.entries.iter().map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()], budget)).collect();
    Value::list(pairs?, budget)
}

fn of_items(items: &Items, name: &str, arguments: Values, budget: &Budget) -> Option<Result<Value, Fault>> {
    let wanted = |arguments: Values| {
        let [value] = arguments.bind(name, ["value"])?;
        required(value, name)
    };
    Some(match name {
        "count" => wanted(arguments).and_then(|wanted| {
            let mut count = 0;
            for item in &items.items {
                count += i64::from(equal(item, &wanted, budget)?);
            }
            Ok(Value::Int(count))
        }),
        "index" => wanted(arguments).and_then(|wanted| {
            for (index, item) in items.items.iter().enumerate() {
                if equal(item, &wanted, budget)? {
                    return Ok(Value::Int(index as i64));
                }
            }
            Fault::failed("the value is not in the list")
        }),
        "copy" => Value::list(items.items.clone(), budget),
        "append" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" | "clear" => {
            Fault::failed(format!("{name} changes a list, which templates may not do"))
        }
        _ => return None,
    })
}

fn of_text(text: &Text, name: &str, arguments: Values, budget: &Budget) -> Option<Result<Value, Fault>> {
    let own = text.as_str();
    if let Err(fault) = budget.spend(1 + own.len() as u64 / 8) {
        return Some(Err(fault));
    }
    let test = |holds: fn(char) -> bool| Ok(Value::Bool(!own.is_empty() && own.chars().all(holds)));
    // the text between two places, as `[start:end]` cuts it, and how many characters stand before it
    let between = |start: Option<Value>, end: Option<Value>| -> Result<(&str, usize), Fault> {
        if start.is_none() && end.is_none() {
            return Ok((own, 0));
        }
        let length = own.chars().count() as i64;
        let place = |place: i64| if place < 0 { (place.saturating_add(length)).max(0) } else { place.min(length) };
        let (start, end) = (place(int_or(start, 0, name)?), place(int_or(end, length, name)?));
        let at = |place: i64| own.char_indices().nth(place as usize).map_or(own.len(), |(at, _)| at);
        Ok((if start <= end { &own[at(start)..at(end)] } else { "" }, start as usize))
    };
    let find = |arguments: Values, last: bool| -> Result<Option<usize>, Fault> {
        let [part, start, end] = arguments.bind(name, ["sub", "start", "end"])?;
        let part = text_or(part, "", name)?;
        let (own, before) = between(start, end)?;
        let at = if last { own.rfind(part.as_str()) } else { own.find(part.as_str()) };
        Ok(at.map(|at| before + own[..at].chars().count()))
    };
    let place = |arguments: Values, last: bool| match find(arguments, last)? {
        Some(at) => Ok(Value::Int(at as i64)),
        None => Fault::failed("substring not found"),
    };
    let part = |part: &str| text.part(part, budget).map(Value::Str);
    Some(match name {
        "upper" => text.map(budget, str::to_uppercase).map(Value::Str),
        "lower" | "casefold" => text.map(budget, str::to_lowercase).map(Value::Str),
        "capitalize" => capitalized(text, budget).map(Value::Str),
        "title" => titled(text, budget).map(Value::Str),
        "swapcase" => text
            .map(budget, |segment| {
                let swap = |c: char| -> String {
                    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
                };
                segment.chars().map(swap).collect()
            })
            .map(Value::Str),
        "strip" | "lstrip" | "rstrip" => (|| {
            let [chars] = arguments.bind(name, ["chars"])?;
            part(stripped(own, name != "rstrip", name != "lstrip", chars.as_ref())?)
        })(),
        "split" | "rsplit" => split(text, name == "rsplit", arguments, budget),
        "splitlines" => (|| {
            let [keep_ends] = arguments.bind(name, ["keepends"])?;
            let keep_ends = flag_or(keep_ends, false);
            let cut: Result<Vec<Value>, Fault> =
                lines(own).into_iter().map(|(line, whole)| part(if keep_ends { whole } else { line })).collect();
            Value::list(cut?, budget)
        })(),
        "startswith" | "endswith" => (|| {
            let [wanted, start, end] = arguments.bind(name, ["prefix", "start", "end"])?;
            let wanted = required(wanted, name)?;
            let (own, _) = between(start, end)?;
            let candidates = match &wanted {
                Value::Tuple(items) => items.items.clone(),
                one => vec![one.clone()],
            };
            let mut found = false;
            for candidate in candidates {
                let candidate = text_or(Some(candidate), "", name)?;
                found |= match name {
                    "startswith" => own.starts_with(candidate.as_str()),
                    _ => own.ends_with(candidate.as_str()),
                };
            }
            Ok(Value::Bool(found))
        })(),
        "replace" => (|| {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"])?;
            let count = int_or(count, -1, name)?;
            replaced(text, &text_or(old, "", name)?, &text_or(new, "", name)?, count, budget).map(Value::Str)
        })(),
        "find" => find(arguments, false).map(|at| Value::Int(at.map_or(-1, |at| at as i64))),
        "rfind" => find(arguments, true).map(|at| Value::Int(at.map_or(-1, |at| at as i64))),
        "index" => place(arguments, false),
        "rindex" => place(arguments, true),
        "count" => (|| {
            let [part, start, end] = arguments.bind(name, ["sub", "start", "end"])?;
            let part = text_or(part, "", name)?;
            let (own, _) = between(start, end)?;
            let count = match part.as_str() {
                "" => own.chars().count() + 1,
                part => own.matches(part).count(),
            };
            Ok(Value::Int(count as i64))
        })(),
        "join" => (|| {
            let [items] = arguments.bind(name, ["iterable"])?;
            let mut builder = Builder::default();
            for (index, item) in required(items, name)?.iterate(budget)?.iter().enumerate() {
                if index > 0 {
                    builder.push_text(text, budget)?;
                }
                match item {
                    Value::Str(item) => builder.push_text(item, budget)?,
                    other => return Fault::failed(format!("join of a {}", other.kind())),
                }
            }
            Ok(Value::Str(builder.finish()))
        })(),
        "removeprefix" | "removesuffix" => (|| {
            let [affix] = arguments.bind(name, ["affix"])?;
            let affix = text_or(affix, "", name)?;
            part(match name {
                "removeprefix" => own.strip_prefix(affix.as_str()).unwrap_or(own),
                _ => own.strip_suffix(affix.as_str()).unwrap_or(own),
            })
        })(),
        "partition" | "rpartition" => (|| {
            let [separator] = arguments.bind(name, ["sep"])?;
            let separator = text_or(separator, "", name)?;
            let found = match name {
                "partition" => own.find(separator.as_str()),
                _ => own.rfind(separator.as_str()),
            };
            let parts = match found {
                Some(at) => {
                    let after = at + separator.as_str().len();
                    vec![part(&own[..at])?, part(&own[at..after])?, part(&own[after..])?]
                }
                None if name == "partition" => vec![Value::Str(text.clone()), Value::text(""), Value::text("")],
                None => vec![Value::text(""), Value::text(""), Value::Str(text.clone())],
            };
            Value::tuple(parts, budget)
        })(),
        "zfill" => (|| {
            let [width] = arguments.bind(name, ["width"])?;
            let width = size_or(width, 0, name)?;
            // zeros stand behind a sign
            let (sign, digits) = own.split_at(usize::from(own.starts_with(['+', '-'])));
            let mut builder = Builder::default();
            builder.push_text(&text.part(sign, budget)?, budget)?;
            let digits = text.part(digits, budget)?;
            let zeros = padded(&digits, width.saturating_sub(sign.len()), "rjust", &Text::template("0"), budget)?;
            builder.push_text(&zeros, budget)?;
            Ok(Value::Str(builder.finish()))
        })(),
        "ljust" | "rjust" | "center" => (|| {
            let [width, fill] = arguments.bind(name, ["width", "fillchar"])?;
            let width = size_or(width, 0, name)?;
            let fill = text_or(fill, " ", name)?;
            padded(text, width, name, &fill, budget).map(Value::Str)
        })(),
        "isdigit" | "isdecimal" | "isnumeric" => test(char::is_numeric),
        "isalpha" => test(char::is_alphabetic),
        "isalnum" => test(char::is_alphanumeric),
        "isspace" => test(is_space),
        "isascii" => Ok(Value::Bool(own.is_ascii())),
        "isupper" => Ok(Value::Bool(own.chars().any(char::is_uppercase) && !own.chars().any(char::is_lowercase))),
        "islower" => Ok(Value::Bool(own.chars().any(char::is_lowercase) && !own.chars().any(char::is_uppercase))),
        "format" => format::braces(text, &arguments, budget).map(Value::Str),
        _ => return None,
    })
}

/// The lines of a text, each without and with the line break behind it, where Python's `str.splitlines` sees one.
pub(super) fn lines(text: &str) -> Vec<(&str, &str)> {
    let breaks = ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut found, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let end = rest.find(breaks).unwrap_or(rest.len());
        let broken = match &rest[end..] {
            behind if behind.starts_with("\r\n") => 2,
            behind => behind.chars().next().map_or(0, char::len_utf8),
        };
        found.push((&rest[..end], &rest[..end + broken]));
        rest = &rest[end + broken..];
    }
    found
}

/// The text without white space, or without the given characters, at its ends.
pub(super) fn stripped<'t>(
    text: &'t str,
    start: bool,
    end: bool,
    characters: Option<&Value>,
) -> Result<&'t str, Fault> {
    let characters = match characters {
        None | Some(Value::None | Value::Undefined(_)) => None,
        Some(Value::Str(characters)) => Some(characters.as_str()),
        Some(other) => return Fault::failed(format!("strip wants a str, not a {}", other.kind())),
    };
    let goes = |c: char| characters.map_or_else(|| is_space(c), |characters| characters.contains(c));
    let text = if start { text.trim_start_matches(goes) } else { text };
    Ok(if end { text.trim_end_matches(goes) } else { text })
}

/// A capital that small letters follow: that of ß is Ss.
fn title_case(c: char) -> impl Iterator<Item = char> {
    let rest: String = c.to_uppercase().skip(1).collect();
    c.to_uppercase().take(1).chain(rest.to_lowercase().chars().collect::<Vec<_>>())
}

pub(super) fn capitalized(text: &Text, budget: &Budget) -> Result<Text, Fault> {
    let mut first = true;
    text.map(budget, |segment| {
        let mut chars = segment.chars();
        match chars.next() {
            Some(c) if std::mem::take(&mut first) => {
                title_case(c).chain(chars.as_str().to_lowercase().chars()).collect()
            }
            _ => segment.to_lowercase(),
        }
    })
}

pub(super) fn titled(text: &Text, budget: &Budget) -> Result<Text, Fault> {
    let mut inside = false;
    text.map(budget, |segment| {
        let mut out = String::with_capacity(segment.len());
        for c in segment.chars() {
            match (c.is_alphabetic(), inside) {
                (true, false) => out.extend(title_case(c)),
                (true, true) => out.extend(c.to_lowercase()),
                (false, _) => out.push(c),
            }
            inside = c.is_alphabetic();
        }
        out
    })
}

fn split(text: &Text, from_end: bool, arguments: Values, budget: &Budget) -> Result<Value, Fault> {
    let [separator, most] = arguments.bind("split", ["sep", "maxsplit"])?;
    let most = usize::try_from(int_or(most, -1, "split")?).unwrap_or(usize::MAX);
    let own = text.as_str();
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        None | Some(Value::None) => {
            // what is left behind the last cut keeps the space at its other end
            let mut rest = if from_end { own.trim_end_matches(is_space) } else { own.trim_start_matches(is_space) };
            while !rest.is_empty() && parts.len() < most {
                let found = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(at) = found else { break };
                if from_end {
                    let space = rest[at..].chars().next().map_or(1, char::len_utf8);
                    parts.push(&rest[at + space..]);
                    rest = rest[..at].trim_end_matches(is_space);
                } else {
                    parts.push(&rest[..at]);
                    rest = rest[at..].trim_start_matches(is_space);
                }
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
        }
        Some(Value::Str(separator)) if !separator.as_str().is_empty() => {
            let separator = separator.as_str();
            if from_end {
                parts.extend(own.rsplitn(most.saturating_add(1), separator));
            } else {
                parts.extend(own.splitn(most.saturating_add(1), separator));
            }
        }
        Some(Value::Str(_)) => return Fault::failed("empty separator"),
        Some(other) => return Fault::failed(format!("split wants a str, not a {}", other.kind())),
    }
    if from_end {
        parts.reverse();
    }
    budget.allocate(parts.len().saturating_mul(64))?;
    let parts: Result<Vec<Value>, Fault> =
        parts.into_iter().map(|part| text.part(part, budget).map(Value::Str)).collect();
    Value::list(parts?, budget)
}

/// The text with `old` replaced, from the left and at most `count` times where that is not negative.
pub(super) fn replaced(text: &Text, old: &Text, new: &Text, count: i64, budget: &Budget) -> Result<Text, Fault> {
    let own = text.as_str();
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let mut builder = Builder::default();
    let mut from = 0;
    for (at, found) in own.match_indices(old.as_str()).take(most) {
        builder.push_part(text, from..at, budget)?;
        builder.push_text(new, budget)?;
        from = at + found.len();
    }
    builder.push_part(text, from..own.len(), budget)?;
    Ok(builder.finish())
}

pub(super) fn padded(text: &Text, width: usize, how: &str, fill: &Text, budget: &Budget) -> Result<Text, Fault> {
    if fill.as_str().chars().count() != 1 {
        return Fault::failed("the fill character must be exactly one character long");
    }
    let missing = width.saturating_sub(text.as_str().chars().count());
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        // of an odd number Python puts one more on the left if the width is odd, too
        _ => missing / 2 + (missing & width & 1),
    };
    let mut builder = Builder::default();
    for _ in 0..left {
        builder.push_text(fill, budget)?;
    }
    builder.push_text(text, budget)?;
    for _ in left..missing {
        builder.push_text(fill, budget)?;
    }
    Ok(builder.finish())
}
