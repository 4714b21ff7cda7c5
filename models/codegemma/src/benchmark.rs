//! Gaps with known solutions, in the format of HumanEval-Infilling (Bavarian et al. 2022), and how a filling is judged.

use crate::Infill;
use serde::{Deserialize, Serialize};

/// One hole of a benchmark; a line of its file. Further fields are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Task {
    /// Its name, which no other task has.
    pub task_id: String,
    /// The program before the hole.
    pub prompt: String,
    /// The program after the hole.
    pub suffix: String,
    /// What stood in the hole.
    pub canonical_solution: String,
    /// A program that defines `check(candidate)`.
    #[serde(default)]
    pub test: String,
    /// The function that `check` is called with.
    #[serde(default)]
    pub entry_point: String,
}

/// How near a filling came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// It is the solution, white space at both ends aside.
    pub exact: bool,
    /// It begins with the solution, white space at both ends aside; it may run on.
    pub prefix: bool,
}

impl Task {
    /// The hole. The programs of the benchmark are Python.
    pub fn infill(&self) -> Infill {
        let language = Some(crate::Language::Indented);
        Infill { language, ..Infill::new(&self.prompt, &self.suffix) }
    }

    /// Compares a filling with the solution.
    pub fn judge(&self, middle: &str) -> Match {
        let (middle, solution) = (middle.trim(), self.canonical_solution.trim());
        Match { exact: middle == solution, prefix: middle.starts_with(solution) }
    }

    /// The program that runs the task's test on a filling; `None` when the task has no test.
    pub fn program(&self, middle: &str) -> Option<String> {
        if self.test.trim().is_empty() {
            return None;
        }
        let Self { prompt, suffix, test, entry_point, .. } = self;
        let call = if entry_point.is_empty() { String::new() } else { format!("\ncheck({entry_point})") };
        Some(format!("{prompt}{middle}{suffix}\n{test}{call}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        Task {
            task_id: "a/1".into(),
            prompt: "def f(x):\n".into(),
            suffix: "    return y\n".into(),
            canonical_solution: "    y = x\n".into(),
            test: "def check(candidate):\n    assert candidate(1) == 1\n".into(),
            entry_point: "f".into(),
        }
    }

    #[test]
    fn exact_means_all_of_it_and_prefix_may_run_on() {
        let judge = |middle| {
            let Match { exact, prefix } = task().judge(middle);
            (exact, prefix)
        };
        assert_eq!(judge("    y = x\n"), (true, true));
        assert_eq!(judge("y = x"), (true, true));
        assert_eq!(judge("    y = x\n    z = 2\n"), (false, true));
        assert_eq!(judge("    y ="), (false, false));
        assert_eq!(judge(""), (false, false));
    }

    #[test]
    fn the_program_is_whole_and_calls_the_check() {
        let program = task().program("    y = x\n").expect("the task has a test");
        assert!(program.starts_with("def f(x):\n    y = x\n    return y\n\ndef check("), "{program}");
        assert!(program.ends_with("\n\ncheck(f)\n"), "{program}");
        assert_eq!(Task { test: " \n".into(), ..task() }.program("x"), None);
    }

    #[test]
    fn further_fields_do_not_matter_and_missing_ones_do() {
        let line = r#"{"task_id":"t","prompt":"a","suffix":"b","canonical_solution":"c","more":1}"#;
        let task: Task = serde_json::from_str(line).expect("a task");
        assert_eq!((task.test.as_str(), task.infill().prefix.as_str()), ("", "a"));
        assert!(serde_json::from_str::<Task>(r#"{"task_id":"t","prompt":"a"}"#).is_err());
    }
}
