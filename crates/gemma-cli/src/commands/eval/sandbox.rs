//! Runs a program that a model wrote, in a process of its own with little time and little memory.
//!
//! This keeps a mistake from filling memory or running for ever. It is no wall against malice: the program can read and
//! write what the user can.

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How often a running test is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// The variables of the environment that a test sees.
const PASSED_ON: [&str; 6] = ["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"];

/// What a test may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) megabytes: u64,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed(String),
    OutOfTime,
}

impl Verdict {
    /// Why it did not pass.
    pub(super) fn reason(self) -> Option<String> {
        match self {
            Self::Passed => None,
            Self::Failed(reason) => Some(reason),
            Self::OutOfTime => Some("out of time".to_owned()),
        }
    }
}

/// Finds out whether tests can be run at all.
///
/// # Errors
/// When the interpreter does not start, or does not run an empty program within the limits.
pub(super) fn check(python: &Path, limits: Limits) -> Result<()> {
    match run(python, "", limits)? {
        Verdict::Passed => Ok(()),
        verdict => bail!(
            "{} does not run an empty program within the limits ({}); give another --python or more --test-memory",
            python.display(),
            verdict.reason().unwrap_or_default()
        ),
    }
}

/// Runs a program in an empty folder, without input.
///
/// # Errors
/// When the interpreter does not start. What the program does is no error.
pub(super) fn run(python: &Path, program: &str, limits: Limits) -> Result<Verdict> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let script = folder.path().join("test.py");
    // a program that leaves early has not passed, whatever its exit code says
    let end_mark = folder.path().join("end");
    let program = format!("{program}\nopen({:?}, 'w').close()\n", end_mark.display().to_string());
    std::fs::File::create(&script)
        .and_then(|mut file| file.write_all(program.as_bytes()))
        .context("cannot write a temporary file")?;
    let errors = std::fs::File::create(folder.path().join("errors")).context("cannot write a temporary file")?;
    let mut command = limited(python, &script, limits);
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    // keys and tokens of whoever runs this are none of its business
    command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.env("HOME", folder.path()).env("TMPDIR", folder.path());
    // by which a process is known that left the group
    command.env(MARK, folder.path());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", python.display()))?;
    let end = Instant::now() + limits.time;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for a test")? {
            // what the test started ends with it
            kill(&mut child, folder.path());
            break status;
        }
        if Instant::now() >= end {
            kill(&mut child, folder.path());
            return Ok(Verdict::OutOfTime);
        }
        std::thread::sleep(LOOK);
    };
    if status.success() {
        let early = || Verdict::Failed("it ended before its last line".to_owned());
        return Ok(if end_mark.exists() { Verdict::Passed } else { early() });
    }
    let said = std::fs::read(folder.path().join("errors")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last =
        said.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().chars().take(200).collect());
    Ok(Verdict::Failed(last.unwrap_or_else(|| status.to_string())))
}

/// The shell sets the limits for itself and then becomes the interpreter. A process group of its own, so that what the
/// program starts ends with it.
#[cfg(unix)]
fn limited(python: &Path, script: &Path, limits: Limits) -> Command {
    use std::os::unix::process::CommandExt;
    let kilobytes = limits.megabytes.saturating_mul(1024);
    let seconds = limits.time.as_secs() + 1;
    let blocks = 64 * 1024;
    let mut command = Command::new("/bin/sh");
    command.arg("-c");
    command.arg(format!("ulimit -v {kilobytes}; ulimit -t {seconds}; ulimit -f {blocks}; exec \"$0\" -I \"$1\""));
    command.arg(python).arg(script).process_group(0);
    command
}

#[cfg(not(unix))]
fn limited(python: &Path, script: &Path, _limits: Limits) -> Command {
    let mut command = Command::new(python);
    command.arg("-I").arg(script);
    command
}

/// The variable that holds the folder of a test, in the test and in all that it starts.
const MARK: &str = "GEMMA_TEST_FOLDER";

/// Ends a process and what it started, also what made itself a group of its own.
fn kill(child: &mut Child, folder: &Path) {
    #[cfg(unix)]
    {
        // the group has the number of its first process; one that is gone already needs no killing
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).stderr(Stdio::null()).status();
    }
    let _ = child.kill();
    let _ = child.wait();
    for process in strays(folder) {
        let _ = Command::new("kill").args(["-KILL", &process]).stderr(Stdio::null()).status();
    }
}

/// The processes whose environment names the folder of a test, by number. Where the system does not tell, there are none.
fn strays(folder: &Path) -> Vec<String> {
    let mark = format!("{MARK}={}", folder.display());
    let is_marked = |process: &str| {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && is_marked(name)).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn verdict(program: &str, limits: Limits) -> Option<Verdict> {
        let python = Path::new("python3");
        if check(python, Limits { time: Duration::from_secs(30), megabytes: 1024 }).is_err() {
            println!("skipped: there is no python3");
            return None;
        }
        Some(run(python, program, limits).expect("python3 starts"))
    }

    const ROOMY: Limits = Limits { time: Duration::from_secs(30), megabytes: 1024 };

    #[test]
    fn tests_pass_and_fail_with_their_last_words() {
        let Some(passed) = verdict("assert 1 + 1 == 2", ROOMY) else { return };
        assert_eq!(passed, Verdict::Passed);
        for early in ["exit()", "import sys; sys.exit(0)", "import os; os._exit(0)"] {
            let left = verdict(&format!("{early}\nassert 1 == 2"), ROOMY);
            assert_eq!(left, Some(Verdict::Failed("it ended before its last line".into())), "{early}");
        }
        // the environment of a test under cargo has many variables of that kind
        let seen = verdict("import os\nassert not [name for name in os.environ if name.startswith('CARGO')]", ROOMY);
        assert_eq!(seen, Some(Verdict::Passed));
        let failed = verdict("print('x' * 100000)\nassert 1 == 2, 'no'", ROOMY);
        assert_eq!(failed, Some(Verdict::Failed("AssertionError: no".into())));
    }

    #[test]
    fn time_and_memory_end() {
        let begin = Instant::now();
        let hasty = Limits { time: Duration::from_millis(500), ..ROOMY };
        let program = "import subprocess\nsubprocess.Popen(['sleep', '60'])\nwhile True: pass";
        let Some(endless) = verdict(program, hasty) else { return };
        assert_eq!(endless, Verdict::OutOfTime);
        assert!(begin.elapsed() < Duration::from_secs(40));
        let hungry = verdict("x = bytearray(3 << 30)", ROOMY);
        assert_eq!(hungry, Some(Verdict::Failed("MemoryError".into())));
    }

    #[test]
    fn an_interpreter_that_is_not_there_is_named() {
        let error = check(Path::new("/nonexistent/python"), ROOMY).expect_err("not there");
        assert!(error.to_string().contains("/nonexistent/python"), "{error}");
    }

    #[test]
    fn what_a_test_starts_ends_with_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("pid");
        for how in ["", ", start_new_session=True"] {
            let program = format!(
                "import subprocess\nchild = subprocess.Popen(['sleep', '30']{how})\nopen({:?}, 'w').write(str(child.pid))\n",
                file.display().to_string()
            );
            let Some(verdict) = verdict(&program, ROOMY) else { return };
            assert_eq!(verdict, Verdict::Passed);
            let pid = std::fs::read_to_string(&file).expect("the test wrote it");
            let running =
                || std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("sleep"));
            let end = Instant::now() + Duration::from_secs(5);
            while running() && Instant::now() < end {
                std::thread::sleep(LOOK);
            }
            assert!(!running(), "process {pid} goes on");
        }
    }
}
