//! Training data: lines of JSON become examples.
//!
//! | a line | what is learned |
//! |---|---|
//! | `{"text": "..."}` | the whole text and the end of it |
//! | `{"prompt": "...", "completion": "..."}` | the completion and its end |
//! | `{"messages": [{"role": "user", "content": "..."}, ...]}` | what the model says, by the chat template |
//! | `{"prompt": "...", "chosen": "...", "rejected": "..."}` | that the first answer is better (DPO) |
//! | `{"image": "photo.jpg", "prefix": "...", "suffix": "..."}` | the suffix, by a model that looks at images |
//! | `{"query": "...", "positive": "...", "negative": "..."}` | that the positive belongs to the query, by a model that embeds |
//!
//! Nothing is dropped in silence: a line that cannot be used is an error with its number, or is counted as skipped where
//! the caller says so, and what is cut off is counted.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use gemma_generate::TokenId;
use gemma_tokenizer::{ChatTemplate, EncodeOptions, Role, Tokenizer, Turn};
use serde_json::{Map, Value as Json};

use crate::{Error, Example};

/// The longest line that is read, in bytes.
const LINE_LIMIT: u64 = 64 << 20;

/// What to do with a line that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadLine {
    /// The file is refused.
    #[default]
    Stop,
    /// It is left out, and counted.
    Skip,
}

/// One line of a file, as it is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A text that is learned from end to end.
    Text(String),
    /// A prompt, and what should follow.
    Completion {
        /// What the model reads.
        prompt: String,
        /// What it learns to say.
        completion: String,
    },
    /// A conversation, whose turns of the model are learned.
    Messages(Vec<Turn>),
    /// A prompt with a better and a worse answer.
    Preference {
        /// What the model reads.
        prompt: String,
        /// The better answer.
        chosen: String,
        /// The worse one.
        rejected: String,
    },
    /// An image, a question about it, and the answer.
    Image {
        /// The file, relative to that of the line.
        image: PathBuf,
        /// What the model reads.
        prefix: String,
        /// What it learns to say.
        suffix: String,
    },
    /// A query, the text that belongs to it, and texts that do not (sentence-transformers' columns).
    Pair {
        /// What is searched for: `query`, or `anchor`.
        query: String,
        /// What is to be found.
        positive: String,
        /// What is not to be found: `negative`, a text or a list of texts, or absent.
        negatives: Vec<String>,
    },
}

impl Record {
    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(line: &str) -> Result<Self, String> {
        let json: Json = serde_json::from_str(line).map_err(|error| format!("it is not JSON ({error})"))?;
        let Json::Object(fields) = json else { return Err("it is not a JSON object".to_owned()) };
        let has = |names: &[&str]| names.iter().all(|name| fields.contains_key(*name));
        if has(&["messages"]) {
            return Ok(Self::Messages(turns(&fields["messages"])?));
        }
        if has(&["prompt", "chosen", "rejected"]) {
            let [prompt, chosen, rejected] = texts(&fields, ["prompt", "chosen", "rejected"])?;
            return Ok(Self::Preference { prompt, chosen, rejected });
        }
        if has(&["prompt", "completion"]) {
            let [prompt, completion] = texts(&fields, ["prompt", "completion"])?;
            return Ok(Self::Completion { prompt, completion });
        }
        if has(&["image", "prefix", "suffix"]) {
            let [image, prefix, suffix] = texts(&fields, ["image", "prefix", "suffix"])?;
            return Ok(Self::Image { image: image.into(), prefix, suffix });
        }
        if let Some(query) = ["query", "anchor"].into_iter().find(|query| has(&[query, "positive"])) {
            let [query, positive] = texts(&fields, [query, "positive"])?;
            let negatives = fields.get("negative").map_or(Ok(Vec::new()), |field| some_texts("negative", field))?;
            return Ok(Self::Pair { query, positive, negatives });
        }
        if has(&["text"]) {
            let [text] = texts(&fields, ["text"])?;
            return Ok(Self::Text(text));
        }
        let names: Vec<String> = fields.keys().take(8).map(|name| shown(name)).collect();
        Err(format!(
            "it has the fields {}; it must have text, prompt and completion, messages, prompt, chosen and rejected, image, prefix \
             and suffix, or query and positive",
            if names.is_empty() { "of an empty object".to_owned() } else { names.join(", ") }
        ))
    }
}

/// A text, or a list of texts.
fn some_texts(name: &str, field: &Json) -> Result<Vec<String>, String> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    let found = match field {
        Json::Null => Some(Vec::new()),
        Json::Array(values) => values.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    };
    found.ok_or_else(|| format!("{name} is neither a text nor a list of texts"))
}

/// A name from a file, as a message shows it.
fn shown(name: &str) -> String {
    const MOST: usize = 40;
    name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect()
}

fn texts<const N: usize>(fields: &Map<String, Json>, names: [&str; N]) -> Result<[String; N], String> {
    let mut found: [String; N] = std::array::from_fn(|_| String::new());
    for (name, text) in names.iter().zip(&mut found) {
        let value = fields.get(*name).and_then(Json::as_str);
        *text = value.ok_or_else(|| format!("its field {name} is not a text"))?.to_owned();
    }
    Ok(found)
}

fn turns(messages: &Json) -> Result<Vec<Turn>, String> {
    let messages = messages.as_array().ok_or("its messages are not a list")?;
    let turns: Vec<Turn> = messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            let field = |name: &str| {
                message.get(name).and_then(Json::as_str).ok_or_else(|| format!("message {index} has no text {name}"))
            };
            let content = field("content")?;
            match field("role")? {
                "user" => Ok(Turn::user(content)),
                "assistant" | "model" => Ok(Turn::model(content)),
                "system" => Ok(Turn::system(content)),
                other => Err(format!("message {index} has the role {}; use user, assistant or system", shown(other))),
            }
        })
        .collect::<Result<_, String>>()?;
    match turns.iter().any(|turn| turn.role == Role::Model) {
        true => Ok(turns),
        false => Err("no message is the assistant's, so there is nothing to learn".to_owned()),
    }
}

/// Lines that were skipped: the number of each, from 1, and what is wrong with it.
pub type SkippedLines = Vec<(usize, String)>;

/// Reads the lines of a file of JSON; empty lines are passed over. `take` makes something of the number of a line, from 1, and
/// its record, or says what is wrong with it.
///
/// # Errors
/// When the file cannot be read, or [`Error::Line`] for the first line that cannot be used unless those are skipped.
pub fn read_lines<T>(
    path: &Path,
    on_bad: OnBadLine,
    mut take: impl FnMut(usize, Record) -> Result<T, String>,
) -> Result<(Vec<T>, SkippedLines), Error> {
    let unreadable = |cause| Error::Read { path: path.to_owned(), cause };
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    let (mut taken, mut skipped) = (Vec::new(), Vec::new());
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut reader).take(LINE_LIMIT + 1).read_until(b'\n', &mut line).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        let result = if read as u64 > LINE_LIMIT {
            Err(format!("it has more than {LINE_LIMIT} bytes"))
        } else {
            match std::str::from_utf8(&line) {
                Ok(text) if text.trim().is_empty() => continue,
                // a byte order mark, which some editors put in front of a file, is no text
                Ok(text) => Record::parse(text.trim_start_matches('\u{feff}')).and_then(|record| take(number, record)),
                Err(_) => Err("it is not UTF-8".to_owned()),
            }
        };
        match (result, on_bad) {
            (Ok(item), _) => taken.push(item),
            (Err(reason), OnBadLine::Skip) if read as u64 <= LINE_LIMIT => skipped.push((number, reason)),
            (Err(reason), _) => return Err(Error::Line { path: path.to_owned(), line: number, reason }),
        }
    }
    if taken.is_empty() {
        return Err(Error::NoExamples { path: path.to_owned() });
    }
    Ok((taken, skipped))
}

/// Turns records into examples.
#[derive(Clone, Copy, Debug)]
pub struct Examples<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's chat template.
    pub template: &'a ChatTemplate,
}

impl Examples<'_> {
    /// A text and the end of it.
    pub fn text(&self, text: &str) -> Example {
        let mut tokens = self.tokenizer.encode(text);
        tokens.push(self.tokenizer.eos());
        Example::text(tokens)
    }

    /// A prompt, and what should follow it. The two are encoded apart, as they are when the model is asked.
    pub fn completion(&self, prompt: &str, completion: &str) -> Example {
        let mut answer = self.plain(completion);
        answer.push(self.tokenizer.eos());
        Example::completion(self.tokenizer.encode(prompt), &answer)
    }

    /// A conversation, of which the model's turns are learned, the end of each included.
    ///
    /// # Errors
    /// What the chat template refuses, in words.
    pub fn conversation(&self, turns: &[Turn]) -> Result<Example, String> {
        let tokens_of = |turns: &[Turn], prompt: bool| {
            self.tokenizer.chat(self.template, turns, prompt).map_err(|error| error.to_string())
        };
        let tokens = tokens_of(turns, false)?;
        let mut learn = vec![false; tokens.len()];
        for (index, _) in turns.iter().enumerate().filter(|(_, turn)| turn.role == Role::Model) {
            let before = tokens_of(&turns[..index], true)?;
            let until = tokens_of(&turns[..=index], false)?;
            if !tokens.starts_with(&before) || !tokens.starts_with(&until) || until.len() < before.len() {
                return Err("the chat template does not render a conversation as its turns one after the other".into());
            }
            learn[before.len()..until.len()].fill(true);
        }
        Ok(Example::new(tokens, learn))
    }

    fn plain(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode_with(text, EncodeOptions { bos: false, specials: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn each_kind_of_line_is_recognised() {
        assert_eq!(Record::parse(r#"{"text": "a"}"#), Ok(Record::Text("a".into())));
        let completion = Record::Completion { prompt: "p".into(), completion: "c".into() };
        assert_eq!(Record::parse(r#"{"prompt": "p", "completion": "c", "id": 3}"#), Ok(completion));
        let chat = r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "m"}]}"#;
        assert_eq!(Record::parse(chat), Ok(Record::Messages(vec![Turn::user("u"), Turn::model("m")])));
        assert!(matches!(
            Record::parse(r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#),
            Ok(Record::Preference { .. })
        ));
        assert!(matches!(Record::parse(r#"{"image": "i", "prefix": "p", "suffix": "s"}"#), Ok(Record::Image { .. })));
        let pair = |negatives: &[&str]| {
            let negatives = negatives.iter().map(|text| (*text).to_owned()).collect();
            Ok(Record::Pair { query: "q".into(), positive: "p".into(), negatives })
        };
        assert_eq!(Record::parse(r#"{"query": "q", "positive": "p"}"#), pair(&[]));
        assert_eq!(Record::parse(r#"{"anchor": "q", "positive": "p", "negative": "n"}"#), pair(&["n"]));
        assert_eq!(Record::parse(r#"{"query": "q", "positive": "p", "negative": ["n", "m"]}"#), pair(&["n", "m"]));
        for (line, word) in [
            (r#"{"query": "q", "positive": "p", "negative": 3}"#, "negative"),
            ("{", "JSON"),
            ("[]", "object"),
            ("{}", "empty"),
            (r#"{"text": 3}"#, "text"),
            (r#"{"prompt": "p"}"#, "prompt"),
            (r#"{"messages": [{"role": "user", "content": "u"}]}"#, "nothing to learn"),
            (r#"{"messages": [{"role": "cat", "content": "u"}]}"#, "cat"),
        ] {
            let reason = Record::parse(line).expect_err(line);
            assert!(reason.contains(word), "{line}: {reason}");
        }
        let long = "x".repeat(100_000);
        let role = format!(r#"{{"messages": [{{"role": "{long}", "content": "u"}}]}}"#);
        for line in [format!(r#"{{"{long}": 1}}"#), role] {
            assert!(Record::parse(&line).expect_err("unknown").len() < 300, "a name is cut where it is quoted");
        }
    }

    #[test]
    fn a_bad_line_is_named_or_counted() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all("\u{feff}".as_bytes()).expect("written");
        file.write_all(b"{\"text\": \"a\"}\n\n{\"text\": 1}\n\xff\n{\"text\": \"b\"}").expect("written");
        let take = |_, record| match record {
            Record::Text(text) if text == "b" => Err("not b".to_owned()),
            record => Ok(record),
        };
        let error = read_lines(file.path(), OnBadLine::Stop, take).expect_err("refused").to_string();
        assert!(error.contains("line 3"), "{error}");
        let (taken, skipped) = read_lines(file.path(), OnBadLine::Skip, take).expect("one is left");
        assert_eq!(taken.len(), 1);
        assert_eq!(skipped.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(matches!(read_lines(Path::new("/none"), OnBadLine::Skip, take), Err(Error::Read { .. })));
    }
}
