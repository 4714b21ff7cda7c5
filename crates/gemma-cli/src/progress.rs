//! Progress bars on standard error, seen only when it is a terminal.

use std::fmt::Write;

use gemma_weights::Download;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// A bar that counts bytes, for loading and downloading.
pub(crate) fn bytes(what: &'static str) -> ProgressBar {
    bar(what, "{decimal_bytes}/{decimal_total_bytes} ({decimal_bytes_per_sec})")
}

/// A bar that counts tokens, for reading and scoring.
pub(crate) fn tokens(what: &'static str, total: usize) -> ProgressBar {
    let bar = bar(what, "{pos}/{len} tokens ({rate})");
    bar.set_length(total as u64);
    bar
}

/// A bar that counts images.
pub(crate) fn images(total: usize) -> ProgressBar {
    let bar = bar("encoding", "{pos}/{len} images ({rate}, {eta} left)");
    bar.set_length(total as u64);
    bar
}

/// A bar that counts things of a kind: texts, requests, tasks.
pub(crate) fn count(what: &'static str, things: &str, total: usize) -> ProgressBar {
    let bar = bar(what, &format!("{{pos}}/{{len}} {things} (left: {{eta}})"));
    bar.set_length(total as u64);
    bar
}

/// A bar that counts the steps of a training, of which some are done already.
pub(crate) fn steps(total: usize, done: usize) -> ProgressBar {
    let bar = bar("training", "step {pos}/{len}  {msg}  (left: {eta})");
    bar.set_length(total as u64);
    bar.set_position(done as u64);
    bar.reset_eta();
    bar
}

/// Shows how far a download is.
pub(crate) fn show(bar: &ProgressBar, download: Download<'_>) {
    set(bar, download.all_done, download.all_total);
}

/// Shows how much of how much is done.
pub(crate) fn set(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}

fn bar(what: &'static str, numbers: &str) -> ProgressBar {
    let template = format!("{{prefix:>9}} [{{bar:30}}] {numbers}");
    let style = ProgressStyle::with_template(&template).expect("the template is ours and well formed");
    let style = style.with_key("rate", |state: &ProgressState, text: &mut dyn Write| {
        // a rate that cannot be written has no reader
        let _ = write!(text, "{}", rate(state.per_sec()));
    });
    ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(what)
}

/// A rate as people read it: three digits or so.
fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 100.0 => format!("{rate:.0}/s"),
        rate if rate >= 10.0 => format!("{rate:.1}/s"),
        rate => format!("{rate:.2}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_digits() {
        assert_eq!([1234.567, 99.94, 9.876, 0.1234].map(rate), ["1235/s", "99.9/s", "9.88/s", "0.12/s"]);
    }
}
