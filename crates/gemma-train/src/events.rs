//! The metrics of a training as TensorBoard reads them: a file of records, each an `Event` in Protocol Buffers.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use gemma_weights::NewFile;

use crate::Error;
use crate::metric::Metric;

/// The content of an event file with these metrics. The events of more metrics begin with the same bytes.
pub(crate) fn content(metrics: &[Metric]) -> Vec<u8> {
    let begin = metrics.first().map_or(0, Metric::time);
    let mut file = Vec::new();
    put_record(&mut file, &event(begin, 0, |event| put_bytes(event, 3, b"brain.Event:2")));
    for metric in metrics {
        let (step, values) = match metric {
            Metric::Step { step, loss, learning_rate, gradient_norm, tokens, seconds, .. } => {
                let rate = *tokens as f64 / seconds.max(1e-9);
                let values = [
                    ("train/loss", *loss),
                    ("train/learning_rate", *learning_rate),
                    ("train/gradient_norm", *gradient_norm),
                    ("train/tokens_per_second", rate),
                ];
                (step + 1, values.map(|(tag, value)| (tag.to_owned(), value)).to_vec())
            }
            Metric::Evaluation { after, file, eval_loss, .. } => {
                (*after, vec![(format!("eval/loss/{file}"), *eval_loss)])
            }
        };
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = Vec::new();
            put_bytes(&mut one, 1, tag.as_bytes());
            one.push(2 << 3 | FIXED32);
            one.extend((value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &one);
        }
        put_record(&mut file, &event(metric.time(), step as u64, |event| put_bytes(event, 5, &summary)));
    }
    file
}

/// Makes `path` hold `content`. Where it holds the beginning of it, the rest is appended, so that a program that follows the
/// file sees what is new.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn keep(path: &Path, content: &[u8]) -> Result<(), Error> {
    let failed = |cause| gemma_weights::Error::Write { path: path.to_owned(), cause };
    if let Ok(there) = std::fs::read(path)
        && let Some(rest) = content.strip_prefix(there.as_slice())
    {
        let mut file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        return Ok(file.write_all(rest).map_err(failed)?);
    }
    let mut file = NewFile::open(path)?;
    file.as_file_mut().write_all(content).map_err(failed)?;
    Ok(file.finish()?)
}

/// The wire types of Protocol Buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

fn event(time: u64, step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut event = vec![1 << 3 | FIXED64];
    event.extend((time as f64).to_le_bytes());
    event.push(2 << 3 | VARINT);
    put_varint(&mut event, step);
    what(&mut event);
    event
}

fn put_bytes(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | BYTES);
    put_varint(message, bytes.len() as u64);
    message.extend(bytes);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// A record of TensorFlow's record files: length and data, each with a masked checksum.
fn put_record(file: &mut Vec<u8>, data: &[u8]) {
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let len = (data.len() as u64).to_le_bytes();
    file.extend(len);
    file.extend(masked(&len));
    file.extend(data);
    file.extend(masked(data));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> Metric {
        Metric::Step {
            step,
            time: 1_700_000_000 + step as u64,
            loss: 1.5,
            learning_rate: 0.25,
            gradient_norm: 2.0,
            tokens: 300,
            seconds: 2.0,
        }
    }

    #[test]
    fn a_record_is_the_one_that_tensorboard_writes() {
        let mut file = Vec::new();
        put_record(&mut file, b"abc");
        assert_eq!(file, [3, 0, 0, 0, 0, 0, 0, 0, 176, 153, 73, 14, 97, 98, 99, 110, 87, 241, 33]);
    }

    #[test]
    fn more_metrics_append_and_other_ones_replace() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("events");
        let metrics: Vec<Metric> = (0..300).map(step).collect();
        for count in [1, 2, 300] {
            keep(&path, &content(&metrics[..count])).expect("written");
            assert_eq!(std::fs::read(&path).expect("a file"), content(&metrics[..count]));
        }
        // half of a record, as a full disk leaves it
        let whole = content(&metrics);
        std::fs::write(&path, &whole[..whole.len() - 7]).expect("written");
        keep(&path, &whole).expect("written");
        assert_eq!(std::fs::read(&path).expect("a file"), whole);
        keep(&path, &content(&metrics[1..3])).expect("written");
        assert_eq!(std::fs::read(&path).expect("a file"), content(&metrics[1..3]));
    }
}
