//! What crosses the border: texts and arrays of C as those of Rust, failures and panics as a code and a sentence.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a call failed.
pub(crate) enum Failure {
    /// A pointer is null that must not be.
    Null(&'static str),
    /// A text is not UTF-8.
    NotUtf8(&'static str),
    /// What the library says.
    Library(gemma_auto::Error),
}

impl<E: Into<gemma_auto::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Library(error.into())
    }
}

impl Failure {
    fn sentence(&self) -> String {
        match self {
            Self::Null(name) => format!("{name} is NULL; give a value"),
            Self::NotUtf8(name) => format!("{name} is not UTF-8; encode it as UTF-8"),
            Self::Library(error) => error.to_string(),
        }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// The last failure on this thread.
pub(crate) fn last_error() -> *const c_char {
    LAST.with_borrow(|last| last.as_ptr())
}

/// Runs a call; a failure or a panic becomes `failed` and is remembered.
pub(crate) fn guarded<T>(failed: T, call: impl FnOnce() -> Result<T, Failure>) -> T {
    let result = catch_unwind(AssertUnwindSafe(call));
    let sentence = match result {
        Ok(Ok(value)) => return value,
        Ok(Err(failure)) => failure.sentence(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            format!("internal error: {text}; please report it at {}/issues", env!("CARGO_PKG_REPOSITORY"))
        }
    };
    let sentence = CString::new(sentence.replace('\0', " ")).unwrap_or_default();
    LAST.with_borrow_mut(|last| *last = sentence);
    failed
}

/// A text; `None` for null.
///
/// # Safety
/// `pointer` is null or points at bytes that end with a zero and stay as they are for `'a`.
pub(crate) unsafe fn text<'a>(name: &'static str, pointer: *const c_char) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: it is not null, and the caller promises the rest.
    let bytes = unsafe { CStr::from_ptr(pointer) };
    bytes.to_str().map(Some).map_err(|_| Failure::NotUtf8(name))
}

/// An array of `count` values; null only where there are none.
///
/// # Safety
/// `pointer` is null or points at `count` values that stay as they are for `'a`.
pub(crate) unsafe fn slice<'a, T>(name: &'static str, pointer: *const T, count: usize) -> Result<&'a [T], Failure> {
    match (count, pointer.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(Failure::Null(name)),
        // SAFETY: it is not null, and the caller promises the rest.
        _ => Ok(unsafe { std::slice::from_raw_parts(pointer, count) }),
    }
}

/// Copies values to an array of C; null only where there are none.
///
/// # Safety
/// `target` is null or has room for the values.
pub(crate) unsafe fn copy<T: Copy>(name: &'static str, values: &[T], target: *mut T) -> Result<(), Failure> {
    if values.is_empty() {
        return Ok(());
    }
    if target.is_null() {
        return Err(Failure::Null(name));
    }
    // SAFETY: the target has room, and values of Rust do not overlap with an array of the caller.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len()) };
    Ok(())
}
