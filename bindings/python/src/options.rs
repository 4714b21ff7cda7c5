//! Keyword arguments as options of the library, whose own defaults count.

use std::path::PathBuf;

use codegemma::{InfillOptions, InfillStop};
use gemma_auto::{GenerateOptions, LoadOptions, Precision, TokenId, Turn};
use gemma_tokenizer::Role;
use gemma_weights::Adapter;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use crate::failure::Failure;

/// The keyword arguments of every verb that generates.
const SAMPLING: &str = "max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, \
                        frequency_penalty, seed, stop, ignore_eos";

/// Options of a generation: `base`, changed by keyword arguments.
///
/// # Errors
/// `TypeError` for an unknown name or a value of another type, `ValueError` for one outside its range.
pub(crate) fn sampling(base: GenerateOptions, given: Option<&Bound<'_, PyDict>>) -> PyResult<GenerateOptions> {
    let mut options = base;
    for (name, value) in given.into_iter().flatten() {
        let name: String = name.extract()?;
        match name.as_str() {
            "max_tokens" => options.max_tokens = get(&name, &value)?,
            "temperature" => options.temperature = get(&name, &value)?,
            "top_k" => options.top_k = get::<Option<usize>>(&name, &value)?.filter(|count| *count > 0),
            "top_p" => options.top_p = get::<Option<f32>>(&name, &value)?.filter(|part| *part != 1.0),
            "min_p" => options.min_p = get(&name, &value)?,
            "repetition_penalty" => options.repetition_penalty = get(&name, &value)?,
            "presence_penalty" => options.presence_penalty = get(&name, &value)?,
            "frequency_penalty" => options.frequency_penalty = get(&name, &value)?,
            "seed" => options.seed = get(&name, &value)?,
            "stop" => options.stop = texts(&name, &value)?,
            "ignore_eos" => options.ignore_eos = get(&name, &value)?,
            _ => return Err(PyTypeError::new_err(format!("there is no argument {name}; the options are {SAMPLING}"))),
        }
    }
    options.check().map_err(Failure::from)?;
    Ok(options)
}

/// Options of an infilling. Where its text ends is up to `stop_rule`.
///
/// # Errors
/// As [`sampling`], and `ValueError` for another rule or a stop text.
pub(crate) fn infilling(given: Option<&Bound<'_, PyDict>>, stop_rule: &str) -> PyResult<InfillOptions> {
    let base = InfillOptions::default();
    let generate = sampling(base.generate.clone(), given)?;
    if !generate.stop.is_empty() {
        return Err(PyValueError::new_err("infill ends by its stop_rule; leave stop out"));
    }
    let stop_rule = match stop_rule {
        "free" => InfillStop::Free,
        "line" => InfillStop::Line,
        "block" => InfillStop::Block,
        other => {
            return Err(PyValueError::new_err(format!(
                "stop_rule is {other:?}; choose \"free\", \"line\" or \"block\""
            )));
        }
    };
    Ok(InfillOptions { generate, stop_rule, ..base })
}

/// How a model is opened: those of the arguments that are the library's options.
///
/// # Errors
/// When an adapter cannot be opened, or a value is not possible.
pub(crate) fn loading(
    precision: Option<String>,
    adapter: Option<&Bound<'_, PyAny>>,
    mmproj: Option<PathBuf>,
    offline: bool,
) -> PyResult<LoadOptions> {
    let precision = precision.map(|name| name.parse::<Precision>()).transpose().map_err(Failure::from)?;
    let adapters = adapter.map(adapters).transpose()?.unwrap_or_default();
    Ok(LoadOptions { precision, adapters, image_encoder: mmproj, offline, ..LoadOptions::default() })
}

/// One adapter or a list of them; each a folder, or a pair of a folder and how much of it is added.
fn adapters(given: &Bound<'_, PyAny>) -> PyResult<Vec<Adapter>> {
    let one = |given: &Bound<'_, PyAny>| -> PyResult<Adapter> {
        let (folder, strength) = match given.cast::<PyTuple>() {
            Ok(pair) => pair.extract::<(PathBuf, f32)>().map_err(|_| wrong_adapter())?,
            Err(_) => (given.extract::<PathBuf>().map_err(|_| wrong_adapter())?, 1.0),
        };
        if !strength.is_finite() {
            return Err(PyValueError::new_err("the strength of an adapter must be a finite number"));
        }
        Ok(Adapter::open(&folder).map_err(Failure::from)?.with_strength(strength))
    };
    match given.cast::<PyList>() {
        Ok(list) => list.iter().map(|given| one(&given)).collect(),
        Err(_) => Ok(vec![one(given)?]),
    }
}

fn wrong_adapter() -> PyErr {
    PyTypeError::new_err("adapter must be a folder, a pair of a folder and a strength, or a list of these")
}

/// Sets how many threads compute. There is one pool of threads in a process, so only the first call can choose.
///
/// # Errors
/// When the number is not possible, or the pool has another one already.
pub(crate) fn set_threads(threads: i64) -> PyResult<()> {
    let count = usize::try_from(threads)
        .map_err(|_| PyValueError::new_err(format!("threads is {threads}; choose a number from 1 up")))?;
    Ok(gemma_auto::set_threads(count).map_err(Failure::from)?)
}

/// The messages of a conversation.
///
/// # Errors
/// `TypeError` for anything but a list of dicts with two texts, `ValueError` for an unknown role.
pub(crate) fn turns(messages: &Bound<'_, PyAny>) -> PyResult<Vec<Turn>> {
    let wrong = || PyTypeError::new_err("messages must be a list of dicts with the keys \"role\" and \"content\"");
    if messages.is_instance_of::<PyString>() || messages.is_instance_of::<PyDict>() {
        return Err(wrong());
    }
    let turn = |message: PyResult<Bound<'_, PyAny>>| -> PyResult<Turn> {
        let message = message?;
        let message = message.cast::<PyDict>().map_err(|_| wrong())?;
        let text = |key: &str| -> PyResult<String> {
            message.get_item(key)?.ok_or_else(wrong)?.extract().map_err(|_| wrong())
        };
        let role = text("role")?.parse::<Role>().map_err(Failure::from)?;
        Ok(Turn::new(role, text("content")?))
    };
    messages.try_iter().map_err(|_| wrong())?.map(turn).collect()
}

/// One text, or several.
///
/// # Errors
/// `TypeError` for anything else.
pub(crate) fn texts(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    if let Ok(text) = value.extract::<String>() {
        return Ok(vec![text]);
    }
    if value.is_none() {
        return Ok(Vec::new());
    }
    value.extract().map_err(|_| PyTypeError::new_err(format!("{name} must be a str or a list of str")))
}

/// Token ids: a list, or an array of numpy or torch.
///
/// # Errors
/// `TypeError` for anything else, `ValueError` for numbers that are no token ids.
pub(crate) fn tokens(value: &Bound<'_, PyAny>) -> PyResult<Vec<TokenId>> {
    if value.hasattr("tolist")? {
        return get("tokens", &value.call_method0("tolist")?);
    }
    get("tokens", value)
}

/// The value of an argument, whose name is put into the error.
fn get<'py, T: FromPyObjectOwned<'py>>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<T> {
    value.extract::<T>().map_err(|error| {
        let error: PyErr = error.into();
        let text = format!("{name}: {}", error.value(value.py()));
        // a number that does not fit is a wrong value, not a wrong type
        if error.is_instance_of::<PyTypeError>(value.py()) {
            PyTypeError::new_err(text)
        } else {
            PyValueError::new_err(text)
        }
    })
}
