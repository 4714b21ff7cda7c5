//! The C library `gemma_c`: open a model, generate, chat and tokenize, as llama.cpp's C interface does in more steps.
//!
//! `include/gemma.h` is the interface and its documentation; this crate is what stands behind it. A function of the header
//! has the same name here. What comes in is checked in `border`: null pointers, texts that are not UTF-8, panics. The
//! rest is safe code over [`gemma_auto`].
//!
//! The crate may contain `unsafe`, because pointers of C can be read in no other way. Each block relies on what the header
//! asks of the caller.

#![warn(missing_docs, unreachable_pub, clippy::undocumented_unsafe_blocks)]
#![expect(non_camel_case_types, reason = "types are called as in the header")]

mod border;
mod model;

use std::ffi::{c_char, c_int, c_void};

use border::{Failure, guarded, slice, text};

#[global_allocator]
static ALLOCATOR: gemma_kernels::LargeBlocks = gemma_kernels::LargeBlocks::new();

/// The text is complete.
pub const GEMMA_OK: c_int = 0;
/// The callback ended the text.
pub const GEMMA_STOPPED: c_int = 1;
/// It failed.
pub const GEMMA_ERROR: c_int = -1;

/// An opened model.
pub struct gemma_model(gemma_auto::AutoModel);

/// How a model is opened.
#[repr(C)]
pub struct gemma_load_options {
    precision: *const c_char,
    backend: *const c_char,
    adapter: *const c_char,
    threads: usize,
    offline: bool,
}

/// How text is generated.
#[repr(C)]
pub struct gemma_generate_options {
    max_tokens: usize,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    has_seed: bool,
    seed: u64,
    ignore_eos: bool,
    stops: *const *const c_char,
    stop_count: usize,
}

/// A message of a conversation.
#[repr(C)]
pub struct gemma_message {
    role: *const c_char,
    content: *const c_char,
}

/// Takes the next piece of a text; a result other than 0 ends it.
pub type gemma_on_text = Option<unsafe extern "C" fn(text: *const c_char, bytes: usize, user: *mut c_void) -> c_int>;

/// The version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn gemma_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The last failure on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn gemma_last_error() -> *const c_char {
    border::last_error()
}

/// Opens a model.
///
/// # Safety
/// `name` is null or a text; `options` is null or options with texts or nulls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemma_load(name: *const c_char, options: *const gemma_load_options) -> *mut gemma_model {
    guarded(std::ptr::null_mut(), || {
        // SAFETY: the caller gives null or a text.
        let name = unsafe { text("name", name) }?;
        let mut given = model::Loading { name, ..model::Loading::default() };
        // SAFETY: the caller gives null or options.
        if let Some(options) = unsafe { options.as_ref() } {
            // SAFETY: the caller gives texts or nulls.
            given.precision = unsafe { text("precision", options.precision) }?;
            // SAFETY: as above.
            given.backend = unsafe { text("backend", options.backend) }?;
            // SAFETY: as above.
            given.adapter = unsafe { text("adapter", options.adapter) }?;
            (given.threads, given.offline) = (options.threads, options.offline);
        }
        Ok(Box::into_raw(Box::new(gemma_model(model::load(&given)?))))
    })
}

/// Closes a model.
///
/// # Safety
/// `model` is null or came from [`gemma_load`], is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemma_free(model: *mut gemma_model) {
    guarded((), || {
        if !model.is_null() {
            // SAFETY: the pointer came from `Box::into_raw` in `gemma_load`, and the caller gives it back once.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// The library's defaults.
#[unsafe(no_mangle)]
pub extern "C" fn gemma_default_generate_options() -> gemma_generate_options {
    let defaults = gemma_auto::GenerateOptions::default();
    gemma_generate_options {
        max_tokens: defaults.max_tokens,
        temperature: defaults.temperature,
        top_k: defaults.top_k.unwrap_or(0),
        top_p: defaults.top_p.unwrap_or(1.0),
        has_seed: defaults.seed.is_some(),
        seed: defaults.seed.unwrap_or(0),
        ignore_eos: defaults.ignore_eos,
        stops: std::ptr::null(),
        stop_count: 0,
    }
}

/// Continues a prompt.
///
/// # Safety
/// `model` is null or an opened model, `prompt` null or a text, `options` null or options with `stop_count` texts, and
/// `on_text` null or a function that may be called with `user`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemma_generate(
    model: *const gemma_model,
    prompt: *const c_char,
    options: *const gemma_generate_options,
    on_text: gemma_on_text,
    user: *mut c_void,
) -> c_int {
    guarded(GEMMA_ERROR, || {
        // SAFETY: the caller gives null or an opened model.
        let model = unsafe { model.as_ref() }.ok_or(Failure::Null("model"))?;
        // SAFETY: the caller gives null or a text.
        let prompt = unsafe { text("prompt", prompt) }?.ok_or(Failure::Null("prompt"))?;
        // SAFETY: the caller gives null or options.
        let options = unsafe { generate_options(options) }?;
        // SAFETY: the caller gives a function for `user`.
        let give = unsafe { callback(on_text, user) }?;
        model::generate(&model.0, prompt, &options, give)
    })
}

/// Answers the last message of a conversation.
///
/// # Safety
/// As [`gemma_generate`]; `messages` points at `count` messages with texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemma_chat(
    model: *const gemma_model,
    messages: *const gemma_message,
    count: usize,
    options: *const gemma_generate_options,
    on_text: gemma_on_text,
    user: *mut c_void,
) -> c_int {
    guarded(GEMMA_ERROR, || {
        // SAFETY: the caller gives null or an opened model.
        let model = unsafe { model.as_ref() }.ok_or(Failure::Null("model"))?;
        // SAFETY: the caller gives `count` messages.
        let messages = unsafe { slice("messages", messages, count) }?;
        let mut turns = Vec::with_capacity(count);
        for message in messages {
            // SAFETY: the caller gives nulls or texts.
            let role = unsafe { text("role", message.role) }?.ok_or(Failure::Null("role"))?;
            // SAFETY: as above.
            let content = unsafe { text("content", message.content) }?.ok_or(Failure::Null("content"))?;
            turns.push((role, content));
        }
        // SAFETY: the caller gives null or options.
        let options = unsafe { generate_options(options) }?;
        // SAFETY: the caller gives a function for `user`.
        let give = unsafe { callback(on_text, user) }?;
        model::chat(&model.0, &turns, &options, give)
    })
}

/// The token ids of a text.
///
/// # Safety
/// `model` is null or an opened model, `source` null or a text, and `tokens` has room for `capacity` ids.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemma_tokenize(
    model: *const gemma_model,
    source: *const c_char,
    bos: bool,
    tokens: *mut u32,
    capacity: usize,
) -> isize {
    guarded(GEMMA_ERROR as isize, || {
        // SAFETY: the caller gives null or an opened model.
        let model = unsafe { model.as_ref() }.ok_or(Failure::Null("model"))?;
        // SAFETY: the caller gives null or a text.
        let source = unsafe { text("text", source) }?.ok_or(Failure::Null("text"))?;
        let found = model::tokenize(&model.0, source, bos)?;
        // SAFETY: the caller gives room for `capacity` ids.
        unsafe { border::copy("tokens", &found[..found.len().min(capacity)], tokens) }?;
        Ok(found.len() as isize)
    })
}

/// The text of token ids.
///
/// # Safety
/// `model` is null or an opened model, `tokens` points at `count` ids, and `target` has room for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemma_detokenize(
    model: *const gemma_model,
    tokens: *const u32,
    count: usize,
    target: *mut c_char,
    capacity: usize,
) -> isize {
    guarded(GEMMA_ERROR as isize, || {
        // SAFETY: the caller gives null or an opened model.
        let model = unsafe { model.as_ref() }.ok_or(Failure::Null("model"))?;
        // SAFETY: the caller gives `count` ids.
        let tokens = unsafe { slice("tokens", tokens, count) }?;
        let found = model::detokenize(&model.0, tokens)?;
        if let Some(room) = capacity.checked_sub(1) {
            let mut bytes = found.as_bytes()[..found.floor_char_boundary(room)].to_vec();
            bytes.push(0);
            // SAFETY: the caller gives room for `capacity` bytes, and these are `room + 1` at most.
            unsafe { border::copy("text", &bytes, target.cast::<u8>()) }?;
        }
        Ok(found.len() as isize)
    })
}

/// Options of the library.
///
/// # Safety
/// `options` is null or options with `stop_count` texts.
unsafe fn generate_options(options: *const gemma_generate_options) -> Result<gemma_auto::GenerateOptions, Failure> {
    // SAFETY: the caller gives null or options.
    let Some(options) = (unsafe { options.as_ref() }) else { return Ok(gemma_auto::GenerateOptions::default()) };
    // SAFETY: the caller gives `stop_count` texts.
    let stops = unsafe { slice("stops", options.stops, options.stop_count) }?;
    let mut stop = Vec::with_capacity(stops.len());
    for pointer in stops {
        // SAFETY: as above.
        stop.push(unsafe { text("stops", *pointer) }?.ok_or(Failure::Null("stops"))?.to_owned());
    }
    Ok(gemma_auto::GenerateOptions {
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        top_k: (options.top_k > 0).then_some(options.top_k),
        top_p: (options.top_p != 1.0).then_some(options.top_p),
        seed: options.has_seed.then_some(options.seed),
        ignore_eos: options.ignore_eos,
        stop,
        ..gemma_auto::GenerateOptions::default()
    })
}

/// The callback as a function that takes texts; `false` ends them.
///
/// # Safety
/// `on_text` may be called with `user`.
unsafe fn callback(on_text: gemma_on_text, user: *mut c_void) -> Result<impl FnMut(&str) -> bool, Failure> {
    let on_text = on_text.ok_or(Failure::Null("on_text"))?;
    Ok(move |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        // SAFETY: the text ends with a zero byte and outlives the call, and the caller allows calls with `user`.
        unsafe { on_text(bytes.as_ptr().cast(), text.len(), user) == 0 }
    })
}
