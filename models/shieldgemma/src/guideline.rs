//! What is not wanted, in words that a model is asked about.
//!
//! The built-in guidelines are data (`data/guidelines.json`), in this project's own words; a file of the same form, or a
//! sentence, takes their place.

use serde::Deserialize;

use crate::Error;

/// A rule that a text or an image may violate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guideline {
    /// By which it is asked for, such as `harassment`.
    pub name: String,
    /// Its heading, such as `No Harassment`.
    pub title: String,
    /// What a user's prompt shall not do.
    pub prompt: Option<String>,
    /// What a model's answer shall not do.
    pub response: Option<String>,
    /// What an image shall not show.
    pub image: Option<String>,
}

const BUILT_IN: &str = include_str!("../data/guidelines.json");

impl Guideline {
    /// The built-in guidelines.
    pub fn built_in() -> Vec<Self> {
        serde_json::from_str(BUILT_IN).expect("the built-in guidelines are a list of guidelines")
    }

    /// The built-in guideline of this name: `dangerous`, `harassment`, `hate`, `sexual`, `violence`.
    ///
    /// # Errors
    /// [`Error::NoGuideline`], listing the names.
    pub fn named(name: &str) -> Result<Self, Error> {
        let all = Self::built_in();
        let names = || all.iter().map(|guideline| guideline.name.clone()).collect::<Vec<_>>().join(", ");
        let found = all.iter().find(|guideline| guideline.name == name).cloned();
        found.ok_or_else(|| Error::NoGuideline { name: name.to_owned(), names: names() })
    }

    /// A guideline of one's own: a heading and a sentence for texts and images alike.
    pub fn custom(title: &str, rule: &str) -> Self {
        let rule = Some(rule.trim().to_owned());
        let title = title.trim().to_owned();
        Self { name: title.clone(), title, prompt: rule.clone(), response: rule.clone(), image: rule }
    }

    /// Reads guidelines from a file: a JSON list of guidelines or a single one, or else plain text, which is one rule.
    ///
    /// # Errors
    /// [`Error::GuidelineFile`] for JSON of another form, or an empty file.
    pub fn from_text(name: &str, text: &str) -> Result<Vec<Self>, Error> {
        let failed =
            |reason: String| Error::GuidelineFile { name: name.to_owned(), reason: gemma_model::one_line(&reason) };
        let text = text.trim();
        if text.starts_with('[') {
            let all: Vec<Self> = serde_json::from_str(text).map_err(|cause| failed(cause.to_string()))?;
            return if all.is_empty() { Err(failed("it holds no guideline".to_owned())) } else { Ok(all) };
        }
        if text.starts_with('{') {
            return serde_json::from_str(text).map(|one| vec![one]).map_err(|cause| failed(cause.to_string()));
        }
        if text.is_empty() {
            return Err(failed("it is empty".to_owned()));
        }
        Ok(vec![Self::custom("Guideline", text)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_guidelines_are_found_by_name() {
        let names: Vec<String> = Guideline::built_in().into_iter().map(|guideline| guideline.name).collect();
        assert_eq!(names, ["dangerous", "harassment", "hate", "sexual", "violence"]);
        assert_eq!(Guideline::named("hate").unwrap().title, "No Hate Speech");
        let error = Guideline::named("boredom").unwrap_err().to_string();
        assert!(error.contains("boredom") && error.contains("harassment"), "{error}");
    }

    #[test]
    fn a_file_holds_one_rule_or_many() {
        let one = Guideline::from_text("rule.txt", "The prompt shall not ask for tins.\n").unwrap();
        assert_eq!(one[0].prompt.as_deref(), Some("The prompt shall not ask for tins."));
        let many = Guideline::from_text("rules.json", r#"[{"name": "tins", "title": "No Tins", "prompt": "None."}]"#);
        assert_eq!(many.unwrap()[0].response, None);
        for wrong in ["", "[]", "[{\"name\": 1}]", "{\"name\": \"a\"}", "{\"name\": \"a\", \"title\": \"b\", \"x\": 1}"]
        {
            assert!(Guideline::from_text("x", wrong).is_err(), "{wrong}");
        }
    }
}
