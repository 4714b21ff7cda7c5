//! The last net: a panic below becomes an ordinary error that asks for a report.

use std::{
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::{Arc, Mutex},
};

use anyhow::{Result, anyhow};

/// What the first panic said, and where; later ones are its consequences.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Runs the program; a panic in it, on any thread, is an error with one line of text.
///
/// With `RUST_BACKTRACE` set, the usual report is printed as well.
pub(crate) fn caught<T>(program: impl FnOnce() -> Result<T>) -> Result<T> {
    let usual = Arc::new(panic::take_hook());
    let wants_trace = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let shown = Arc::clone(&usual);
    panic::set_hook(Box::new(move |info| {
        remember(info);
        if wants_trace {
            shown(info);
        }
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(program)).unwrap_or_else(|_| Err(report()));
    panic::set_hook(Box::new(move |info| usual(info)));
    result
}

fn remember(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
    if let Ok(mut first) = FIRST.lock() {
        first.get_or_insert(format!("{message}{}", place.unwrap_or_default()));
    }
}

fn report() -> anyhow::Error {
    let what = FIRST.lock().ok().and_then(|mut first| first.take()).unwrap_or_else(|| "no message".into());
    anyhow!("internal error: {what}; please report it at {}/issues", env!("CARGO_PKG_REPOSITORY"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_any_thread_becomes_one_error() {
        let error = caught(|| {
            let thread = std::thread::spawn(|| panic!("the first"));
            thread.join().map_err(|_| ()).expect("the second");
            Ok(())
        });
        let text = error.expect_err("it panicked").to_string();
        assert!(text.contains("the first") && text.contains("panics.rs") && text.contains("please report"), "{text}");
        assert_eq!(caught(|| Ok(7)).ok(), Some(7));
    }
}
