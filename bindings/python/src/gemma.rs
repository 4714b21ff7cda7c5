//! The classes `Gemma` and `TextStream`: arguments in, Python values out.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use codegemma::Infill;
use embeddinggemma::EmbedOptions;
use gemma_auto::{Backend, GenerateOptions, TokenId};
use gemma_tokenizer::EncodeOptions;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict, PyTuple};

use crate::failure::Failure;
use crate::image::Given;
use crate::opened::Opened;
use crate::options;
use crate::worker::{Pieces, run};

/// The most tokens of an answer about an image, unless `max_tokens` says otherwise.
const IMAGE_ANSWER: usize = 512;

/// A model of the Gemma family, ready to compute; `Gemma.load` opens one.
///
/// What a model can do depends on its family: `verbs` lists it. The other verbs raise ValueError.
#[pyclass(module = "gemma_burn", frozen)]
pub(crate) struct Gemma {
    model: Arc<Opened>,
}

#[pymethods]
impl Gemma {
    /// Opens a model: a folder in Hugging Face format, a GGUF file, or a hub id such as "google/gemma-2-2b-it", which is
    /// downloaded on first use. Without a name it is a tiny built-in model; "demo:codegemma", "demo:recurrentgemma" and
    /// "demo:paligemma" name those of the other families.
    ///
    /// precision: how weights are held ("f32", "bf16", "f16", "q8_0", "q4_0"); as in the file without it.
    /// threads: CPU threads of this process; all cores without it. Only the first call can choose.
    /// adapter: a LoRA adapter in PEFT's format, or a list; (folder, strength) adds so much of it.
    /// backend: "ndarray", or another one that the package was built with.
    /// mmproj: the image encoder beside a GGUF file of Gemma 3.
    /// offline: use only files that are on this machine.
    #[staticmethod]
    #[pyo3(signature = (model=None, *, precision=None, threads=None, adapter=None, backend=None, mmproj=None, offline=false))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn load(
        py: Python<'_>,
        model: Option<PathBuf>,
        precision: Option<String>,
        threads: Option<i64>,
        adapter: Option<&Bound<'_, PyAny>>,
        backend: Option<String>,
        mmproj: Option<PathBuf>,
        offline: bool,
    ) -> PyResult<Self> {
        let name = model.map(|name| {
            let text = name.to_str().map(str::to_owned);
            text.ok_or_else(|| PyValueError::new_err("the name of the model is not UTF-8"))
        });
        let name = name.transpose()?;
        let backend = backend.map(|name| name.parse::<Backend>()).transpose().map_err(Failure::from)?;
        let options = options::loading(precision, adapter, mmproj, offline)?;
        if let Some(threads) = threads {
            options::set_threads(threads)?;
        }
        let opened = run(py, move |_| Opened::load(name.as_deref(), &options, backend))?;
        Ok(Self { model: Arc::new(opened) })
    }

    /// The architecture: "Gemma", "CodeGemma", "RecurrentGemma", "PaliGemma", "Gemma3" or "EmbeddingGemma".
    #[getter]
    fn architecture(&self) -> String {
        self.model.architecture()
    }

    /// The names of the methods that this model has, by its family and its tokenizer.
    #[getter]
    fn verbs(&self) -> Vec<&'static str> {
        self.model.verbs()
    }

    /// The longest sequence in tokens, prompt and answer together; None where there is no limit.
    #[getter]
    fn context_length(&self) -> Option<usize> {
        self.model.context_length()
    }

    /// Number of tokens in the vocabulary: the columns of `logits`.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.model.vocab()
    }

    fn __repr__(&self) -> String {
        format!("<gemma_burn.Gemma {}: {}>", self.model.architecture(), self.model.verbs().join(", "))
    }

    /// Continues a text and returns the continuation.
    ///
    /// Options: max_tokens (256), temperature (1.0; 0 is greedy), top_k (64; None: all), top_p (0.95; None: all), min_p,
    /// repetition_penalty, presence_penalty, frequency_penalty, seed, stop (a text or a list), ignore_eos.
    #[pyo3(signature = (prompt, **options))]
    fn generate(&self, py: Python<'_>, prompt: String, options: Option<&Bound<'_, PyDict>>) -> PyResult<String> {
        collect(py, self.begin(prompt, options)?)
    }

    /// Continues a text and returns an iterator of pieces of the continuation, as they are generated. Options are those of
    /// `generate`.
    #[pyo3(signature = (prompt, **options))]
    fn stream(&self, prompt: String, options: Option<&Bound<'_, PyDict>>) -> PyResult<TextStream> {
        Ok(TextStream::new(self.begin(prompt, options)?))
    }

    /// Answers the last of a list of messages, each a dict with "role" ("user", "assistant" or "system") and "content".
    /// Options are those of `generate`.
    #[pyo3(signature = (messages, **options))]
    fn chat(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        collect(py, self.begin_chat(messages, options)?)
    }

    /// `chat` as an iterator of pieces of the answer.
    #[pyo3(signature = (messages, **options))]
    fn stream_chat(&self, messages: &Bound<'_, PyAny>, options: Option<&Bound<'_, PyDict>>) -> PyResult<TextStream> {
        Ok(TextStream::new(self.begin_chat(messages, options)?))
    }

    /// Fills the hole between two pieces of code (fill-in-the-middle) and returns what belongs there.
    ///
    /// path: the name of the file, which tells the language. stop_rule: "free", "line" or "block". Options are those of
    /// `generate` but stop; greedy and 128 tokens at most without them.
    #[pyo3(signature = (prefix, suffix, *, path=None, stop_rule="free".to_owned(), **options))]
    fn infill(
        &self,
        py: Python<'_>,
        prefix: String,
        suffix: String,
        path: Option<String>,
        stop_rule: String,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        let options = options::infilling(options, &stop_rule)?;
        let hole = Infill { path, ..Infill::new(prefix, suffix) };
        let model = Arc::clone(&self.model);
        run(py, move |cancel| model.infill(&hole, options, cancel))
    }

    /// Describes an image in a sentence. An image is a path, the bytes of an image file, or a numpy array of uint8
    /// [height, width, 3]. Options are those of `generate`; greedy and 512 tokens at most without them.
    #[pyo3(signature = (image, *, language="en".to_owned(), **options))]
    fn caption(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        language: String,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        let (image, options) = (Given::of(image)?, about_image(options)?);
        let model = Arc::clone(&self.model);
        run(py, move |cancel| model.caption(&image.decode()?, &language, &options, cancel))
    }

    /// Answers a question about an image. Arguments are those of `caption`.
    #[pyo3(signature = (image, question, *, language="en".to_owned(), **options))]
    fn ask(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        question: String,
        language: String,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        let (image, options) = (Given::of(image)?, about_image(options)?);
        let model = Arc::clone(&self.model);
        run(py, move |cancel| model.ask(&image.decode()?, &question, &language, &options, cancel))
    }

    /// Finds things in an image; `what` is a word or a list of words. Returns a dict for each thing: "label", "box"
    /// (left, upper, right and lower edge, in pixels of the image) and "probability" (of the four edges, from 0 to 1).
    fn detect<'py>(
        &self,
        py: Python<'py>,
        image: &Bound<'py, PyAny>,
        what: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let things = options::texts("what", what)?;
        if things.iter().all(|thing| thing.trim().is_empty()) {
            return Err(PyValueError::new_err("what is empty; name at least one thing to look for"));
        }
        let (image, options) = (Given::of(image)?, about_image(None)?);
        let model = Arc::clone(&self.model);
        let found = run(py, move |cancel| model.detect(&image.decode()?, &things, &options, cancel))?;
        let dict = |detection: paligemma::Detection| -> PyResult<Bound<'py, PyDict>> {
            let dict = PyDict::new(py);
            let bounds = detection.bounds;
            dict.set_item("label", detection.label)?;
            dict.set_item("box", PyTuple::new(py, [bounds.x_min, bounds.y_min, bounds.x_max, bounds.y_max])?)?;
            dict.set_item("probability", detection.score)?;
            Ok(dict)
        };
        found.into_iter().map(dict).collect()
    }

    /// One vector of length 1 for each text: an array of float32 [texts, dimensions].
    ///
    /// task: what the vectors are for ("query", "document", "similarity", ...; "none" for the text as it is). title: that
    /// of the documents. dimensions: cut to so many values and normalised again.
    #[pyo3(signature = (texts, *, task="query".to_owned(), title=None, dimensions=None))]
    fn embed<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        task: String,
        title: Option<String>,
        dimensions: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let texts = options::texts("texts", texts)?;
        let model = Arc::clone(&self.model);
        let found =
            run(py, move |cancel| model.embed(&texts, &task, title.as_deref(), EmbedOptions { dimensions }, cancel))?;
        array(py, found.values(), found.dimensions())
    }

    /// The logits after each token: an array of float32 [tokens, vocab_size]. Row i is about the token that follows
    /// tokens[i]. The tokens are read as they are; `tokenize` puts <bos> in front.
    fn logits<'py>(&self, py: Python<'py>, tokens: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let tokens = options::tokens(tokens)?;
        let model = Arc::clone(&self.model);
        let values = run(py, move |cancel| model.logits(&tokens, cancel))?;
        array(py, &values, self.model.vocab())
    }

    /// The token ids of a text, with <bos> in front unless `bos` is False. With `specials`, texts such as <end_of_turn>
    /// become the control tokens they name.
    #[pyo3(signature = (text, *, bos=true, specials=false))]
    fn tokenize(&self, py: Python<'_>, text: String, bos: bool, specials: bool) -> PyResult<Vec<TokenId>> {
        Ok(py
            .detach(|| Ok::<_, Failure>(self.model.tokenizer()?.encode_with(&text, EncodeOptions { bos, specials })))?)
    }

    /// The text of token ids, without control tokens.
    fn detokenize(&self, tokens: &Bound<'_, PyAny>) -> PyResult<String> {
        Ok(self.model.tokenizer()?.decode(&options::tokens(tokens)?))
    }

    /// How many tokens `tokenize` makes of a text.
    #[pyo3(signature = (text, *, bos=true))]
    fn count_tokens(&self, py: Python<'_>, text: String, bos: bool) -> PyResult<usize> {
        Ok(self.tokenize(py, text, bos, false)?.len())
    }
}

impl Gemma {
    fn begin(&self, prompt: String, options: Option<&Bound<'_, PyDict>>) -> PyResult<Pieces<String>> {
        let options = options::sampling(GenerateOptions::default(), options)?;
        let model = Arc::clone(&self.model);
        Ok(Pieces::start(move |cancel, give| model.generate(&prompt, &options, cancel, give)))
    }

    fn begin_chat(&self, messages: &Bound<'_, PyAny>, options: Option<&Bound<'_, PyDict>>) -> PyResult<Pieces<String>> {
        self.model.check_chat()?;
        let turns = options::turns(messages)?;
        let options = options::sampling(GenerateOptions::default(), options)?;
        let model = Arc::clone(&self.model);
        Ok(Pieces::start(move |cancel, give| model.chat(&turns, &options, cancel, give)))
    }
}

/// An iterator of pieces of text as a model generates them. Dropped, it ends the generation.
#[pyclass(module = "gemma_burn", frozen)]
pub(crate) struct TextStream {
    /// `None` after the end.
    pieces: Mutex<Option<Pieces<String>>>,
}

impl TextStream {
    fn new(pieces: Pieces<String>) -> Self {
        Self { pieces: Mutex::new(Some(pieces)) }
    }
}

#[pymethods]
impl TextStream {
    fn __iter__(stream: PyRef<'_, Self>) -> PyRef<'_, Self> {
        stream
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        // taken out, so that no thread waits for a lock while it holds the interpreter's
        let Some(mut pieces) = self.lock().take() else { return Ok(None) };
        let piece = pieces.next(py)?;
        if piece.is_some() {
            *self.lock() = Some(pieces);
        }
        Ok(piece)
    }

    /// Ends the generation.
    fn close(&self) {
        self.lock().take();
    }
}

impl TextStream {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Pieces<String>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All pieces as one text.
fn collect(py: Python<'_>, mut pieces: Pieces<String>) -> PyResult<String> {
    let mut text = String::new();
    while let Some(piece) = pieces.next(py)? {
        text += &piece;
    }
    Ok(text)
}

/// Options of an answer about an image.
fn about_image(options: Option<&Bound<'_, PyDict>>) -> PyResult<GenerateOptions> {
    options::sampling(GenerateOptions::greedy(IMAGE_ANSWER), options)
}

/// Rows of `columns` values as an array of numpy, over a buffer that Python owns.
///
/// (The crate `numpy` would change features of the crates below Burn, and Burn would be compiled once more for this package.)
fn array<'py>(py: Python<'py>, values: &[f32], columns: usize) -> PyResult<Bound<'py, PyAny>> {
    let numpy = py.import("numpy")?;
    let rows = values.len().checked_div(columns).unwrap_or(0);
    if rows == 0 {
        return numpy.call_method1("zeros", ((0, columns), "float32"));
    }
    let buffer = PyByteArray::new_with(py, size_of_val(values), |buffer| {
        for (bytes, value) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_ne_bytes();
        }
        Ok(())
    })?;
    numpy.call_method1("frombuffer", (buffer, "float32"))?.call_method1("reshape", (rows, columns))
}
