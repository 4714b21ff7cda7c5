//! The targets, their seeds and the words that mean something to them.

use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gemma::Gemma;
use gemma_backend::Backend;
use gemma_model::Network;
use gemma_serve::lsp;
use gemma_tokenizer::{ChatTemplate, EncodeOptions, Family, ModelOutput, Tokenizer, Turn};
use gemma_weights::{Checkpoint, read_safetensors_with_metadata};

/// Something that reads what strangers write.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Words that mean something to it.
    pub words: &'static [&'static str],
    /// Reads an input; errors are as good as anything.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "safetensors", words: JSON, run: safetensors },
    Target { name: "config", words: JSON, run: config },
    Target { name: "gguf", words: GGUF, run: gguf },
    Target { name: "tokenizer_json", words: JSON, run: tokenizer_json },
    Target {
        name: "tokenizer_model",
        words: &["\n", "\x12", "\x1a", "<0x41>", "▁", "<unused0>"],
        run: tokenizer_model,
    },
    Target { name: "chat_template", words: JINJA, run: chat_template },
    Target { name: "messages", words: JSON, run: messages },
    Target { name: "model_output", words: CALLS, run: model_output },
    Target { name: "image", words: &["\u{0}", "IHDR", "IDAT", "JFIF", "Exif", "VP8L", "GIF89a"], run: image },
    Target { name: "lsp", words: LSP, run: language_server },
    Target { name: "state", words: JSON, run: state },
];

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "0",
    "\"shape\":",
    "\"dtype\":\"F32\"",
    "\"data_offsets\":",
    "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2}",
    "\\u0000",
    "\"vocab\":{",
    "\"merges\":",
    "\"hidden_size\":",
    "[[[[",
    "{\"a\":",
];
const GGUF: &[&str] = &[
    "GGUF",
    "general.architecture",
    "gemma2",
    "gemma3",
    "tokenizer.ggml.tokens",
    "blk.0.attn_q.weight",
    "general.alignment",
    "\u{8}\u{0}\u{0}\u{0}",
    "\u{9}\u{0}\u{0}\u{0}",
];
const JINJA: &[&str] = &[
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{#",
    "(",
    ")",
    "[",
    "]",
    "1+",
    "-",
    "not ",
    "|e",
    ".a",
    "[0]",
    "{% if 1 %}",
    "{% elif 0 %}",
    "{% else %}",
    "{% endif %}",
    "{% for i in range(99) %}",
    "{% endfor %}",
    "{% set ns.s = [ns.s, ns.s] %}",
    "{% set ns = namespace(s=1) %}",
    "{% set ns.s = ns %}",
    "{% macro m(x) %}",
    "{% endmacro %}",
    "{{ m(m) }}",
    " ~ ",
    " * 99999",
    " == ",
    " in ",
    "messages",
    "|tojson",
    "|join",
    "|sort",
    "|map('upper')",
    "|indent(9999)",
    "'%9999d' % 1",
    "loop.",
    " is ",
    "raise_exception(1)",
    "{% generation %}",
    "{% raw %}",
    "{% call m() %}",
    "{% break %}",
    "'é'",
    "[::-1]",
];
const CALLS: &[&str] = &[
    "<|tool_call>",
    "<tool_call|>",
    "call:f{",
    "}",
    "[",
    "<|\"|>",
    "<escape>",
    "<start_function_call>",
    "<|channel>thought\n",
    "<channel|>",
    ",",
    ":",
    "\"",
];
const LSP: &[&str] = &[
    "Content-Length: 2\r\n\r\n",
    "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":",
    "\"textDocument/didOpen\"",
    "\r\n",
    "\"uri\":",
    "\"textDocument/completion\"",
    "\"position\":{\"line\":0,\"character\":",
    "é",
    "🦀",
    "\"range\":{\"start\":",
];

/// The seeds of a target: the files in `fuzz/seeds/TARGET`, by name; an empty input where there are none.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut seeds: Vec<Vec<u8>> = files.iter().filter_map(|file| std::fs::read(file).ok()).collect();
    if seeds.is_empty() {
        seeds.push(Vec::new());
    }
    seeds
}

/// Gives the bytes to `read` as a file of that ending.
fn as_file(ending: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let Ok(mut file) = tempfile::Builder::new().suffix(ending).tempfile() else { return };
    if file.write_all(bytes).and_then(|()| file.flush()).is_ok() {
        read(file.path());
    }
}

fn safetensors(bytes: &[u8]) {
    as_file(".safetensors", bytes, |path| drop(read_safetensors_with_metadata(path)));
}

fn config(bytes: &[u8]) {
    drop(gemma::Decoder::config_from_json(bytes));
    drop(recurrentgemma::Griffin::config_from_json(bytes));
    drop(paligemma::VisionLanguageModel::config_from_json(bytes));
    drop(gemma3::Gemma3Network::config_from_json(bytes));
    drop(gemma_model::config_keys::unknown(bytes));
}

fn gguf(bytes: &[u8]) {
    as_file(".gguf", bytes, |path| {
        let Ok(checkpoint) = Checkpoint::open(path) else { return };
        if let Ok(Some(model)) = checkpoint.file("tokenizer.model") {
            drop(Tokenizer::from_sentencepiece(&model, Family::Gemma));
        }
        if let Ok(Some(file)) = checkpoint.file("config.json") {
            config(&file);
        }
    });
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for specials in [false, true] {
        let ids = tokenizer.encode_with("a  b\n\n<bos>é<b>", EncodeOptions { bos: true, specials });
        drop(tokenizer.decode(&ids));
    }
    drop(tokenizer.to_json());
}

fn tokenizer_json(bytes: &[u8]) {
    drop(Tokenizer::from_json(bytes, Family::PaliGemma).map(|tokenizer| use_tokenizer(&tokenizer)));
    drop(ChatTemplate::from_tokenizer_config(bytes));
}

fn tokenizer_model(bytes: &[u8]) {
    drop(Tokenizer::from_sentencepiece(bytes, Family::CodeGemma).map(|tokenizer| use_tokenizer(&tokenizer)));
}

fn chat_template(bytes: &[u8]) {
    let turns = [Turn::system("s"), Turn::user("Hello, <end_of_turn>"), Turn::model(" b "), Turn::user("c\n")];
    let rendered = ChatTemplate::from_jinja(&String::from_utf8_lossy(bytes)).render(&turns, true);
    if let Err(error) = rendered {
        let sentence = error.to_string();
        assert!(!sentence.contains("a fault of its own"), "the interpreter panicked");
        assert!(sentence.len() < 1000, "a long sentence: {sentence}");
    }
}

fn messages(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let list = json.as_array().cloned().unwrap_or(vec![json]);
    let turns: Vec<Turn> = list.iter().filter_map(|message| Turn::from_json(message).ok()).collect();
    let template =
        "{{ messages | tojson }}{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{% endfor %}";
    drop(ChatTemplate::from_jinja(template).render(&turns, true));
    drop(ChatTemplate::builtin().render(&turns, true));
}

fn model_output(bytes: &[u8]) {
    drop(ModelOutput::parse(&String::from_utf8_lossy(bytes)));
}

fn image(bytes: &[u8]) {
    if let Ok(image) = paligemma::Image::decode(bytes, "fuzzed") {
        drop(image.pixels(28));
    }
}

fn language_server(bytes: &[u8]) {
    let input = BufReader::new(std::io::Cursor::new(bytes.to_vec()));
    let load = |_: lsp::OnLoad<'_>| Err("no model".to_owned());
    drop(lsp::serve(input, std::io::sink(), load, &lsp::Options::default()));
}

fn state(bytes: &[u8]) {
    static MODEL: OnceLock<Option<Gemma>> = OnceLock::new();
    let model = MODEL.get_or_init(|| gemma::demo(&Backend::NdArray.device().ok()?).ok());
    let Some(model) = model else { return };
    as_file(".state", bytes, |path| drop(gemma_model::load_state(model.network(), path)));
}

/// Runs the target of a name, for cargo-fuzz.
///
/// # Panics
/// When there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("cargo-fuzz targets are in the table");
    (target.run)(bytes);
}
