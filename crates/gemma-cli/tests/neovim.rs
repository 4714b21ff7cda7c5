//! The recipe of docs/editors.md in a real Neovim of version 0.7 to 0.11, where there is one.

mod program;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use program::gemma;

/// A hole whose completion has several words.
const BEFORE: &str = "def sum_prices(prices):\n    \"\"\"Return the sum of the prices.\"\"\"\n    total = 0\n    for price in prices:\n        ";
const AFTER: &str = "\n    return total\n";
const MIDDLE: &str = "total += price";

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
