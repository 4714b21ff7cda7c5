//! Answers of a given form: JSON, a JSON schema, a regular expression, a choice, or a grammar.

use std::sync::Arc;
use std::time::Duration;

use gemma_tokenizer::TokenId;
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::backend::{Backend, TokenMask};
use super::error::Refusal;
use super::object::Others;
use crate::grammar::{AnswerForm as Form, GrammarError, GrammarMask};

/// Longest time that a grammar may take to compile.
const COMPILE_TIME: Duration = Duration::from_secs(10);

/// The fields for the form of an answer, as OpenAI, llama.cpp and vLLM name them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StructuredFields {
    response_format: Option<ResponseFormat>,
    json_schema: Option<Value>,
    grammar: Option<String>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    /// The newer field of vLLM.
    structured_outputs: Option<StructuredOutputs>,
}

/// vLLM's `structured_outputs`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct StructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    #[serde(flatten)]
    _others: Others,
}

/// A form, and the field that asked for it.
type Asked = (&'static str, Form);

#[derive(Clone, Debug, Deserialize)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<NamedSchema>,
    /// llama.cpp accepts the schema here.
    schema: Option<Value>,
    #[serde(flatten)]
    _others: Others,
}

#[derive(Clone, Debug, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
    #[serde(flatten)]
    _others: Others,
}

impl StructuredFields {
    /// The form that was asked for, if any, and the field that asked for it.
    pub(crate) fn form(&self) -> Result<Option<Asked>, Refusal> {
        let mut forms: Vec<Asked> = Vec::new();
        if let Some(format) = &self.response_format {
            let named = format.json_schema.as_ref().and_then(|named| named.schema.as_ref());
            match format.r#type.as_str() {
                "text" => {}
                "json_object" => match &format.schema {
                    Some(schema) => forms.push(("response_format", Form::Schema(schema.clone()))),
                    None => forms.push(("response_format", Form::JsonObject)),
                },
                "json_schema" => match named.or(format.schema.as_ref()) {
                    Some(schema) => forms.push(("response_format", Form::Schema(schema.clone()))),
                    None => {
                        return Err(Refusal::field(
                            "response_format.json_schema.schema",
                            "missing; send a JSON schema",
                        ));
                    }
                },
                other => {
                    let message = format!("{other:?} is unknown; use text, json_object or json_schema");
                    return Err(Refusal::field("response_format.type", message));
                }
            }
        }
        let newer = self.structured_outputs.clone().unwrap_or_default();
        let schemas = [
            ("json_schema", &self.json_schema),
            ("guided_json", &self.guided_json),
            ("structured_outputs.json", &newer.json),
        ];
        for (field, schema) in schemas {
            forms.extend(schema.clone().filter(|schema| !schema.is_null()).map(|schema| (field, Form::Schema(schema))));
        }
        if newer.json_object == Some(true) {
            forms.push(("structured_outputs.json_object", Form::JsonObject));
        }
        let grammars = [
            ("grammar", &self.grammar),
            ("guided_grammar", &self.guided_grammar),
            ("structured_outputs.grammar", &newer.grammar),
        ];
        for (field, grammar) in grammars {
            let grammar = grammar.clone().filter(|grammar| !grammar.trim().is_empty());
            forms.extend(grammar.map(|grammar| (field, Form::Lark(grammar))));
        }
        for (field, regex) in [("guided_regex", &self.guided_regex), ("structured_outputs.regex", &newer.regex)] {
            forms.extend(regex.clone().map(|regex| (field, Form::Regex(regex))));
        }
        for (field, choice) in [("guided_choice", &self.guided_choice), ("structured_outputs.choice", &newer.choice)] {
            if choice.as_ref().is_some_and(Vec::is_empty) {
                return Err(Refusal::field(field, "there is nothing to choose from"));
            }
            forms.extend(choice.clone().map(|choice| (field, Form::Choice(choice))));
        }
        if forms.len() > 1 {
            let fields: Vec<&str> = forms.iter().map(|(field, _)| *field).collect();
            let message = format!("more than one form of the answer is asked for ({}); send one", fields.join(", "));
            return Err(Refusal::field(fields[0], message));
        }
        Ok(forms.pop())
    }

    /// The mask of the form that was asked for, if any.
    pub(crate) async fn mask(
        &self,
        app: &App,
        backend: &Arc<dyn Backend>,
    ) -> Result<Option<Box<dyn TokenMask>>, Refusal> {
        match self.form()? {
            Some(asked) => mask(app, backend, asked).await.map(Some),
            None => Ok(None),
        }
    }
}

impl TokenMask for GrammarMask {
    fn allowed(&mut self, allowed: &mut [bool]) -> Result<(), String> {
        self.allow(allowed)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        GrammarMask::accept(self, token)
    }
}

/// Compiles a form to a mask, on a thread of its own and for a bounded time.
pub(crate) async fn mask(
    app: &App,
    backend: &Arc<dyn Backend>,
    (field, form): Asked,
) -> Result<Box<dyn TokenMask>, Refusal> {
    let (app_there, backend) = (app.clone(), Arc::clone(backend));
    let compiled = app.blocking(move || {
        let grammars = app_there.grammars(backend.as_ref());
        let mask = grammars.compile(&form, backend.tokenizer(), backend.card().vocab_size);
        match mask {
            Ok(mask) => Ok(Box::new(mask) as Box<dyn TokenMask>),
            Err(error @ GrammarError::Grammar(_)) => Err(Refusal::field(field, error.to_string())),
            Err(error) => Err(Refusal::failed(error.to_string())),
        }
    });
    match tokio::time::timeout(COMPILE_TIME, compiled).await {
        Ok(mask) => mask,
        Err(_) => Err(Refusal::field(field, "the grammar took too long to compile; send a simpler one")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn form(json: &str) -> Result<Option<Form>, Refusal> {
        Ok(asked(json)?.map(|(_, form)| form))
    }

    fn asked(json: &str) -> Result<Option<Asked>, Refusal> {
        serde_json::from_str::<StructuredFields>(json).expect("fields").form()
    }

    #[test]
    fn the_form_is_read_as_each_server_names_it() {
        let schema = Form::Schema(json!({"type": "integer"}));
        assert_eq!(form("{}"), Ok(None));
        assert_eq!(form(r#"{"response_format":{"type":"text"}}"#), Ok(None));
        assert_eq!(form(r#"{"response_format":{"type":"json_object"}}"#), Ok(Some(Form::JsonObject)));
        for json in [
            r#"{"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"integer"}}}}"#,
            r#"{"response_format":{"type":"json_object","schema":{"type":"integer"}}}"#,
            r#"{"json_schema":{"type":"integer"}}"#,
            r#"{"guided_json":{"type":"integer"}}"#,
            r#"{"structured_outputs":{"json":{"type":"integer"}}}"#,
        ] {
            assert_eq!(form(json), Ok(Some(schema.clone())), "{json}");
        }
    }

    #[test]
    fn a_form_that_cannot_be_is_refused_by_name() {
        for (json, param) in [
            (r#"{"response_format":{"type":"xml"}}"#, "response_format.type"),
            (r#"{"response_format":{"type":"json_schema"}}"#, "response_format.json_schema.schema"),
            (r#"{"grammar":"start: \"a\"","guided_regex":"a"}"#, "grammar"),
            (r#"{"guided_choice":[]}"#, "guided_choice"),
            (r#"{"structured_outputs":{"choice":[]}}"#, "structured_outputs.choice"),
        ] {
            assert_eq!(form(json).expect_err(json).param.as_deref(), Some(param));
        }
        // what compiles it names the field as well
        for (json, field) in [
            (r#"{"guided_regex":"("}"#, "guided_regex"),
            (r#"{"structured_outputs":{"grammar":"start: b"}}"#, "structured_outputs.grammar"),
        ] {
            assert_eq!(asked(json).expect("a form").expect("one").0, field);
        }
    }
}
