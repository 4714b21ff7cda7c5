//! A program that is measured, until it ends or its time is over.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Runs a program that prints a JSON object, and gives it and how many seconds the program took. `meanwhile` is called a hundred
/// times a second with the number of its process.
///
/// # Errors
/// It could not be started, failed (with its last line on stderr), took longer than `limit`, or printed something else.
pub(super) fn json(
    command: &mut Command,
    limit: Option<Duration>,
    mut meanwhile: impl FnMut(u32),
) -> Result<(Value, f64)> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let begin = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("{name} could not be started"))?;
    let printed = text(child.stdout.take().context("its output was asked for")?);
    let complaint = text(child.stderr.take().context("its errors were asked for")?);
    let status = loop {
        meanwhile(child.id());
        if let Some(status) = child.try_wait().with_context(|| format!("{name} was lost"))? {
            break Some(status);
        }
        if limit.is_some_and(|limit| begin.elapsed() > limit) {
            child.kill().with_context(|| format!("{name} cannot be ended"))?;
            child.wait().with_context(|| format!("{name} was lost"))?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let seconds = begin.elapsed().as_secs_f64();
    let [printed, complaint] = [printed, complaint].map(|reader| reader.join().unwrap_or_default());
    let Some(status) = status else { bail!("cut after {:.0} s", limit.unwrap_or_default().as_secs_f64()) };
    if !status.success() {
        let last = complaint.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        bail!("{name} ended with {status}: {last}");
    }
    let value = serde_json::from_str(&printed).with_context(|| format!("{name} printed no JSON: {printed:?}"))?;
    Ok((value, seconds))
}

/// All that comes from a pipe, which is read while the program runs, so that it never waits.
fn text(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // what came before an error is what there is
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
