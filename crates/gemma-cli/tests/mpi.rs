//! Fine-tuning in several processes that `mpirun` starts. Skipped with a message where there is no `mpirun`.

#[allow(dead_code, reason = "other tests use the rest")]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use program::{gemma, printed, refusal};
use serde_json::Value;

/// `mpirun` of Open MPI with so many processes of the program; `None`, and a message, where there is none.
fn mpirun(processes: usize) -> Option<Command> {
    let found = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        println!("skipped: there is no mpirun");
        return None;
    }
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "-n", &processes.to_string()]).arg(env!("CARGO_BIN_EXE_gemma"));
    // containers run as root, and processes share cores here
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("OMPI_MCA_mpi_yield_when_idle", "1").env("OMPI_MCA_hwloc_base_binding_policy", "none");
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent").env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command.stdin(Stdio::null());
    Some(command)
}

const DATA: &str = r#"{"text": "The cat sat on the mat."}
{"prompt": "One plus one is", "completion": " two."}
{"text": "Once upon a time there was a king who had three sons."}
{"prompt": "The cat", "completion": " sat."}
{"text": "Good day"}
{"text": "The sun is warm, and the tree is green."}
"#;

/// The arguments of a training in `folder`, written to `out` there.
fn arguments(folder: &Path, out: &str, more: &[&str]) -> Vec<String> {
    let data = folder.join("data.jsonl");
    fs::write(&data, DATA).expect("written");
    let path = |path: PathBuf| path.into_os_string().into_string().expect("UTF-8");
    let mut all = ["finetune", "--rank", "2", "--batch", "4", "--learning-rate", "1e-2", "--threads", "1"]
        .map(str::to_owned)
        .to_vec();
    all.extend(["--data".to_owned(), path(data), "--out".to_owned(), path(folder.join(out))]);
    all.extend(more.iter().map(|word| (*word).to_owned()));
    all
}

fn losses(folder: &Path, out: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join(out).join("metrics.jsonl")).expect("text");
    let loss = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64();
    text.lines().filter_map(loss).collect()
}

#[test]
fn two_processes_have_the_losses_of_one_with_the_whole_batch() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(mut two) = mpirun(2) else { return };
    // without rounded activations, whose rounding depends on what is computed together
    let more = ["--steps", "12", "--exact-activations"];
    printed(gemma([""; 0]).args(arguments(folder.path(), "one", &more)));
    printed(two.args(arguments(folder.path(), "two", &[&more[..], &["--mpi"]].concat())));
    let (one, two) = (losses(folder.path(), "one"), losses(folder.path(), "two"));
    assert_eq!((one.len(), two.len()), (12, 12));
    for (step, (one, two)) in one.iter().zip(&two).enumerate() {
        assert!((one - two).abs() < 1e-5 * one.max(1.0), "step {step}: {two}, alone {one}");
    }
    assert!(two[11] < 0.8 * two[0], "it learns: {two:?}");
    // several processes that were not asked to train together would write the same files
    let unasked = mpirun(2).expect("it was there").args(arguments(folder.path(), "x", &more)).output();
    let unasked = unasked.expect("mpirun starts");
    assert!(!unasked.status.success());
    assert!(String::from_utf8_lossy(&unasked.stderr).contains("give --mpi"));
    assert!(!folder.path().join("x").exists());
    // a process that would train something else
    let line = refusal(gemma([""; 0]).args(arguments(folder.path(), "y", &["--mpi", "--dry-run"])));
    assert!(line.contains("--dry-run"), "{line}");
}

/// The process of a rank among the children of `mpirun`.
fn process_of_rank(mpirun: &Child, rank: usize) -> Option<u32> {
    let children = format!("/proc/{0}/task/{0}/children", mpirun.id());
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    fs::read_to_string(children).ok()?.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
        let environment = fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    })
}

#[cfg(target_os = "linux")]
#[test]
fn when_a_process_is_killed_the_others_end_and_the_training_goes_on_from_a_good_state() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(mut command) = mpirun(2) else { return };
    let long = ["--steps", "4000", "--save-every", "5", "--schedule", "constant", "--mpi"];
    let mut child = command
        .args(arguments(folder.path(), "lost", &long))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mpirun starts");
    let begin = Instant::now();
    let state = folder.path().join("lost/training_state.safetensors");
    while !state.is_file() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let rank = process_of_rank(&child, 1).expect("the second process runs");
    let killed = Command::new("kill").args(["-KILL", &rank.to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let killed = Instant::now();
    while child.try_wait().expect("it can be asked").is_none() {
        assert!(killed.elapsed() < Duration::from_secs(60), "the other process ends");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("it ended");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--resume"), "{said}");
    // what was kept is whole: the training goes on from it, alone or in company
    let done = losses(folder.path(), "lost").len();
    assert!(done >= 5);
    let mut again = mpirun(2).expect("it was there");
    let mut child = again
        .args(arguments(folder.path(), "lost", &[&long[..], &["--resume"]].concat()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mpirun starts");
    let begin = Instant::now();
    while losses(folder.path(), "lost").len() <= done && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(ended.expect("kill runs").success());
    child.wait().expect("it ends");
    assert!(losses(folder.path(), "lost").len() > done, "it went on");
}
