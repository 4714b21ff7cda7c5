//! The program is killed at any moment, the disk is full, two write in one place: nothing that is half-written is taken
//! for whole, and what was done is not lost.
#![cfg(unix)]

mod program;
#[path = "../../gemma-weights/tests/stub/mod.rs"]
#[allow(dead_code)]
mod stub;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use program::folder::{Folder, demo};
use program::{gemma, printed, printed_json, run, text};
use stub::{Repository, Server};

/// How often each verb is killed.
const KILLS: u32 = 100;
/// The longest that one test goes on killing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Moments to kill at: fractions of a run's duration, spread evenly and never the same.
fn moments() -> impl Iterator<Item = f64> {
    let begin = Instant::now();
    // steps of the golden ratio fill an interval evenly
    (0..KILLS).map(|kill| (f64::from(kill) * 0.618_033_988_749).fract()).take_while(move |_| begin.elapsed() < PATIENCE)
}

/// Starts a command and kills it at a fraction of the time that a whole run takes; whether it had ended before.
fn killed(command: &mut Command, whole: Duration, moment: f64) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    std::thread::sleep(whole.mul_f64(moment));
    let ended = child.try_wait().expect("a child").is_some();
    child.kill().expect("killed");
    child.wait().expect("a child");
    ended
}

/// How long a command takes, which has to succeed.
fn duration(command: &mut Command) -> Duration {
    let begin = Instant::now();
    printed(command);
    begin.elapsed()
}

/// `gemma convert` of the demo, to a file or to a folder.
#[test]
fn a_conversion_that_is_killed_leaves_nothing_or_all() {
    let source = demo("gemma");
    let source = source.to_str().expect("UTF-8");
    let folder = Folder::new();
    let whole_file = folder.name("whole.gguf");
    let convert = |to: &str| gemma(["convert", source, to, "--format", "q8_0"]);
    let time = duration(&mut convert(&whole_file));
    let wanted = fs::read(&whole_file).expect("written");
    let to = folder.name("out.gguf");
    for moment in moments() {
        killed(&mut convert(&to), time, moment);
        if let Ok(found) = fs::read(&to) {
            assert!(found == wanted, "half a file after {moment}");
            fs::remove_file(&to).expect("removed");
        }
    }
    printed(&mut convert(&to));
    assert_eq!(folder.files(), ["out.gguf", "whole.gguf"], "what was killed is swept away");
    assert!(fs::read(&to).expect("written") == wanted);

    let folder = Folder::new();
    let (to, time) = (folder.name("out"), {
        let other = Folder::new();
        duration(&mut gemma(["convert", source, &other.name("out")]))
    });
    for moment in moments().take(20) {
        killed(&mut gemma(["convert", source, &to]), time, moment);
        if Path::new(&to).exists() {
            printed(&mut gemma(["inspect", &to]));
            fs::remove_dir_all(&to).expect("removed");
        }
    }
    printed(&mut gemma(["convert", source, &to]));
    assert_eq!(folder.files(), ["out"]);
}

/// `gemma generate --save-state`.
#[test]
fn a_state_that_is_killed_is_absent_or_whole() {
    let folder = Folder::new();
    let state = folder.name("book.state");
    let save = || gemma(["generate", "Once upon a time", "-n", "3", "--temperature", "0", "--save-state", &state]);
    let time = duration(&mut save());
    let load = || gemma(["generate", " there", "-n", "4", "--temperature", "0", "--load-state", &state]);
    let wanted = printed(&mut load());
    fs::remove_file(&state).expect("removed");
    for moment in moments() {
        killed(&mut save(), time, moment);
        if Path::new(&state).exists() {
            assert_eq!(printed(&mut load()), wanted, "after {moment}");
            fs::remove_file(&state).expect("removed");
        }
    }
    printed(&mut save());
    assert_eq!(folder.files(), ["book.state"]);
}

/// A hub of the demo model.
fn hub() -> Server {
    let mut files = Repository::small();
    files.files.clear();
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        files.files.insert(name, fs::read(demo("gemma").join(name)).expect("part of the repository"));
    }
    Server::start(move |request| files.answer(request))
}

fn pull<'a>(server: &Server, home: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = gemma(arguments);
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &server.address).env("HF_HOME", home);
    command
}

fn of_cache<'a>(home: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = gemma(arguments);
    command.env("HF_HOME", home);
    command
}

#[test]
fn a_download_that_is_killed_goes_on_and_is_never_taken_for_whole() {
    let server = hub();
    let say = ["generate", "-m", "org/name", "Once upon a time", "-n", "5", "--temperature", "0"];
    let (time, wanted) = {
        let home = Folder::new();
        let time = duration(&mut pull(&server, home.0.path(), ["pull", "org/name"]));
        (time, printed(&mut of_cache(home.0.path(), say)))
    };
    let mut home = Folder::new();
    for moment in moments() {
        killed(&mut pull(&server, home.0.path(), ["pull", "org/name"]), time, moment);
        // without the network it is the model or a refusal
        let output = run(&mut of_cache(home.0.path(), say));
        match output.status.code() {
            Some(0) => {
                assert_eq!(text(&output.stdout), wanted, "after {moment}");
                home = Folder::new();
            }
            code => assert_eq!((code, text(&output.stderr).lines().count()), (Some(2), 1), "after {moment}"),
        }
    }
    printed(&mut pull(&server, home.0.path(), ["pull", "org/name"]));
    assert_eq!(printed(&mut of_cache(home.0.path(), say)), wanted);
}

#[test]
fn captions_that_were_written_are_kept_when_the_program_is_killed() {
    let images = Folder::new();
    let all: Vec<String> = (0..6).map(|index| format!("{index}.png")).collect();
    for (index, name) in all.iter().enumerate() {
        let image = demo("paligemma").join(format!("images/shapes{}.png", 1 + index % 3));
        fs::copy(image, images.path(name)).expect("copied");
    }
    let whole = Folder::new();
    let (from, to) = (images.name(""), whole.name("out"));
    let time = duration(&mut gemma(["caption", &from, "-n", "8", "--out-dir", &to]));
    let lines = |folder: &str| -> Vec<String> {
        let text = fs::read_to_string(Path::new(folder).join("caption.jsonl")).unwrap_or_default();
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::to_owned).collect()
    };
    let wanted: BTreeSet<String> = lines(&to).into_iter().collect();
    assert_eq!(wanted.len(), all.len());
    let mut done: Vec<String> = Vec::new();
    let mut folder = Folder::new();
    for moment in moments() {
        killed(&mut gemma(["caption", &from, "-n", "8", "--out-dir", &folder.name("")]), time, moment);
        let now = lines(&folder.name(""));
        assert!(now.starts_with(&done), "a line was lost after {moment}");
        assert!(now.iter().all(|line| wanted.contains(line)), "{now:?}");
        done = now;
        if done.len() == all.len() {
            (folder, done) = (Folder::new(), Vec::new());
        }
    }
    printed(&mut gemma(["caption", &from, "-n", "8", "--out-dir", &folder.name("")]));
    let finished = lines(&folder.name(""));
    assert_eq!(finished.len(), all.len(), "each once");
    assert_eq!(finished.into_iter().collect::<BTreeSet<_>>(), wanted);
}

#[test]
fn results_of_a_benchmark_are_kept_when_the_program_is_killed() {
    let folder = Folder::new();
    let tasks: String = (0..8)
        .map(|task| {
            let task = json!({
                "task_id": format!("t{task}"), "prompt": format!("# {task}\ndef total(prices):\n    "),
                "suffix": "\n    return total\n", "canonical_solution": "total = sum(prices)",
                "test": "def check(candidate):\n    pass\n", "entry_point": "total",
            });
            format!("{task}\n")
        })
        .collect();
    let file = folder.name("tasks.jsonl");
    fs::write(&file, tasks).expect("written");
    let eval = |out: &str| gemma(["eval", "infilling", &file, "--out", out, "-n", "8", "--json"]);
    let time = duration(&mut eval(&folder.name("whole.jsonl")));
    // times differ from run to run
    let answers = |path: &str| -> Vec<(String, String)> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let parsed = whole.map(|line| serde_json::from_str::<Value>(line).expect("whole lines are whole"));
        parsed.map(|line| (line["task_id"].to_string(), line["completion"].to_string())).collect()
    };
    let wanted = answers(&folder.name("whole.jsonl"));
    assert_eq!(wanted.len(), 8);
    let mut out = folder.name("out0.jsonl");
    let mut done = Vec::new();
    for (kill, moment) in moments().enumerate() {
        killed(&mut eval(&out), time, moment);
        let now = answers(&out);
        assert!(now.starts_with(&done) && wanted.starts_with(&now), "after {moment}: {now:?}");
        done = now;
        if done.len() == wanted.len() {
            (out, done) = (folder.name(&format!("out{}.jsonl", kill + 1)), Vec::new());
        }
    }
    let summary = printed_json(&mut eval(&out));
    assert_eq!(summary["tasks"], 8, "{summary}");
    assert_eq!(answers(&out), wanted);
}

/// A command under which no file grows beyond some kilobytes, as on a full disk.
fn with_little_room(command: &Command, kilobytes: u32) -> Command {
    let mut limited = Command::new("/bin/sh");
    // without the signal, a write fails like one on a full disk
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", 2 * kilobytes));
    limited.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[test]
fn a_full_disk_is_one_line_and_leaves_nothing() {
    let server = hub();
    let folder = Folder::new();
    let source = demo("gemma");
    let source = source.to_str().expect("UTF-8");
    let ids = folder.name("ids.json");
    fs::write(&ids, "[2, 10, 11, 12]").expect("written");
    let home = Folder::new();
    let (gguf, out, state, logits) =
        (folder.name("x.gguf"), folder.name("out"), folder.name("x.state"), folder.name("x.safetensors"));
    let commands = [
        gemma(["convert", source, &gguf]),
        gemma(["convert", source, &out]),
        gemma(["generate", "Once upon a time", "-n", "60", "--ignore-eos", "--save-state", &state]),
        gemma(["logits", "--tokens-file", &ids, "--out", &logits]),
        pull(&server, home.0.path(), ["pull", "org/name"]),
    ];
    for command in commands {
        let output = run(&mut with_little_room(&command, 4));
        let said = text(&output.stderr);
        let context = format!("{:?}: {said}", command.get_args().collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{context}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{context}");
        assert!(said.contains("too large") || said.contains("space"), "{context}");
        assert_eq!(folder.files(), ["ids.json"], "{context}");
    }
    // with room again, the download is made
    printed(&mut pull(&server, home.0.path(), ["pull", "org/name"]));
    printed(&mut of_cache(home.0.path(), ["generate", "-m", "org/name", "Once", "-n", "2"]));
}

#[test]
fn two_runs_do_not_caption_into_one_folder() {
    let images = demo("paligemma").join("images");
    let images = images.to_str().expect("UTF-8");
    let folder = Folder::new();
    let file = fs::File::create(folder.path("caption.jsonl")).expect("created");
    file.lock().expect("locked");
    let said = program::refusal(&mut gemma(["caption", images, "--out-dir", &folder.name("")]));
    assert!(said.contains("written by another run"), "{said}");
    drop(file);
    printed(&mut gemma(["caption", images, "-n", "4", "--out-dir", &folder.name("")]));
}

#[test]
fn two_downloads_of_one_model_share_the_work() {
    let server = hub();
    let home = Folder::new();
    let mut children: Vec<_> = (0..3)
        .map(|_| {
            let mut command = pull(&server, home.0.path(), ["pull", "org/name"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().expect("a child").success());
    }
    printed(&mut of_cache(home.0.path(), ["generate", "-m", "org/name", "Once", "-n", "2"]));
    let weights = |asked: &&String| asked.starts_with("GET") && asked.ends_with("/model.safetensors");
    assert_eq!(server.asked().iter().filter(weights).count(), 1);
}
