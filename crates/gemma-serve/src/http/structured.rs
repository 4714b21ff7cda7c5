//! Answers of a given form: JSON, a JSON schema, a regular expression, a choice, or a grammar.

use std::sync::Arc;
use std::time::Duration;

use gemma_tokenizer::TokenId;
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::backend::{Backend, TokenMask};
use super::error::Refusal;
use crate::grammar::{AnswerForm as Form, GrammarError, GrammarMask, LONGEST_GRAMMAR};

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
}

#[derive(Clone, Debug, Deserialize)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<NamedSchema>,
    /// llama.cpp accepts the schema here.
    schema: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
}

impl StructuredFields {
    /// The form that was asked for, if any.
    pub(crate) fn form(&self) -> Result<Option<Form>, Refusal> {
        let mut forms = Vec::new();
        if let Some(format) = &self.response_format {
            let named = format.json_schema.as_ref().and_then(|named| named.schema.as_ref());
            match format.r#type.as_str() {
                "text" => {}
                "json_object" => match &format.schema {
                    Some(schema) => forms.push(Form::Schema(schema.clone())),
                    None => forms.push(Form::JsonObject),
                },
                "json_schema" => match named.or(format.schema.as_ref()) {
                    Some(schema) => forms.push(Form::Schema(schema.clone())),
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
        forms.extend(
            self.json_schema
                .iter()
                .chain(&self.guided_json)
                .filter(|schema| !schema.is_null())
                .cloned()
                .map(Form::Schema),
        );
        let grammars = self.grammar.iter().chain(&self.guided_grammar);
        forms.extend(grammars.filter(|grammar| !grammar.trim().is_empty()).cloned().map(Form::Lark));
        forms.extend(self.guided_regex.clone().map(Form::Regex));
        forms.extend(self.guided_choice.clone().map(Form::Choice));
        if forms.len() > 1 {
            return Err(Refusal::field("response_format", "more than one form of the answer is asked for; send one"));
        }
        let form = forms.pop();
        if form.as_ref().is_some_and(|form| matches!(form, Form::Choice(choices) if choices.is_empty())) {
            return Err(Refusal::field("guided_choice", "there is nothing to choose from"));
        }
        Ok(form)
    }

    /// The mask of the form that was asked for, if any.
    pub(crate) async fn mask(
        &self,
        app: &App,
        backend: &Arc<dyn Backend>,
    ) -> Result<Option<Box<dyn TokenMask>>, Refusal> {
        match self.form()? {
            Some(form) => mask(app, backend, form).await.map(Some),
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
pub(crate) async fn mask(app: &App, backend: &Arc<dyn Backend>, form: Form) -> Result<Box<dyn TokenMask>, Refusal> {
    let source = form.source();
    if source.len() > LONGEST_GRAMMAR {
        return Err(Refusal::field(
            "response_format",
            format!("the grammar has {} bytes; at most {LONGEST_GRAMMAR}", source.len()),
        ));
    }
    let (app_there, backend) = (app.clone(), Arc::clone(backend));
    let compiled = app.blocking(move || {
        let grammars = app_there.grammars(backend.as_ref());
        let mask = grammars.compile(&source, backend.tokenizer(), backend.card().vocab_size);
        match mask {
            Ok(mask) => Ok(Box::new(mask) as Box<dyn TokenMask>),
            Err(error @ GrammarError::Grammar(_)) => Err(Refusal::field("response_format", error.to_string())),
            Err(error) => Err(Refusal::failed(error.to_string())),
        }
    });
    match tokio::time::timeout(COMPILE_TIME, compiled).await {
        Ok(mask) => mask,
        Err(_) => Err(Refusal::field("response_format", "the grammar took too long to compile; send a simpler one")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn form(json: &str) -> Result<Option<Form>, Refusal> {
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
        ] {
            assert_eq!(form(json), Ok(Some(schema.clone())), "{json}");
        }
    }

    #[test]
    fn a_form_that_cannot_be_is_refused_by_name() {
        for (json, param) in [
            (r#"{"response_format":{"type":"xml"}}"#, "response_format.type"),
            (r#"{"response_format":{"type":"json_schema"}}"#, "response_format.json_schema.schema"),
            (r#"{"grammar":"start: \"a\"","guided_regex":"a"}"#, "response_format"),
            (r#"{"guided_choice":[]}"#, "guided_choice"),
        ] {
            assert_eq!(form(json).expect_err(json).param.as_deref(), Some(param));
        }
    }
}
