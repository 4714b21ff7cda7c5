//! Function calls: how tools are shown to Gemma, and how its calls are read.
//!
//! Gemma 1 to 3 have no control tokens for tools. Google's guide asks for a JSON object in the answer, which is what the
//! text here asks for; FunctionGemma's `<start_function_call>` form is read too.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::app::new_id;
use super::error::Refusal;
use super::object::Others;
use crate::grammar::AnswerForm as Form;

/// Most tools of a request.
const MOST_TOOLS: usize = 128;

/// One entry of `tools`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tool {
    /// `function`; not looked at beyond its type.
    #[serde(default, rename = "type")]
    _kind: Option<String>,
    function: Function,
    #[serde(flatten)]
    _others: Others,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Function {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
    #[serde(flatten, skip_serializing)]
    _others: Others,
}

/// `tool_choice`: a word, or the name of a function.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected none, auto, required or an object that names a function")]
pub(crate) enum ToolChoice {
    Word(String),
    Named { function: NamedFunction },
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedFunction {
    name: String,
    #[serde(flatten)]
    _others: Others,
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Value,
}

impl Call {
    /// OpenAI's form; the arguments are a JSON text.
    pub(crate) fn openai(&self, index: Option<usize>) -> Value {
        let function = json!({"name": self.name, "arguments": self.arguments.to_string()});
        let mut call = json!({"id": new_id("call_"), "type": "function", "function": function});
        if let Some(index) = index {
            call["index"] = json!(index);
        }
        call
    }

    /// Ollama's form; the arguments are an object.
    pub(crate) fn ollama(&self) -> Value {
        json!({"function": {"name": self.name, "arguments": self.arguments}})
    }
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    functions: Vec<Function>,
    /// The form that a call must have, where one is required.
    pub(crate) form: Option<Form>,
}

impl Tools {
    /// The tools that the model may call; `None` when there are none or `tool_choice` is `none`.
    pub(crate) fn new(tools: Option<&[Tool]>, choice: Option<&ToolChoice>) -> Result<Option<Self>, Refusal> {
        let functions: Vec<Function> = tools.unwrap_or_default().iter().map(|tool| tool.function.clone()).collect();
        if functions.len() > MOST_TOOLS {
            return Err(Refusal::field("tools", format!("{} tools; at most {MOST_TOOLS}", functions.len())));
        }
        let forced: Vec<&Function> = match choice {
            Some(ToolChoice::Word(word)) if word == "none" => return Ok(None),
            Some(ToolChoice::Word(word)) if word == "required" || word == "any" => functions.iter().collect(),
            None => Vec::new(),
            Some(ToolChoice::Word(word)) if word == "auto" => Vec::new(),
            Some(ToolChoice::Word(word)) => {
                return Err(Refusal::field("tool_choice", format!("{word:?} is unknown; use none, auto or required")));
            }
            Some(ToolChoice::Named { function }) => {
                let named: Vec<&Function> = functions.iter().filter(|other| other.name == function.name).collect();
                if named.is_empty() {
                    return Err(Refusal::field("tool_choice", format!("there is no tool {:?}", function.name)));
                }
                named
            }
        };
        if functions.is_empty() {
            return match choice {
                Some(_) if tools.is_none() => Err(Refusal::field("tool_choice", "there are no tools to choose from")),
                _ => Ok(None),
            };
        }
        let form = (!forced.is_empty()).then(|| Form::Schema(call_schema(&forced)));
        Ok(Some(Self { functions, form }))
    }

    /// The instructions, in the words of Google's guide to function calling with Gemma.
    pub(crate) fn instructions(&self) -> String {
        let functions = serde_json::to_string(&self.functions).unwrap_or_default();
        format!(
            "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format of\n\
             {{\"name\": function name, \"parameters\": dictionary of argument name and its value}}\n\n\
             You SHOULD NOT include any other text in the response if you call a function\n{functions}"
        )
    }

    /// The calls in an answer; `None` when it is a text.
    pub(crate) fn calls(&self, answer: &str) -> Option<Vec<Call>> {
        let calls = function_gemma_calls(answer).or_else(|| json_calls(answer))?;
        let known = |call: &Call| self.functions.iter().any(|function| function.name == call.name);
        (!calls.is_empty() && calls.iter().all(known)).then_some(calls)
    }

    /// Whether an answer that begins like this may still become calls.
    pub(crate) fn may_be_call(beginning: &str) -> bool {
        let text = beginning.trim_start();
        ["{", "[", "```", "<start_function_call>"].iter().any(|open| text.starts_with(open) || open.starts_with(text))
    }
}

/// The schema of a call of one of these functions.
fn call_schema(functions: &[&Function]) -> Value {
    let one = |place: &str, function: &Function| {
        let mut parameters = function.parameters.clone().unwrap_or_else(|| json!({"type": "object"}));
        rebase(&mut parameters, &format!("#{place}/properties/parameters"));
        let properties = json!({"name": {"const": function.name}, "parameters": parameters});
        json!({"type": "object", "properties": properties, "required": ["name", "parameters"], "additionalProperties": false})
    };
    match functions {
        [function] => one("", function),
        _ => {
            let each =
                functions.iter().enumerate().map(|(number, function)| one(&format!("/anyOf/{number}"), function));
            json!({"anyOf": each.collect::<Vec<_>>()})
        }
    }
}

/// Makes the references of a schema within itself (`#/$defs/..`) those of a part at `place` of a larger schema.
fn rebase(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| match value {
            Value::String(target) if name == "$ref" && (target == "#" || target.starts_with("#/")) => {
                target.replace_range(..1, place);
            }
            value => rebase(value, place),
        }),
        Value::Array(values) => values.iter_mut().for_each(|value| rebase(value, place)),
        _ => {}
    }
}

/// `{"name": .., "parameters": ..}` or an array of such, alone or in a fence.
fn json_calls(answer: &str) -> Option<Vec<Call>> {
    let text = answer.trim();
    let text = match text.strip_prefix("```") {
        Some(rest) => rest.split_once('\n')?.1.trim_end().strip_suffix("```")?.trim(),
        None => text,
    };
    let values = match serde_json::from_str(text).ok()? {
        Value::Array(values) => values,
        value => vec![value],
    };
    values.into_iter().map(call_of).collect()
}

fn call_of(value: Value) -> Option<Call> {
    let Value::Object(mut object) = value else { return None };
    let name = object.remove("name")?.as_str()?.to_owned();
    let arguments = object.remove("parameters").or_else(|| object.remove("arguments")).unwrap_or_else(|| json!({}));
    arguments.is_object().then_some(Call { name, arguments })
}

/// `<start_function_call>call:NAME{key:<escape>text<escape>,other:7}<end_function_call>`.
fn function_gemma_calls(answer: &str) -> Option<Vec<Call>> {
    const ESCAPE: &str = "<escape>";
    let mut calls = Vec::new();
    let mut rest = answer;
    while let Some((_, after)) = rest.split_once("<start_function_call>") {
        let (body, after) = after.split_once("<end_function_call>").unwrap_or((after, ""));
        let (name, arguments) = body.trim().strip_prefix("call:")?.split_once('{')?;
        let mut arguments = arguments.strip_suffix('}')?;
        let mut map = Map::new();
        while !arguments.is_empty() {
            let (key, value) = arguments.split_once(':')?;
            let (value, next) = match value.strip_prefix(ESCAPE) {
                Some(text) => {
                    let (text, next) = text.split_once(ESCAPE)?;
                    (Value::from(text), next)
                }
                None => {
                    let (word, next) =
                        value.split_once(',').map_or((value, ""), |(word, _)| (word, &value[word.len()..]));
                    (serde_json::from_str(word).unwrap_or_else(|_| Value::from(word)), next)
                }
            };
            map.insert(key.trim().to_owned(), value);
            arguments = next.strip_prefix(',').unwrap_or(next);
        }
        calls.push(Call { name: name.to_owned(), arguments: Value::Object(map) });
        rest = after;
    }
    (!calls.is_empty()).then_some(calls)
}

/// How the model sees a call that it made earlier; `arguments` is a JSON text or an object.
pub(crate) fn call_text(name: &str, arguments: &Value) -> String {
    let arguments = match arguments {
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| arguments.clone()),
        other => other.clone(),
    };
    json!({"name": name, "parameters": arguments}).to_string()
}

/// How the model sees what a tool returned.
pub(crate) fn result_text(name: Option<&str>, result: &str) -> String {
    match name {
        Some(name) => format!("Result of {name}:\n{result}"),
        None => format!("Result of the function:\n{result}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: &str) -> Result<Option<Tools>, Refusal> {
        let tools: Vec<Tool> = serde_json::from_str(
            r#"[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}},
                {"type":"function","function":{"name":"time"}}]"#,
        )
        .expect("tools");
        let choice: ToolChoice = serde_json::from_str(choice).expect("a choice");
        Tools::new(Some(&tools), Some(&choice))
    }

    #[test]
    fn calls_are_read_in_every_form_that_gemma_writes() {
        let tools = tools("\"auto\"").expect("valid").expect("tools");
        let call = |name: &str, arguments: Value| Call { name: name.into(), arguments };
        let rome = call("weather", json!({"city": "Rome"}));
        for answer in [
            r#"{"name": "weather", "parameters": {"city": "Rome"}}"#,
            "```json\n{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}\n```",
            " [{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}]\n",
            "<start_function_call>call:weather{city:<escape>Rome<escape>}<end_function_call>",
        ] {
            assert_eq!(tools.calls(answer), Some(vec![rome.clone()]), "{answer}");
        }
        let two = "<start_function_call>call:time{}<end_function_call><start_function_call>call:weather{city:<escape>a, b<escape>,days:3}<end_function_call>";
        assert_eq!(
            tools.calls(two),
            Some(vec![call("time", json!({})), call("weather", json!({"city": "a, b", "days": 3}))])
        );
        for text in [
            "It is sunny.",
            "{\"name\": \"unknown\", \"parameters\": {}}",
            "{\"name\"",
            "{}",
            "[]",
            "<start_function_call>x",
        ] {
            assert_eq!(tools.calls(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_is_known_to_be_one_early() {
        assert!(["", " ", "{", "``", "```json", "<start", "[{"].iter().all(|text| Tools::may_be_call(text)));
        assert!(["It", "<b>", "`x`", "- "].iter().all(|text| !Tools::may_be_call(text)));
    }

    #[test]
    fn a_required_call_has_the_schema_of_its_function() {
        let form = |choice: &str| tools(choice).expect("valid").expect("tools").form;
        assert_eq!(form("\"auto\""), None);
        let Some(Form::Schema(schema)) = form(r#"{"type":"function","function":{"name":"weather"}}"#) else {
            panic!("a schema")
        };
        assert_eq!(schema["properties"]["name"], json!({"const": "weather"}));
        let Some(Form::Schema(schema)) = form("\"required\"") else { panic!("a schema") };
        assert_eq!(schema["anyOf"].as_array().map(Vec::len), Some(2));
        assert!(tools("\"none\"").expect("valid").is_none());
        assert_eq!(tools("\"maybe\"").expect_err("unknown").param.as_deref(), Some("tool_choice"));
        assert_eq!(tools(r#"{"function":{"name":"x"}}"#).expect_err("unknown").param.as_deref(), Some("tool_choice"));
    }
}
