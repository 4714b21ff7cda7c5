//! The programs that a user would take instead, found or built in a cache folder, and what they measure.

use super::child;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tokens of the prompt whose answer tells how long a program takes to start; `gemma bench` has as many.
const FIRST_PROMPT: usize = 8;
/// Measures transformers; written into the cache before it is run.
const SCRIPT: &str = include_str!("hf.py");
/// What builds llama.cpp from the source package that is on PyPI, and writes down what compiled it.
///
/// GCC before 13 may drop the stores that fill the configuration of AMX's tiles, and the program then dies at `ldtilecfg`. So on
/// a CPU with tiles clang is taken where it is there, unless `CXX` names a compiler, and otherwise llama.cpp is built without
/// tiles.
const BUILD: &str = "set -e
cd \"$1\"
flags=
if grep -qw amx_tile /proc/cpuinfo 2>/dev/null && [ -z \"$CXX\" ]; then
    if command -v clang++ >/dev/null; then
        export CC=clang CXX=clang++
    elif [ \"$(c++ -dumpversion | cut -d. -f1)\" -lt 13 ]; then
        flags='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'
    fi
fi
[ -x venv/bin/pip ] || python3 -m venv venv
venv/bin/pip install -q cmake ninja
[ -d llama_cpp_python ] || {
    venv/bin/pip download -q llama-cpp-python --no-binary llama-cpp-python --no-deps -d .
    mkdir llama_cpp_python
    tar xf llama_cpp_python-*.tar.gz -C llama_cpp_python --strip-components 1
}
venv/bin/cmake -S llama_cpp_python/vendor/llama.cpp -B llama -G Ninja -DCMAKE_MAKE_PROGRAM=\"$1/venv/bin/ninja\" \
    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF -DCMAKE_C_FLAGS=\"$flags\" -DCMAKE_CXX_FLAGS=\"$flags\"
venv/bin/ninja -C llama llama-bench
echo \"$(${CXX:-c++} --version | head -n 1)${flags:+, without AMX}\" > llama/compiler
";
/// What installs transformers.
const INSTALL: &str = "set -e
cd \"$1\"
[ -x venv/bin/pip ] || python3 -m venv venv
venv/bin/pip install -q torch transformers accelerate
";

/// The peers that can be had on this machine.
pub(super) struct Peers {
    cache: PathBuf,
    llama: Option<PathBuf>,
    python: Option<PathBuf>,
}

/// What one run of one program gave.
pub(super) struct Run {
    /// The program's own numbers, under the names that `gemma bench --json` has.
    pub(super) measured: Value,
    /// Most memory in use, in bytes, where the system tells.
    pub(super) peak: Option<u64>,
    /// Cores that other programs used meanwhile, where the system tells.
    pub(super) others: Option<f64>,
    /// From its start to its end.
    pub(super) seconds: f64,
}

/// What a program is asked to do, in tokens and threads.
#[derive(Clone, Copy)]
pub(super) struct Work {
    /// Read at once.
    pub(super) prompt: usize,
    /// Written one by one.
    pub(super) decode: usize,
    /// Read already before either.
    pub(super) depth: usize,
    pub(super) threads: usize,
}

impl Peers {
    /// Finds the peers, or makes them; one that cannot be had is left out, with the reason on stderr.
    ///
    /// # Errors
    /// The cache folder cannot be made.
    pub(super) fn find() -> Result<Self> {
        let cache = cache()?;
        let given = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let llama = given("GEMMA_BENCH_LLAMA").map(Ok).unwrap_or_else(|| {
            let built = cache.join("llama/bin/llama-bench");
            if !built.is_file() {
                made("llama.cpp", BUILD, &cache)?;
            }
            Ok(built)
        });
        let python = given("GEMMA_BENCH_PYTHON").map(Ok).unwrap_or_else(|| {
            let python = cache.join("venv/bin/python");
            if !imports(&python) {
                made("transformers", INSTALL, &cache)?;
            }
            Ok(python)
        });
        let had = |name: &str, found: Result<PathBuf>| {
            found.inspect_err(|error| eprintln!("{name} is left out: {error:#}")).ok()
        };
        let (llama, python) = (had("llama.cpp", llama), had("transformers", python));
        Ok(Self { cache, llama, python })
    }

    /// The folder that keeps models and programs.
    pub(super) fn cache(&self) -> &Path {
        &self.cache
    }

    pub(super) fn has_llama(&self) -> bool {
        self.llama.is_some()
    }

    /// What compiled llama.cpp, where it was built here.
    pub(super) fn compiler(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.llama.as_ref()?.parent()?.parent()?.join("compiler")).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    pub(super) fn has_transformers(&self) -> bool {
        self.python.is_some()
    }

    /// One run of llama.cpp, and one before it that reads a few tokens once and ends: how long it takes to start.
    ///
    /// # Errors
    /// It could not be started, failed, or printed no numbers.
    pub(super) fn llama(&self, model: &Path, work: Work) -> Result<Run> {
        let program = self.llama.as_ref().context("llama.cpp is not there")?;
        let bench = |prompt: usize, decode: usize, depth: usize, more: &[&str]| {
            let mut command = Command::new(program);
            command.arg("-m").arg(model).args(["-r", "1", "-o", "json", "-t", &work.threads.to_string()]);
            command.args(["-p", &prompt.to_string(), "-n", &decode.to_string(), "-d", &depth.to_string()]);
            run(command.args(more))
        };
        let start = bench(FIRST_PROMPT, 0, 0, &["--no-warmup"])?;
        let mut run = bench(work.prompt, work.decode, work.depth, &[])?;
        let speed = |field: &str| {
            let rows = run.measured.as_array()?;
            rows.iter().find(|row| row[field].as_u64().is_some_and(|tokens| tokens > 0))?["avg_ts"].as_f64()
        };
        run.measured = serde_json::json!({
            "first_token_seconds": start.seconds,
            "prefill_tokens_per_second": speed("n_prompt"), "decode_tokens_per_second": speed("n_gen"),
        });
        run.others = run.others.zip(start.others).map(|(one, other)| one.max(other));
        Ok(run)
    }

    /// One run of transformers in bf16.
    ///
    /// # Errors
    /// As [`Peers::llama`].
    pub(super) fn transformers(&self, folder: &Path, work: Work) -> Result<Run> {
        let script = self.cache.join("hf.py");
        std::fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
        let mut command = Command::new(self.python.as_ref().context("transformers is not there")?);
        let numbers = [work.prompt, work.decode, work.depth, work.threads, FIRST_PROMPT];
        command.arg(script).arg(folder).args(numbers.map(|number| number.to_string()));
        run(command.env("HF_HUB_OFFLINE", "1"))
    }
}

/// `$GEMMA_BENCH_CACHE`, or a folder among the user's caches.
fn cache() -> Result<PathBuf> {
    let chosen = std::env::var_os("GEMMA_BENCH_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/gemma-bench"));
    let cache = chosen.or_else(home).context("set GEMMA_BENCH_CACHE to a folder for models and programs")?;
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(std::path::absolute(cache)?)
}

fn imports(python: &Path) -> bool {
    let command = Command::new(python).args(["-c", "import torch, transformers"]).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

fn made(name: &str, script: &str, cache: &Path) -> Result<()> {
    eprintln!("making {name} in {}, which takes some minutes", cache.display());
    let status = Command::new("bash").args(["-c", script, "bash"]).arg(cache).stdout(Stdio::null()).status();
    let status = status.context("bash could not be started")?;
    if !status.success() {
        bail!("making it ended with {status}");
    }
    Ok(())
}

/// Runs a program that prints JSON, and watches it.
///
/// # Errors
/// It could not be started, failed, or printed something else.
pub(super) fn run(command: &mut Command) -> Result<Run> {
    let before = busy().zip(own());
    let mut peak = None;
    let (measured, seconds) = child::json(command, None, |process| peak = memory(process).or(peak))?;
    let others = before
        .zip(busy().zip(own()))
        .map(|((all, own), (all_after, own_after))| ((all_after - all) - (own_after - own)).max(0.0) / seconds);
    Ok(Run { measured, peak, others, seconds })
}

/// Cores that all programs use, measured over a second (Linux).
pub(super) fn load() -> Option<f64> {
    let (start, before) = (Instant::now(), busy()?);
    std::thread::sleep(Duration::from_secs(1));
    Some((busy()? - before) / start.elapsed().as_secs_f64())
}

/// Bytes that a folder's file system has left, as `df` tells.
pub(super) fn free(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).stderr(Stdio::null()).output().ok()?;
    available(&String::from_utf8(output.stdout).ok()?)
}

/// The number before the percentage in the second line, in KiB; names on both sides of them may hold spaces.
fn available(df: &str) -> Option<u64> {
    let fields: Vec<&str> = df.lines().nth(1)?.split_whitespace().collect();
    let percentage = fields.iter().position(|field| field.ends_with('%') && *field != "%")?;
    fields.get(percentage.checked_sub(1)?)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Most memory that a process had resident so far, in bytes (Linux).
fn memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Ticks of a second in which Linux counts CPU time for programs.
const TICKS: f64 = 100.0;

/// CPU time of this program and of those it started and saw the end of, in seconds (Linux).
fn own() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // the name, in brackets, may hold anything
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // user and system, of its own and of its children
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<f64>().ok()).sum::<Option<f64>>()?;
    Some(ticks / TICKS)
}

/// CPU time of all programs so far, in seconds (Linux).
fn busy() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system; not idle and what follows
    Some(fields.get(..3)?.iter().sum::<f64>() / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_watched_and_its_numbers_are_read() {
        let found = run(Command::new("echo").arg("{\"a\": 1}")).expect("it prints JSON");
        assert_eq!(found.measured["a"], 1);
        assert!(run(&mut Command::new("false")).is_err());
        assert!(run(Command::new("echo").arg("no")).is_err());
        assert!(run(&mut Command::new("/nowhere/at/all")).is_err());
    }

    #[test]
    fn what_is_left_of_a_disk_is_read() {
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\nmy disk 250 200 36 85% /mnt/a b\n";
        assert_eq!(available(df), Some(36 * 1024));
        assert_eq!(available("df: no such file\n"), None);
        assert_eq!(available("a\n85% /\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_childs_work_is_not_that_of_others() {
        // a shell that counts: some time of one core, all of it ours
        let before = super::own().expect("Linux tells");
        let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo 1";
        run(Command::new("sh").args(["-c", script])).expect("it prints JSON");
        let spent = super::own().expect("Linux tells") - before;
        assert!(spent > 0.05, "{spent} s");
    }

    #[test]
    fn what_linux_tells_of_a_process_is_read() {
        if cfg!(target_os = "linux") {
            let own = std::process::id();
            assert!(memory(own).is_some_and(|bytes| bytes > 1 << 16));
            assert!(super::own().is_some() && busy().is_some() && load().is_some());
        }
        assert_eq!(memory(0), None);
    }
}
