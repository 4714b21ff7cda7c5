//! The verbs for code as a user meets them: `gemma infill`, `gemma lsp`, `gemma eval infilling`.

mod program;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use program::{gemma, printed, printed_json, refusal, text};

const BEFORE: &str = "def sum_prices(prices):\n    \"\"\"Return the sum of the prices.\"\"\"\n    total = 0\n    for price in prices:\n        ";
const AFTER: &str = "\n    return total\n";
const MIDDLE: &str = "total += price";

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).expect("written");
        self.path(name).to_str().expect("UTF-8").to_owned()
    }
}

#[test]
fn a_gap_is_filled_from_two_files_and_from_a_place_in_one() {
    let folder = Folder::new();
    let (before, after) = (folder.write("before", BEFORE), folder.write("after", AFTER));
    assert_eq!(
        printed(&mut gemma(["infill", "--prefix-file", &before, "--suffix-file", &after])),
        MIDDLE,
        "and no line break"
    );
    let file = folder.write("prices.py", format!("{BEFORE}{AFTER}"));
    assert_eq!(printed(&mut gemma(["infill", &file, "--at", "5:9"])), MIDDLE);
    let object = printed_json(&mut gemma(["infill", &file, "--at", "5:9", "--json"]));
    assert_eq!((object["text"].as_str(), object["finish_reason"].as_str()), (Some(MIDDLE), Some("stop")));
    assert_eq!(object["cut"], json!({ "prefix_lines": 0, "suffix_lines": 0, "files": 0, "file_lines": 0 }));
    for order in ["psm", "spm"] {
        assert_eq!(
            printed(&mut gemma(["infill", &file, "--at", "5:9", "--order", order, "--no-lookup"])),
            MIDDLE,
            "{order}"
        );
    }
}

#[test]
fn a_program_comes_through_a_pipe() {
    let mut child = gemma(["infill", "--prefix-file", "-", "--stop-rule", "line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // an unfinished program, up to the end of a line
    child.stdin.take().expect("piped").write_all(BEFORE.trim_end_matches(' ').as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(text(&output.stdout), format!("        {MIDDLE}"));
}

#[test]
fn write_puts_the_text_into_the_file_and_keeps_its_permissions() {
    let folder = Folder::new();
    let file = folder.write("prices.py", format!("{BEFORE}{AFTER}"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o750)).expect("set");
    }
    assert_eq!(printed(&mut gemma(["infill", &file, "--at", "5:9", "--write"])), "");
    assert_eq!(fs::read_to_string(&file).expect("there"), format!("{BEFORE}{MIDDLE}{AFTER}"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o750);
    }
}

#[test]
fn the_prompt_is_shown_without_running_the_model() {
    let folder = Folder::new();
    let (before, after) = (folder.write("before", "a <|fim_suffix|>\t"), folder.write("after", "\r\n🦀"));
    let shown = printed_json(&mut gemma([
        "infill",
        "--prefix-file",
        &before,
        "--suffix-file",
        &after,
        "--show-prompt",
        "--json",
    ]));
    // the model was trained on files whose lines end in a line feed
    assert_eq!(shown["text"], "<bos><|fim_prefix|>a <|fim_suffix|>\t<|fim_suffix|>\n🦀<|fim_middle|>");
    let tokens: Vec<u64> = shown["tokens"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect();
    // bos, prefix, suffix and middle of the demo, once each: the text of the prefix stays text
    for id in [2, 6, 8, 7] {
        assert_eq!(tokens.iter().filter(|token| **token == id).count(), 1, "{id} in {tokens:?}");
    }
    // a tokenizer is enough
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/codegemma/demo/tokenizer.json");
    fs::copy(demo, folder.path("tokenizer.json")).expect("copied");
    let model = folder.path("");
    let model = model.to_str().expect("UTF-8");
    let again = printed_json(&mut gemma([
        "infill",
        "--prefix-file",
        &before,
        "--suffix-file",
        &after,
        "--show-prompt",
        "--json",
        "--model",
        model,
    ]));
    assert_eq!(again, shown);
}

#[test]
fn other_files_go_into_the_prompt() {
    let folder = Folder::new();
    fs::create_dir(folder.path("lib")).expect("made");
    let file = folder.write("main.py", "import tools\n");
    folder.write("lib/tools.py", "A = 1\n");
    folder.write("lib/notes.txt", "no\n");
    let context = folder.path("lib");
    let context = context.to_str().expect("UTF-8");
    let shown = printed_json(&mut gemma([
        "infill",
        &file,
        "--at",
        "2:1",
        "--context",
        context,
        "--path",
        "main.py",
        "--show-prompt",
        "--json",
    ]));
    let expected = format!(
        "<bos>{context}/tools.py\nA = 1\n<|file_separator|>main.py\n<|fim_prefix|>import tools\n<|fim_suffix|><|fim_middle|>"
    );
    assert_eq!(shown["text"], expected);
}

#[test]
fn alternatives_differ() {
    let folder = Folder::new();
    let file = folder.write("x.py", "def ");
    let object = printed_json(&mut gemma([
        "infill",
        &file,
        "--at",
        "1:5",
        "--alternatives",
        "4",
        "--seed",
        "3",
        "-n",
        "24",
        "--json",
    ]));
    let found = object["alternatives"].as_array().expect("a list");
    assert!(found.len() >= 2, "{object}");
    assert!(found.iter().all(|one| found.iter().filter(|other| other["text"] == one["text"]).count() == 1));
}

#[test]
fn mistakes_are_one_line() {
    let folder = Folder::new();
    let file = folder.write("x.py", "a\n");
    let binary = folder.write("binary", b"\xff\xfe");
    let gemma_demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/gemma/demo");
    let gemma_demo = gemma_demo.to_str().expect("UTF-8");
    for (arguments, word) in [
        (&["infill"][..], "required"),
        (&["infill", &file], "--at"),
        (&["infill", &file, "--at", "3:1"], "line 3"),
        (&["infill", &file, "--at", "1:3"], "column 3"),
        (&["infill", &file, "--at", "0:1"], "LINE:COLUMN"),
        (&["infill", "/nonexistent.py", "--at", "1:1"], "/nonexistent.py"),
        (&["infill", &binary, "--at", "1:1"], "UTF-8"),
        (&["infill", "--prefix-file", "-", "--suffix-file", "-"], "standard input"),
        (&["infill", &file, "--at", "1:1", "--budget", "4"], "at least"),
        (&["infill", &file, "--at", "1:1", "--time-limit", "0"], "seconds"),
        (&["infill", &file, "--at", "1:1", "--order", "mps"], "psm"),
        (&["infill", &file, "--at", "1:1", "--write", "--json"], "--json"),
        (&["infill", &file, "--at", "1:1", "--model", gemma_demo], "infilling tokens"),
        (&["infill", &file, "--at", "1:1", "--model", "/nonexistent"], "/nonexistent"),
        (&["eval", "infilling", &file], "line 1"),
        (&["eval", "infilling", "/nonexistent.jsonl"], "/nonexistent.jsonl"),
        (&["eval", "cooking", &file], "cooking"),
    ] {
        let line = refusal(&mut gemma(arguments.iter().copied()));
        assert!(line.contains(word), "{word:?} in {line}");
    }
    assert_eq!(fs::read_to_string(&file).expect("there"), "a\n", "nothing was written");
}

/// Two tasks that the demo solves, and one that it does not.
fn benchmark() -> String {
    let task = |id: &str, solution: &str, test: &str| {
        let test = format!("def check(candidate):\n    {test}\n");
        let task = json!({
            "task_id": id, "prompt": BEFORE, "suffix": AFTER, "canonical_solution": solution, "test": test,
            "entry_point": "sum_prices",
        });
        format!("{task}\n")
    };
    [
        task("a", MIDDLE, "assert candidate([1, 2]) == 3"),
        task("b", "total", "assert candidate([1, 2]) == 4"),
        task("c", "nothing", "while True: pass"),
    ]
    .concat()
}

#[test]
fn a_benchmark_is_counted_and_goes_on_where_it_stopped() {
    let folder = Folder::new();
    let file = folder.write("tasks.jsonl", benchmark());
    let out = folder.path("out.jsonl");
    let out = out.to_str().expect("UTF-8");
    let counts = |summary: &Value| ["tasks", "exact", "prefix"].map(|name| summary[name].as_u64());
    let first = printed_json(&mut gemma(["eval", "infilling", &file, "--out", out, "--limit", "2", "--json"]));
    assert_eq!(counts(&first), [Some(2), Some(1), Some(2)], "{first}");
    let before = fs::read_to_string(out).expect("written");
    assert_eq!(before.lines().count(), 2);
    // cut off in the middle of a line
    fs::write(out, &before[..before.len() - 10]).expect("written");
    let all = printed_json(&mut gemma(["eval", "infilling", &file, "--out", out, "--json"]));
    assert_eq!(counts(&all), [Some(3), Some(1), Some(2)], "{all}");
    let after = fs::read_to_string(out).expect("written");
    assert_eq!(after.lines().count(), 3);
    assert_eq!(after.lines().next(), before.lines().next(), "what was there is not done again");
    assert_eq!(all["tested"], Value::Null, "nothing is executed without being asked for");
    let table = printed(&mut gemma(["eval", "infilling", &file, "--out", out]));
    assert!(table.contains("exact") && table.contains("33.3") && !table.contains("tests"), "{table}");
}

#[test]
fn tests_are_run_in_processes_that_end() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let folder = Folder::new();
    let file = folder.write("tasks.jsonl", benchmark());
    let out = folder.path("out.jsonl");
    let summary = printed_json(&mut gemma([
        "eval",
        "infilling",
        &file,
        "--run-tests",
        "--test-time",
        "2",
        "--out",
        out.to_str().expect("UTF-8"),
        "--json",
    ]));
    assert_eq!((summary["tested"].as_u64(), summary["passed"].as_u64()), (Some(3), Some(1)), "{summary}");
    let lines = fs::read_to_string(out).expect("written");
    let reasons: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["reason"].clone()).collect();
    assert_eq!(reasons, [Value::Null, json!("AssertionError"), json!("out of time")]);
    let line = refusal(&mut gemma(["eval", "infilling", &file, "--run-tests", "--python", "/nonexistent/python"]));
    assert!(line.contains("/nonexistent/python"), "{line}");
}

#[test]
fn an_editor_talks_to_the_program() {
    let mut child = gemma(["lsp", "--debounce", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut to_server = child.stdin.take().expect("piped");
    let mut from_server = BufReader::new(child.stdout.take().expect("piped"));
    let mut send = |message: Value| {
        let body = message.to_string();
        write!(to_server, "Content-Length: {}\r\n\r\n{body}", body.len()).expect("written");
    };
    let mut answer = |id: u64| loop {
        let mut line = String::new();
        from_server.read_line(&mut line).expect("read");
        let length: usize = line.trim().strip_prefix("Content-Length: ").expect("a header").parse().expect("a number");
        from_server.read_line(&mut line).expect("read");
        let mut body = vec![0; length];
        from_server.read_exact(&mut body).expect("read");
        let message: Value = serde_json::from_slice(&body).expect("JSON");
        if message["id"].as_u64() == Some(id) && message.get("method").is_none() {
            return message;
        }
    };
    send(json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": { "capabilities": {} } }));
    assert_eq!(answer(1)["result"]["serverInfo"]["name"], "gemma");
    let document = json!({ "uri": "file:///x/prices.py", "languageId": "python", "version": 1, "text": format!("{BEFORE}{AFTER}") });
    send(json!({ "jsonrpc": "2.0", "method": "textDocument/didOpen", "params": { "textDocument": document } }));
    send(json!({
        "jsonrpc": "2.0", "id": 2, "method": "textDocument/inlineCompletion",
        "params": {
            "textDocument": { "uri": "file:///x/prices.py" }, "position": { "line": 4, "character": 8 },
            "context": { "triggerKind": 1 },
        },
    }));
    assert_eq!(answer(2)["result"]["items"][0]["insertText"], MIDDLE);
    send(json!({ "jsonrpc": "2.0", "id": 3, "method": "shutdown" }));
    answer(3);
    send(json!({ "jsonrpc": "2.0", "method": "exit" }));
    assert!(child.wait().expect("it ends").success());
}

/// Presses Ctrl-L behind line 5 and writes the buffer once it has changed.
const DRIVER: &str = r#"
vim.wait(20000, function()
  for _, client in pairs((vim.lsp.get_clients or vim.lsp.get_active_clients)()) do
    if client.initialized then return true end
  end
end)
vim.api.nvim_win_set_cursor(0, { 5, 7 })
local before = vim.api.nvim_buf_get_changedtick(0)
vim.api.nvim_feedkeys(vim.api.nvim_replace_termcodes('A<C-l>', true, false, true), 'xt', false)
vim.wait(60000, function() return vim.api.nvim_buf_get_changedtick(0) ~= before end)
local cursor = vim.api.nvim_win_get_cursor(0)
vim.fn.writefile({ cursor[1] .. ' ' .. cursor[2] }, 'cursor')
vim.cmd('silent write! | qall!')
"#;

fn neovim() -> Option<Command> {
    let version = Command::new("nvim").arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let minor = version.strip_prefix("NVIM v0.")?.split('.').next()?.parse::<u32>().ok()?;
    (7..=11).contains(&minor).then(|| Command::new("nvim"))
}

#[test]
fn the_documented_recipe_inserts_the_whole_completion() {
    let Some(mut neovim) = neovim() else {
        return println!("skipped: there is no nvim of version 0.7 to 0.11 on the path");
    };
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/editors.md")).expect("a page");
    let recipe = page.split("```lua\n").find(|part| part.contains("start_client")).expect("the recipe");
    let recipe = recipe.split("```").next().expect("a block of code");
    // the demo model answers
    let model = ", '--model', 'google/codegemma-2b', '--precision', 'q4_0'";
    assert!(recipe.contains(model), "{recipe}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    write("init.lua", &recipe.replace(model, ""));
    write("driver.lua", DRIVER);
    write("prices.py", &format!("{BEFORE}{AFTER}"));
    // the program of these tests is the `gemma` on the path
    let program = gemma([]);
    let folder_of_program = Path::new(program.get_program()).parent().expect("a folder").to_owned();
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::env::join_paths([folder_of_program].into_iter().chain(std::env::split_paths(&paths)));
    let output = neovim
        .args(["--headless", "--clean", "-n", "-u", "init.lua", "prices.py", "-c", "luafile driver.lua"])
        .current_dir(folder.path())
        .env("PATH", paths.expect("paths without separators"))
        .env("HOME", folder.path())
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::null())
        .output()
        .expect("Neovim starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let text = fs::read_to_string(folder.path().join("prices.py")).expect("written by Neovim");
    assert_eq!(text, format!("{BEFORE}{MIDDLE}{AFTER}"), "{said}");
    let cursor = fs::read_to_string(folder.path().join("cursor")).expect("written by Neovim");
    let (row, column) = cursor.trim().split_once(' ').expect("a row and a column");
    // normal mode stands on the last character
    assert_eq!((row, column.parse::<usize>().expect("a number")), ("5", 8 + MIDDLE.len() - 1), "{said}");
}
