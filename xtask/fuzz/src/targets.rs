//! The targets, their seeds and the words that mean something to them.

use std::io::BufReader;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use gemma::Gemma;
use gemma_backend::Backend;
use gemma_model::Network;
use gemma_serve::lsp;
use gemma_tokenizer::{ChatTemplate, EncodeOptions, Family, ModelOutput, Tokenizer, Turn};
use gemma_weights::{Checkpoint, read_safetensors_with_metadata};

use crate::inputs::as_file;
use crate::{folders, requests, texts, words};

/// Something that reads what strangers write.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Words that mean something to it.
    pub words: &'static [&'static str],
    /// Reads an input; an error is as good as anything.
    read: fn(&[u8]) -> Result<()>,
}

/// Longest message of an error, in bytes: what a message quotes of a file is cut.
const LONGEST_MESSAGE: usize = 2000;

impl Target {
    /// Reads an input. An error is as good as anything, as long as its message is a sentence or two.
    ///
    /// # Panics
    /// When the parser does, or its message is long or holds control characters.
    pub fn run(&self, bytes: &[u8]) {
        let Err(error) = (self.read)(bytes) else { return };
        let message = format!("{error:#}");
        assert!(message.len() <= LONGEST_MESSAGE, "a message of {} bytes: {message:.300}", message.len());
        let control = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
        assert!(!message.contains(control), "a message with control characters: {message:?}");
    }
}

/// All of them.
pub const TARGETS: [Target; 19] = [
    Target { name: "safetensors", words: words::JSON, read: safetensors },
    Target { name: "config", words: words::JSON, read: config },
    Target { name: "gguf", words: words::GGUF, read: gguf },
    Target { name: "tokenizer_json", words: words::JSON, read: tokenizer_json },
    Target {
        name: "tokenizer_model",
        words: &["\n", "\x12", "\x1a", "<0x41>", "▁", "<unused0>"],
        read: tokenizer_model,
    },
    Target { name: "chat_template", words: words::JINJA, read: chat_template },
    Target { name: "messages", words: words::JSON, read: messages },
    Target { name: "model_output", words: words::CALLS, read: model_output },
    Target { name: "image", words: &["\u{0}", "IHDR", "IDAT", "JFIF", "Exif", "VP8L", "GIF89a"], read: image },
    Target { name: "lsp", words: words::LSP, read: language_server },
    Target { name: "state", words: words::JSON, read: state },
    Target { name: "model", words: words::MODEL, read: folders::model },
    Target { name: "mmproj", words: words::MMPROJ, read: folders::mmproj },
    Target { name: "adapter", words: words::ADAPTER, read: folders::adapter },
    Target { name: "embedding", words: words::EMBEDDING, read: folders::embedding },
    Target { name: "training", words: words::TRAINING, read: texts::training },
    Target { name: "http", words: words::HTTP, read: requests::http },
    Target { name: "grammar", words: words::GRAMMAR, read: requests::grammar },
    Target { name: "infill", words: words::INFILL, read: texts::infill },
];

fn safetensors(bytes: &[u8]) -> Result<()> {
    as_file(".safetensors", bytes, |path| Ok(read_safetensors_with_metadata(path).map(drop)?))
}

fn config(bytes: &[u8]) -> Result<()> {
    drop(gemma_model::config_keys::unknown(bytes));
    let read = [
        gemma::Decoder::config_from_json(bytes).map(drop),
        recurrentgemma::Griffin::config_from_json(bytes).map(drop),
        paligemma::VisionLanguageModel::config_from_json(bytes).map(drop),
        gemma3::Gemma3Network::config_from_json(bytes).map(drop),
    ];
    read.into_iter().try_for_each(|result| Ok(result?))
}

fn gguf(bytes: &[u8]) -> Result<()> {
    as_file(".gguf", bytes, |path| {
        let checkpoint = Checkpoint::open(path)?;
        if let Some(model) = checkpoint.file("tokenizer.model")? {
            drop(Tokenizer::from_sentencepiece(&model, Family::Gemma));
        }
        if let Some(file) = checkpoint.file("config.json")? {
            drop(config(&file));
        }
        folders::use_model(path, &folders::offline())
    })
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for specials in [false, true] {
        let ids = tokenizer.encode_with("a  b\n\n<bos>é<b>", EncodeOptions { bos: true, specials });
        drop(tokenizer.decode(&ids));
    }
    drop(tokenizer.to_json());
}

fn tokenizer_json(bytes: &[u8]) -> Result<()> {
    drop(ChatTemplate::from_tokenizer_config(bytes));
    use_tokenizer(&Tokenizer::from_json(bytes, Family::PaliGemma)?);
    Ok(())
}

fn tokenizer_model(bytes: &[u8]) -> Result<()> {
    use_tokenizer(&Tokenizer::from_sentencepiece(bytes, Family::CodeGemma)?);
    Ok(())
}

fn chat_template(bytes: &[u8]) -> Result<()> {
    let turns = [Turn::system("s"), Turn::user("Hello, <end_of_turn>"), Turn::model(" b "), Turn::user("c\n")];
    let rendered = ChatTemplate::from_jinja(&String::from_utf8_lossy(bytes)).render(&turns, true);
    if let Err(error) = &rendered {
        assert!(!error.to_string().contains("a fault of its own"), "the interpreter panicked");
    }
    Ok(rendered.map(drop)?)
}

fn messages(bytes: &[u8]) -> Result<()> {
    let json: serde_json::Value = serde_json::from_slice(bytes)?;
    let list = json.as_array().cloned().unwrap_or(vec![json]);
    let turns: Vec<Turn> = list.iter().filter_map(|message| Turn::from_json(message).ok()).collect();
    let template =
        "{{ messages | tojson }}{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{% endfor %}";
    ChatTemplate::from_jinja(template).render(&turns, true)?;
    ChatTemplate::builtin().render(&turns, true)?;
    Ok(())
}

fn model_output(bytes: &[u8]) -> Result<()> {
    drop(ModelOutput::parse(&String::from_utf8_lossy(bytes)));
    Ok(())
}

fn image(bytes: &[u8]) -> Result<()> {
    drop(paligemma::Image::decode(bytes, "fuzzed")?.pixels(28));
    Ok(())
}

fn language_server(bytes: &[u8]) -> Result<()> {
    let input = BufReader::new(std::io::Cursor::new(bytes.to_vec()));
    let load = |_: lsp::OnLoad<'_>| Err("no model".to_owned());
    Ok(lsp::serve(input, std::io::sink(), load, &lsp::Options::default()).map(drop)?)
}

fn state(bytes: &[u8]) -> Result<()> {
    static MODEL: OnceLock<Option<Gemma>> = OnceLock::new();
    let model = MODEL.get_or_init(|| gemma::demo(&Backend::NdArray.device().ok()?).ok());
    let network = model.as_ref().context("the demo opens")?.network();
    as_file(".state", bytes, |path| Ok(gemma_model::load_state(network, path).map(drop)?))
}

/// Runs the target of a name, for cargo-fuzz.
///
/// # Panics
/// When there is no such target, or as [`Target::run`].
pub fn run(name: &str, bytes: &[u8]) {
    TARGETS.iter().find(|target| target.name == name).expect("cargo-fuzz targets are in the table").run(bytes);
}
