//! Ctrl-C, and being asked to terminate (SIGTERM, SIGHUP), which is the same: ends the program while it loads, ends the
//! answer while it writes.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};

/// Exit code of a program that was interrupted: 128 + SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// How a verb that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It did all it was asked to.
    Done,
    /// Ctrl-C cut it short.
    Interrupted,
}

/// The flag of whoever wants to be told instead of ended.
static WATCHER: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

/// Takes Ctrl-C over from the system.
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if !tell() {
            std::process::exit(EXIT_CODE.into());
        }
    })
    .context("cannot take over Ctrl-C")
}

/// Tells whoever watches. `false` if nobody does, or the flag is set already.
fn tell() -> bool {
    watcher().as_ref().is_some_and(|flag| !flag.swap(true, Ordering::Relaxed))
}

fn watcher() -> std::sync::MutexGuard<'static, Option<Arc<AtomicBool>>> {
    WATCHER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this lives, the first Ctrl-C is only remembered; a second one ends the program.
pub(crate) struct Watch(Arc<AtomicBool>);

/// Asks that Ctrl-C be remembered instead of ending the program.
pub(crate) fn watch() -> Watch {
    let flag = Arc::new(AtomicBool::new(false));
    *watcher() = Some(Arc::clone(&flag));
    Watch(flag)
}

/// Does something that may wait without end for another program, such as reading a pipe: the first Ctrl-C ends the program
/// meanwhile, whoever watches.
pub(crate) fn while_waiting<T>(work: impl FnOnce() -> T) -> T {
    let watching = watcher().take();
    let done = work();
    *watcher() = watching;
    done
}

impl Watch {
    /// Whether Ctrl-C was pressed since this began.
    pub(crate) fn pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag itself, for loops that look at one.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *watcher() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_press_is_remembered_and_the_second_is_not() {
        assert!(!tell(), "nobody watches yet");
        let first = watch();
        assert!(tell() && first.pressed() && first.flag().load(Ordering::Relaxed));
        assert!(!tell(), "the second press ends the program");
        let second = watch();
        assert!(!while_waiting(tell) && !second.pressed(), "a press while waiting ends the program");
        assert!(tell() && second.pressed());
        drop(second);
        drop(first);
        assert!(!tell(), "nobody watches any more");
        assert!(!watch().pressed(), "an old press is forgotten");
    }
}
