//! What a model says, taken apart: its thoughts, its calls of tools, and text. Nothing is ever lost: what does not
//! parse as a call stays text.
//!
//! Gemma 4 writes `<|tool_call>call:NAME{key:<|"|>text<|"|>,n:5}<tool_call|>` and thinks between `<|channel>thought`
//! and `<channel|>`; FunctionGemma writes `<start_function_call>call:NAME{key:<escape>text<escape>}<end_function_call>`.
//! The text must be decoded with its control tokens ([`DecodeOptions::specials`](crate::DecodeOptions)).

use serde_json::{Map, Number, Value as Json};

use crate::turn::ToolCall;

/// What a model said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOutput {
    /// The text for the person.
    pub text: String,
    /// What it thought first, if it did.
    pub reasoning: Option<String>,
    /// The tools that it calls, in order.
    pub tool_calls: Vec<ToolCall>,
}

/// Opening and closing marks of a call.
const CALLS: [[&str; 2]; 2] = [["<|tool_call>", "<tool_call|>"], ["<start_function_call>", "<end_function_call>"]];
/// What stands around a text in a call.
const QUOTES: [&str; 2] = ["<|\"|>", "<escape>"];
/// Opening and closing marks of a thought.
const CHANNEL: [&str; 2] = ["<|channel>", "<channel|>"];
/// Marks that may end an answer and are no text.
const ENDS: [&str; 6] = ["<|tool_response>", "<start_function_response>", "<turn|>", "<end_of_turn>", "<eos>", "<pad>"];
/// The longest name of a tool, in bytes.
const LONGEST_NAME: usize = 512;
/// Most lists and objects inside each other.
const MAX_DEPTH: usize = 50;

impl ModelOutput {
    /// Takes a text apart.
    pub fn parse(output: &str) -> Self {
        let mut parsed = Self::default();
        let mut rest = output;
        while let Some(shorter) = ENDS.iter().find_map(|end| rest.trim_end().strip_suffix(end)) {
            rest = shorter;
        }
        // a call may follow a thought or another call without its opening mark
        let mut bare = true;
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix(CHANNEL[0]) {
                // a thought that is not closed is one to the end
                let (thought, after) = inside.split_once(CHANNEL[1]).unwrap_or((inside, ""));
                let thought = thought.strip_prefix("thought").unwrap_or(thought).trim();
                if !thought.is_empty() {
                    let known = parsed.reasoning.take().map(|known| known + "\n").unwrap_or_default();
                    parsed.reasoning = Some(known + thought);
                }
                (rest, bare) = (after, true);
                continue;
            }
            let marks = CALLS.iter().find(|[open, _]| rest.starts_with(open));
            let inside = marks.map_or(rest, |[open, _]| &rest[open.len()..]);
            if (marks.is_some() || bare)
                && let Some((call, after)) = call(inside.trim_start())
            {
                parsed.tool_calls.push(call);
                let after_space = after.trim_start();
                let closed = CALLS.iter().find_map(|[_, close]| after_space.strip_prefix(close));
                (rest, bare) = (closed.unwrap_or(after), true);
                continue;
            }
            // text: to the next mark, at least one character
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let end = next_mark(&rest[first..]).map_or(rest.len(), |at| first + at);
            let (text, after) = rest.split_at(end);
            parsed.text += text;
            bare = bare && text.trim().is_empty();
            rest = after;
        }
        if !parsed.tool_calls.is_empty() && parsed.text.trim().is_empty() {
            parsed.text.clear();
        }
        parsed
    }
}

/// Where the next mark begins that opens something. All begin with `<`, so that a text without an end to its marks is
/// looked through once.
fn next_mark(text: &str) -> Option<usize> {
    let opens = |text: &str| CALLS.iter().any(|[open, _]| text.starts_with(open)) || text.starts_with(CHANNEL[0]);
    text.match_indices('<').map(|(at, _)| at).find(|at| opens(&text[*at..]))
}

/// `call:NAME{...}` at the start of the text, and what follows it.
fn call(text: &str) -> Option<(ToolCall, &str)> {
    let text = text.strip_prefix("call:")?;
    let end = text.bytes().take(LONGEST_NAME).position(|byte| byte == b'{')?;
    let name = &text[..end];
    let rest = &text[name.len()..];
    let name = name.trim();
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    if name.is_empty() || !name.chars().all(is_name) {
        return None;
    }
    let (arguments, rest) = value(rest, 0)?;
    let Json::Object(arguments) = arguments else { return None };
    Some((ToolCall { id: None, name: name.to_owned(), arguments }, rest))
}

/// A value at the start of the text, and what follows it.
fn value(text: &str, depth: usize) -> Option<(Json, &str)> {
    let text = text.trim_start();
    if depth > MAX_DEPTH {
        return None;
    }
    if let Some((quoted, rest)) = quoted(text) {
        return Some((Json::String(quoted), rest));
    }
    if QUOTES.iter().any(|quote| text.starts_with(quote)) {
        return None; // a text that is not closed
    }
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut object = Map::new();
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return Some((Json::Object(object), after));
            }
            let (key, after) = match quoted(rest) {
                Some(found) => found,
                None => {
                    let end = rest.find([':', ',', '{', '}'])?;
                    (rest[..end].trim().to_owned(), &rest[end..])
                }
            };
            let (item, after) = value(after.trim_start().strip_prefix(':')?, depth + 1)?;
            if object.insert(key, item).is_some() {
                return None;
            }
            rest = after_item(after, '}')?;
        }
    }
    if let Some(mut rest) = text.strip_prefix('[') {
        let mut items = Vec::new();
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix(']') {
                return Some((Json::Array(items), after));
            }
            let (item, after) = value(rest, depth + 1)?;
            items.push(item);
            rest = after_item(after, ']')?;
        }
    }
    let end = text.find([',', '}', ']', '{', '['])?;
    let (word, rest) = text.split_at(end);
    let word = word.trim();
    Some((bare_value(word)?, rest))
}

/// After an item comes a comma or the closing bracket, which is left.
fn after_item(text: &str, close: char) -> Option<&str> {
    let text = text.trim_start();
    match text.strip_prefix(',') {
        Some(after) => Some(after),
        None => text.starts_with(close).then_some(text),
    }
}

/// A number, `true`, `false`, `null`, or a word without quotes.
fn bare_value(word: &str) -> Option<Json> {
    Some(match word {
        "" => return None,
        "true" | "True" => Json::Bool(true),
        "false" | "False" => Json::Bool(false),
        "null" | "None" | "none" => Json::Null,
        word => match word.parse::<i64>() {
            Ok(number) => Json::Number(number.into()),
            Err(_) => match word.parse::<f64>().ok().and_then(Number::from_f64) {
                Some(number) => Json::Number(number),
                None => Json::String(word.to_owned()),
            },
        },
    })
}

/// A text in quotes at the start, and what follows it: between two marks anything may stand.
fn quoted(text: &str) -> Option<(String, &str)> {
    for quote in QUOTES {
        if let Some(inside) = text.strip_prefix(quote) {
            return inside.split_once(quote).map(|(quoted, rest)| (quoted.to_owned(), rest));
        }
    }
    if !text.starts_with('"') {
        return None;
    }
    let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let string = strings.next()?.ok()?;
    Some((string, &text[strings.byte_offset()..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn calls(output: &str) -> Vec<(String, Json)> {
        let parsed = ModelOutput::parse(output);
        parsed.tool_calls.into_iter().map(|call| (call.name, Json::Object(call.arguments))).collect()
    }

    #[test]
    fn calls_of_both_spellings() {
        let gemma4 = "<|tool_call>call:get_weather{city:<|\"|>Bern, {CH}<|\"|>,days:5,list:[1,<|\"|>a<|\"|>],flag:true,\
            nested:{<|\"|>k<|\"|>:null,f:-2.5}}<tool_call|><|tool_response>";
        let arguments = json!({"city": "Bern, {CH}", "days": 5, "list": [1, "a"], "flag": true,
            "nested": {"k": null, "f": -2.5}});
        assert_eq!(calls(gemma4), [("get_weather".into(), arguments)]);
        let function = "<start_function_call>call:now{}<end_function_call><start_function_call>call:f{a:<escape>\"x<escape>}\
            <end_function_call><start_function_response>";
        assert_eq!(calls(function), [("now".into(), json!({})), ("f".into(), json!({"a": "\"x"}))]);
        assert_eq!(ModelOutput::parse(function).text, "");
        assert_eq!(
            calls("<|tool_call>call:f{\"a\": \"x\\\"}\", b: word}"),
            [("f".into(), json!({"a": "x\"}", "b": "word"}))]
        );
    }

    #[test]
    fn thoughts_and_text_around_calls() {
        let parsed = ModelOutput::parse("<|channel>thought\nhm {\n<channel|>call:f{x:1}<tool_call|>So.<turn|>");
        assert_eq!((parsed.reasoning.as_deref(), &*parsed.text, parsed.tool_calls.len()), (Some("hm {"), "So.", 1));
        let parsed = ModelOutput::parse("First, <|tool_call>call:f{x:1}<tool_call|> and then call:g{} is text");
        assert_eq!((&*parsed.text, parsed.tool_calls.len()), ("First,  and then call:g{} is text", 1));
        assert_eq!(ModelOutput::parse("<|channel>thought\n<channel|>Hello").reasoning, None);
        assert_eq!(ModelOutput::parse("<|channel>thought\nnever closed").reasoning.as_deref(), Some("never closed"));
    }

    #[test]
    fn what_does_not_parse_stays_text() {
        for output in [
            "Hello, world",
            "<|tool_call>call:f{a:<|\"|>not closed}<tool_call|>",
            "<|tool_call>call:f{a:1",
            "<|tool_call>f(a=1)<tool_call|>",
            "<|tool_call>call:{}<tool_call|>",
            "<|tool_call>call:f{a:1,a:2}<tool_call|>",
            "call me: {x}",
            "<start_function_call>",
            "the <tool_call|> alone",
        ] {
            assert_eq!(ModelOutput::parse(output), ModelOutput { text: output.into(), ..ModelOutput::default() });
        }
        for mark in ["<start_function_call>", "<|tool_call>call:", "<|tool_call>call:f{a:[1,"] {
            let many = mark.repeat(100_000);
            assert_eq!(ModelOutput::parse(&many).text.len(), many.len(), "{mark}");
        }
        let deep = format!("<|tool_call>call:f{{a:{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(ModelOutput::parse(&deep).text, deep);
    }
}
