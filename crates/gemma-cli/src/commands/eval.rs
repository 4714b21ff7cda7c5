//! `gemma eval infilling`: exact matches and pass rates on an infilling benchmark.

mod sandbox;

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use codegemma::{
    InfillOptions,
    benchmark::{Match, Task},
};
use gemma_generate::FinishReason;
use serde::{Deserialize, Serialize};

use crate::{
    args::{CodeModel, Filling, seconds},
    interrupt::{self, Ending},
    new_file::written_alone,
    output::{self, Table},
    progress, session, text,
};
use sandbox::{Limits, Verdict};

/// Measure how good a model is at a task.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  gemma eval infilling HumanEval-SingleLineInfilling.jsonl --stop-rule line --out results.jsonl")]
pub(crate) struct Eval {
    #[command(subcommand)]
    pub(crate) task: EvalTask,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum EvalTask {
    Infilling(EvalInfilling),
}

/// Measure infilling on a benchmark in the format of HumanEval-Infilling.
///
/// Each line of the file is an object with task_id, prompt, suffix and canonical_solution; test and entry_point are
/// needed only to run the tests.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma eval infilling tasks.jsonl
  gemma eval infilling tasks.jsonl --model google/codegemma-2b --precision q8_0 --out results.jsonl
  gemma eval infilling tasks.jsonl --out results.jsonl --run-tests

With --out, a result is appended as it comes, and a run that was cut short goes on where it stopped. Exact: the text is
the solution, white space at its ends aside. Prefix: it begins with the solution. --run-tests executes what the model
wrote with your rights; use it only where that can do no harm.")]
pub(crate) struct EvalInfilling {
    /// The benchmark, one JSON object per line.
    pub(crate) file: PathBuf,

    /// Append each result to this file, and skip what is in it already.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Only the first N tasks.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,

    /// Run each task's test on the filled program, in a process of its own. This executes code that a model wrote.
    #[arg(long)]
    pub(crate) run_tests: bool,

    /// What runs the tests.
    #[arg(long, value_name = "PROGRAM", default_value = "python3", requires = "run_tests")]
    pub(crate) python: PathBuf,

    /// Most seconds for one test.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10", requires = "run_tests")]
    pub(crate) test_time: Duration,

    /// Most memory for one test, in megabytes.
    #[arg(long, value_name = "MB", default_value_t = 1024, requires = "run_tests")]
    pub(crate) test_memory: u64,

    /// Print the summary as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) filling: Filling,

    #[command(flatten)]
    pub(crate) model: CodeModel,
}

/// Longest line of the results, in bytes.
const LONGEST_RESULT: u64 = 16 << 20;

/// What is written for a task: a line of the output file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    task_id: String,
    completion: String,
    #[serde(flatten)]
    matches: Match,
    /// What became of the task's test; null when it was not run.
    passed: Option<bool>,
    /// Why the test did not pass.
    reason: Option<String>,
    finish_reason: FinishReason,
    tokens: usize,
    seconds: f64,
}

/// The summary.
#[derive(Debug, Serialize)]
struct Summary {
    tasks: usize,
    exact: usize,
    prefix: usize,
    /// How many tests were run; null without --run-tests.
    tested: Option<usize>,
    passed: Option<usize>,
    mean_seconds: f64,
    mean_tokens: f64,
}

pub(crate) fn run(args: &Eval) -> Result<Ending> {
    let EvalTask::Infilling(args) = &args.task;
    let options = args.filling.options();
    options.generate.check()?;
    let tasks = tasks(&args.file, args.limit)?;
    let limits = Limits { time: args.test_time, megabytes: args.test_memory };
    if args.run_tests {
        sandbox::check(&args.python, limits)?;
    }
    let mut log = args.out.as_deref().map(Log::open).transpose()?;
    let known: HashSet<&str> = tasks.iter().map(|task| task.task_id.as_str()).collect();
    let mut records = log.as_mut().map(|log| std::mem::take(&mut log.records)).unwrap_or_default();
    records.retain(|record| known.contains(record.task_id.as_str()));
    let done: HashSet<String> = records.iter().map(|record| record.task_id.clone()).collect();
    let due: Vec<&Task> = tasks.iter().filter(|task| !done.contains(&task.task_id)).collect();
    let model = session::find_code(&args.model)?.open_code(&mut |_, _| {})?;
    let watch = interrupt::watch();
    let options = InfillOptions { cancel: Some(watch.flag()), ..options };
    let bar = progress::count("filling", "tasks", tasks.len());
    bar.set_position(done.len() as u64);
    for task in due {
        let begin = Instant::now();
        let filled = model.infill(&task.infill(), &options).with_context(|| format!("task {}", task.task_id))?;
        if watch.flag().load(Ordering::Relaxed) {
            break;
        }
        let program = task.program(&filled.text).filter(|_| args.run_tests);
        let verdict = program.map(|program| sandbox::run(&args.python, &program, limits)).transpose()?;
        let record = Record {
            task_id: task.task_id.clone(),
            matches: task.judge(&filled.text),
            completion: filled.text,
            passed: verdict.as_ref().map(|verdict| *verdict == Verdict::Passed),
            reason: verdict.and_then(Verdict::reason),
            finish_reason: filled.finish_reason,
            tokens: filled.tokens.len(),
            seconds: begin.elapsed().as_secs_f64(),
        };
        if let Some(log) = &mut log {
            log.append(&record)?;
        }
        records.push(record);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let summary = Summary::of(&records);
    if args.json {
        output::json(&summary)?;
    } else {
        output::line(summary.table())?;
    }
    Ok(if watch.pressed() { Ending::Interrupted } else { Ending::Done })
}

/// The tasks of a file, the first `limit` of them.
fn tasks(path: &Path, limit: Option<usize>) -> Result<Vec<Task>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut tasks: Vec<Task> = Vec::new();
    let mut seen = HashSet::new();
    let mut lines = BufReader::new(file);
    for number in 1.. {
        if limit.is_some_and(|limit| tasks.len() >= limit) {
            break;
        }
        let line = text::line(&mut lines).with_context(|| format!("{name} line {number}; is it a JSONL file?"))?;
        let Some(line) = line else { break };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let task: Task = serde_json::from_slice(&line)
            .with_context(|| format!("{name} line {number} is no task of the HumanEval-Infilling format"))?;
        if !seen.insert(task.task_id.clone()) {
            bail!("{name} line {number} repeats the task {}", task.task_id);
        }
        tasks.push(task);
    }
    if tasks.is_empty() {
        bail!("{name} holds no task");
    }
    Ok(tasks)
}

/// The results so far, on disk.
struct Log {
    file: File,
    name: String,
    records: Vec<Record>,
}

impl Log {
    /// Opens a file to append to, and reads what is in it. A last line that was cut off is dropped: its task is due again.
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = file.with_context(|| format!("cannot write {name}"))?;
        written_alone(&file, path)?;
        let mut reader = BufReader::new(&file);
        let (mut records, mut whole, mut line) = (Vec::new(), 0, Vec::new());
        let mut next = |line: &mut Vec<u8>| reader.by_ref().take(LONGEST_RESULT).read_until(b'\n', line);
        while next(&mut line).with_context(|| format!("cannot read {name}"))? > 0 {
            if line.len() as u64 == LONGEST_RESULT {
                bail!("{name} holds something else than results: a line is too long; name another file");
            }
            let Some(content) = line.strip_suffix(b"\n") else { break };
            if !content.trim_ascii().is_empty() {
                let record = serde_json::from_slice(content).with_context(|| {
                    format!(
                        "{name} holds something else than results (after {} of them); name another file",
                        records.len()
                    )
                })?;
                records.push(record);
            }
            whole += line.len() as u64;
            line.clear();
        }
        file.set_len(whole).with_context(|| format!("cannot write {name}"))?;
        Ok(Self { file, name, records })
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("cannot write {}", self.name))
    }
}

impl Summary {
    fn of(records: &[Record]) -> Self {
        let count = |which: fn(&Record) -> bool| records.iter().filter(|record| which(record)).count();
        let mean = |of: fn(&Record) -> f64| records.iter().map(of).sum::<f64>() / records.len().max(1) as f64;
        let tested = count(|record| record.passed.is_some());
        Self {
            tasks: records.len(),
            exact: count(|record| record.matches.exact),
            prefix: count(|record| record.matches.prefix),
            tested: (tested > 0).then_some(tested),
            passed: (tested > 0).then(|| count(|record| record.passed == Some(true))),
            mean_seconds: mean(|record| record.seconds),
            mean_tokens: mean(|record| record.tokens as f64),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["", "count", "of", "percent"]);
        let mut row = |name: &str, count: usize, of: usize| {
            let percent = format!("{:.1}", 100.0 * count as f64 / of.max(1) as f64);
            table.row([name.to_owned(), count.to_string(), of.to_string(), percent]);
        };
        row("exact", self.exact, self.tasks);
        row("prefix", self.prefix, self.tasks);
        if let (Some(passed), Some(tested)) = (self.passed, self.tested) {
            row("tests passed", passed, tested);
        }
        table.row([format!("{:.2} s and {:.1} tokens per task", self.mean_seconds, self.mean_tokens)]);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, exact: bool) -> Record {
        Record {
            task_id: id.into(),
            completion: "x\n".into(),
            matches: Match { exact, prefix: true },
            passed: None,
            reason: None,
            finish_reason: FinishReason::Stop,
            tokens: 4,
            seconds: 0.5,
        }
    }

    #[test]
    fn a_log_goes_on_after_its_last_whole_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("out.jsonl");
        let mut log = Log::open(&path).expect("new");
        log.append(&record("a", true)).expect("written");
        log.append(&record("b", false)).expect("written");
        drop(log);
        // the machine went down while the third was written
        let mut text = std::fs::read_to_string(&path).expect("readable");
        text += r#"{"task_id":"c","compl"#;
        std::fs::write(&path, text).expect("written");
        let mut log = Log::open(&path).expect("there");
        assert_eq!(log.records.iter().map(|record| record.task_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        log.append(&record("c", true)).expect("written");
        drop(log);
        assert_eq!(Log::open(&path).expect("there").records.len(), 3);
        std::fs::write(&path, "something\n").expect("written");
        assert!(Log::open(&path).is_err(), "another file is not overwritten");
    }

    #[test]
    fn the_summary_counts() {
        let mut records = vec![record("a", true), record("b", false), record("c", false), record("d", true)];
        records[0].passed = Some(true);
        records[1].passed = Some(false);
        let summary = Summary::of(&records);
        assert_eq!((summary.exact, summary.prefix, summary.tested, summary.passed), (2, 4, Some(2), Some(1)));
        let table = summary.table().to_string();
        assert!(table.contains("exact") && table.contains("50.0") && table.contains("tests passed"), "{table}");
        assert!(!Summary::of(&records[2..]).table().to_string().contains("tests"), "none was run");
    }

    #[test]
    fn a_bad_line_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tasks.jsonl");
        let good = r#"{"task_id":"t","prompt":"a","suffix":"b","canonical_solution":"c"}"#;
        for (content, word) in [
            ("".to_owned(), "no task"),
            (format!("{good}\n{{}}\n"), "line 2"),
            (format!("{good}\n\n{good}\n"), "line 3 repeats"),
        ] {
            std::fs::write(&path, content).expect("written");
            let error = tasks(&path, None).expect_err(word);
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
        std::fs::write(&path, format!("{good}\nnot read")).expect("written");
        assert_eq!(tasks(&path, Some(1)).expect("one").len(), 1);
    }
}
