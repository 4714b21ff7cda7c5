//! Files of token ids: a JSON array of numbers, or an array of such arrays.

use std::path::Path;

use anyhow::{Context, Result, bail};
use gemma_tokenizer::TokenId;

use serde_json::Value;

use crate::text;

/// What a file of token ids holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TokenRows {
    /// One array of ids.
    One(Vec<TokenId>),
    /// An array of arrays, to be read as one batch.
    Batch(Vec<Vec<TokenId>>),
}

impl TokenRows {
    /// Reads the file; ids are not yet compared with a vocabulary.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = text::read(path).with_context(|| format!("the tokens file {name}"))?;
        let value = serde_json::from_str(&text).with_context(|| format!("the tokens file {name} is not JSON"))?;
        Self::parse(value).with_context(|| format!("the tokens file {name} cannot be used"))
    }

    fn parse(value: Value) -> Result<Self> {
        // what `gemma tokenize --json` and `gemma generate --json` print holds the ids under this name
        let value = match value {
            Value::Object(mut object) if object.contains_key("tokens") => object["tokens"].take(),
            other => other,
        };
        let Value::Array(items) = value else { bail!("it must hold a JSON array of token ids, such as [2, 651, 573]") };
        if items.is_empty() {
            bail!("it holds no tokens");
        }
        if items.iter().all(|item| !item.is_array()) {
            return Ok(Self::One(ids(&items, "")?));
        }
        let row = |(index, item): (usize, &Value)| match item {
            Value::Array(items) if items.is_empty() => bail!("row {index} holds no tokens"),
            Value::Array(items) => ids(items, &format!(" of row {index}")),
            other => bail!("row {index} is {other}, not an array of token ids"),
        };
        items.iter().enumerate().map(row).collect::<Result<_>>().map(Self::Batch)
    }

    /// The rows, one or many.
    pub(crate) fn rows(&self) -> &[Vec<TokenId>] {
        match self {
            Self::One(row) => std::slice::from_ref(row),
            Self::Batch(rows) => rows,
        }
    }

    /// The only row, for verbs that read one sequence.
    pub(crate) fn into_one(self) -> Result<Vec<TokenId>> {
        match self {
            Self::One(row) => Ok(row),
            Self::Batch(mut rows) => match (rows.pop(), rows.is_empty()) {
                (Some(row), true) => Ok(row),
                _ => bail!("the tokens file holds several rows; this command reads one array of token ids"),
            },
        }
    }
}

fn ids(items: &[Value], place: &str) -> Result<Vec<TokenId>> {
    let id = |(index, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.with_context(|| format!("item {index}{place} is {item}, not a token id (an integer from 0, below 2^32)"))
    };
    items.iter().enumerate().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TokenRows> {
        TokenRows::parse(serde_json::from_str(text).expect("the test's JSON is well formed"))
    }

    fn refusal(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn one_row_and_many_are_told_apart() {
        assert_eq!(parse("[2, 4294967295]").ok(), Some(TokenRows::One(vec![2, u32::MAX])));
        assert_eq!(parse("[[1], [2, 3]]").ok(), Some(TokenRows::Batch(vec![vec![1], vec![2, 3]])));
    }

    #[test]
    fn refusals_say_what_and_where() {
        assert!(refusal("{}").contains("must hold a JSON array"));
        assert!(refusal("[]").contains("no tokens"));
        assert!(refusal("[[1], []]").contains("row 1 holds no tokens"));
        assert!(refusal("[1, -2]").contains("item 1 is -2"));
        assert!(refusal("[1.5]").contains("item 0 is 1.5"));
        assert!(refusal("[4294967296]").contains("item 0 is 4294967296"));
        assert!(refusal("[[1], 2]").contains("row 1 is 2"));
        assert!(refusal("[[1, \"a\"]]").contains("item 1 of row 0 is \"a\""));
    }

    #[test]
    fn a_verb_for_one_sequence_takes_a_batch_of_one() {
        assert_eq!(parse("[[7, 8]]").and_then(TokenRows::into_one).ok(), Some(vec![7, 8]));
        assert!(parse("[[7], [8]]").and_then(TokenRows::into_one).is_err());
    }
}
