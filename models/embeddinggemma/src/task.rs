//! What a text is embedded for, and the prefix that tells the model so.
//!
//! The model was trained with a prefix in front of every text; without it the vectors are others and worse.

use std::borrow::Cow;

/// What a text is embedded for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task<'a> {
    /// A search query, to be compared with [`Document`](Self::Document)s.
    #[default]
    Query,
    /// A text that is to be found.
    Document {
        /// Its title, where it has one.
        title: Option<&'a str>,
    },
    /// A question, to be compared with documents that answer it.
    QuestionAnswering,
    /// A claim, to be compared with documents that support or refute it.
    FactChecking,
    /// A text that is put into one of several classes.
    Classification,
    /// A text that is grouped with others like it.
    Clustering,
    /// Two texts that are compared with each other.
    Similarity,
    /// A question in words, to be compared with pieces of code.
    CodeRetrieval,
    /// A text that is to be summarised.
    Summarization,
    /// The text as it is, without a prefix.
    Plain,
}

/// A task by its name, without its parts: for command lines and configuration files.
const NAMES: [(&str, Task<'static>); 10] = [
    ("query", Task::Query),
    ("document", Task::Document { title: None }),
    ("question-answering", Task::QuestionAnswering),
    ("fact-checking", Task::FactChecking),
    ("classification", Task::Classification),
    ("clustering", Task::Clustering),
    ("similarity", Task::Similarity),
    ("code-retrieval", Task::CodeRetrieval),
    ("summarization", Task::Summarization),
    ("none", Task::Plain),
];

impl Task<'_> {
    /// The names of all tasks, as [`named`](Self::named) takes them.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// The task of a name, such as `query` or `code-retrieval`.
    pub fn named(name: &str) -> Option<Task<'static>> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, task)| *task)
    }

    /// The text in front of the user's, as the model card gives it.
    pub fn prefix(&self) -> Cow<'static, str> {
        let task = match self {
            Self::Document { title: None } => return "title: none | text: ".into(),
            Self::Document { title: Some(title) } => return format!("title: {title} | text: ").into(),
            Self::Plain => return "".into(),
            Self::Query => "search result",
            Self::QuestionAnswering => "question answering",
            Self::FactChecking => "fact checking",
            Self::Classification => "classification",
            Self::Clustering => "clustering",
            Self::Similarity => "sentence similarity",
            Self::CodeRetrieval => "code retrieval",
            Self::Summarization => "summarization",
        };
        format!("task: {task} | query: ").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_those_of_the_model_card() {
        assert_eq!(Task::Query.prefix(), "task: search result | query: ");
        assert_eq!(Task::Document { title: None }.prefix(), "title: none | text: ");
        assert_eq!(Task::Document { title: Some("Rust") }.prefix(), "title: Rust | text: ");
        assert_eq!(Task::Similarity.prefix(), "task: sentence similarity | query: ");
        assert_eq!(Task::Plain.prefix(), "");
    }

    #[test]
    fn every_name_is_found_once() {
        let names: std::collections::BTreeSet<_> = Task::names().collect();
        assert_eq!(names.len(), NAMES.len());
        for name in names {
            assert!(Task::named(name).is_some(), "{name}");
        }
        assert_eq!(Task::named("poetry"), None);
    }
}
