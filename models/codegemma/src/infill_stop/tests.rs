//! Each rule by examples, and what holds for all of them.

use super::*;

fn middle(prefix: &str, suffix: &str, stop_rule: InfillStop, language: Language) -> StopRules {
    let infill = Infill { language: Some(language), ..Infill::new(prefix, suffix) };
    StopRules::new(&infill, stop_rule)
}

/// What is kept of a text that came letter by letter; checks that nothing is shown that is cut afterwards.
fn kept(rules: &StopRules, text: &str) -> String {
    let mut shown = 0;
    let mut so_far = String::new();
    for letter in text.chars() {
        so_far.push(letter);
        if let Some(end) = rules.end(&so_far) {
            assert!(shown <= end, "{:?} was shown of {so_far:?}, which ends at {end}", &so_far[..shown]);
            return so_far[..end].to_owned();
        }
        let safe = rules.safe(&so_far);
        shown = shown.max(safe);
    }
    let end = rules.finish(&so_far);
    assert!(shown <= end, "{:?} was shown of {so_far:?}, which ends at {end}", &so_far[..shown]);
    so_far[..end].to_owned()
}

fn free(prefix: &str, suffix: &str, text: &str) -> String {
    kept(&middle(prefix, suffix, InfillStop::Free, Language::Other), text)
}

#[test]
fn a_repeated_suffix_is_trimmed() {
    assert_eq!(free("    total = 0\n", "    return total\n", "    total += 1\n    return total\n"), "    total += 1\n");
    assert_eq!(free("    total = ", "\n    return total", "5\n    return total"), "5");
    // part of it
    assert_eq!(free("    total = ", "\n    return total", "5\n    return"), "5");
    assert_eq!(free("x = foo(", "a, b)", "a, b"), "");
}

#[test]
fn text_that_runs_on_after_the_suffix_is_cut() {
    let text = "5\n    return total\n\ndef other():\n    pass";
    assert_eq!(free("    total = ", "\n    return total\n", text), "5");
    assert_eq!(free("", "import sys\n", "import os\nimport sys\nimport re\n"), "import os\n");
}

#[test]
fn a_line_that_only_ends_like_the_suffix_stays() {
    let text = "    if x:\n        return total\n    x = 1\n";
    assert_eq!(free("def f():\n", "    return total\n", text), text);
}

#[test]
fn brackets_are_trimmed_only_where_there_is_one_too_many() {
    assert_eq!(free("print(", ")", "x)"), "x");
    assert_eq!(free("print(f(", ")", "x)"), "x)");
    assert_eq!(free("a = [", "]\n", "1, 2]"), "1, 2");
}

#[test]
fn white_space_and_single_letters_are_no_repetition() {
    assert_eq!(free("a", "\nb\n", "c\n"), "c\n");
    assert_eq!(free("x = ", "x", "x"), "x");
    assert_eq!(free("a", " ", "b "), "b ");
}

#[test]
fn one_line_ends_with_the_line() {
    let line = |prefix, suffix, text| kept(&middle(prefix, suffix, InfillStop::Line, Language::Other), text);
    assert_eq!(line("x = ", "\ny = 2", "1\nz = 3"), "1");
    assert_eq!(line("x = ", "\r\ny = 2", "1\r\nz = 3"), "1");
    assert_eq!(line("f():", "", "\n    return 1\n    more"), "\n    return 1");
    // the suffix begins with a line of its own: the line break is needed
    assert_eq!(line("a\n", "b\n", "    x\n    y\n"), "    x\n");
    assert_eq!(line("x = ", "", "1"), "1");
}

#[test]
fn an_indented_block_ends_where_less_is_indented() {
    let block = |prefix, suffix, text| kept(&middle(prefix, suffix, InfillStop::Block, Language::Indented), text);
    let text = "\n    total = 0\n\n    return total\n\n\ndef next():\n    pass";
    assert_eq!(block("def f():", "", text), "\n    total = 0\n\n    return total");
    assert_eq!(block("def f():\n    ", "\n\nx", "a = 1\n    b = 2\n\nclass C:"), "a = 1\n    b = 2");
    assert_eq!(block("def f():\n", "x = 1\n", "    a = 1\n    b = 2\ny = 3\n"), "    a = 1\n    b = 2\n");
    // deeper lines belong to it
    let text = "for x in y:\n        z\n    w";
    assert_eq!(block("def f():\n    ", "", text), text);
}

#[test]
fn a_bracketed_block_ends_with_its_bracket() {
    let block = |prefix, suffix, text| kept(&middle(prefix, suffix, InfillStop::Block, Language::Bracketed), text);
    // the bracket is still missing
    assert_eq!(block("function f(x) {\n    ", "", "return g(x);\n}\nf(1);"), "return g(x);\n}");
    // the program has it
    assert_eq!(block("function f(x) {\n    ", "\n}\n", "if (x) { y(); }\n}\nf(1);"), "if (x) { y(); }");
    // not one in a text
    assert_eq!(block("f() {\n    ", "", "s = \"}\"; t = '\\'}'; }"), "s = \"}\"; t = '\\'}'; }");
    assert_eq!(block("", "", "f() { } g() { }"), "f() { } g() { }");
}

#[test]
fn what_was_shown_is_never_taken_back() {
    let parts =
        ["\n", "    ", "return total", "total", ")", "}", "{", " ", "x", "# é🦀\n", "\r\n", "def f():", "\"", "\t"];
    let mut state = 1_u64;
    let mut draw = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    for _ in 0..3_000 {
        let mut text = |most: usize| (0..draw(most)).map(|_| parts[draw(parts.len())]).collect::<String>();
        let (prefix, suffix, said) = (text(6), text(8), text(12));
        let stop_rule = [InfillStop::Free, InfillStop::Line, InfillStop::Block][draw(3)];
        let language = [Language::Indented, Language::Bracketed, Language::Other][draw(3)];
        let rules = middle(&prefix, &suffix, stop_rule, language);
        let kept = kept(&rules, &said);
        assert!(said.starts_with(&kept));
    }
}
