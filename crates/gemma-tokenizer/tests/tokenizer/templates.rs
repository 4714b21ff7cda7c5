//! Chat templates: renderings of released ones, and programs of strangers, which end soon and with a sentence.

use std::time::{Duration, Instant};

use gemma_tokenizer::{ChatOptions, ChatTemplate, Error, Turn};
use serde_json::Value;

fn render(source: &str) -> Result<String, Error> {
    ChatTemplate::from_jinja(source).render(&[Turn::user("hi")], true).map(|chat| chat.text())
}

#[test]
fn renderings_of_newer_templates() {
    let Some(shared) = std::env::var_os("GEMMA_TEST_SHARED") else {
        println!("skipped: GEMMA_TEST_SHARED is not set");
        return;
    };
    let folder = std::path::Path::new(&shared).join("reference/newer/newer_chat");
    let cases: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let mut checked = 0;
    for (template, cases) in cases.as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(format!("{template}.jinja"))).unwrap();
        let own = ChatTemplate::from_jinja(&source);
        for case in cases.as_array().unwrap() {
            let turns: Vec<Turn> =
                case["messages"].as_array().unwrap().iter().map(|message| Turn::from_json(message).unwrap()).collect();
            let options = ChatOptions {
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                tools: case["tools"].as_array().cloned().unwrap_or_default(),
                thinking: case["enable_thinking"].as_bool(),
                merge_system: false,
            };
            let builtin = (template == "gemma3").then(ChatTemplate::builtin);
            for renderer in [&own].into_iter().chain(&builtin) {
                let rendered = renderer.render_with(&turns, &options);
                match (case["error"].as_str(), rendered) {
                    (None, Ok(chat)) => assert_eq!(chat.text(), case["text"].as_str().unwrap(), "{template} {case}"),
                    (Some(expected), Err(Error::ChatRefused { reason })) => assert_eq!(reason, expected),
                    (_, other) => panic!("{template} {case}: {other:?}"),
                }
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 172 + 24);
}

#[test]
fn what_other_engines_add_is_rendered() {
    let same = |source: &str, expected: &str| assert_eq!(render(source).unwrap(), expected, "{source}");
    same("{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%}{% endfor %}", "hi");
    same("{% generation %}a{% endgeneration %}b", "ab");
    assert_eq!(render("{{ strftime_now('%Y-%m-%d') }}").unwrap().len(), 10);
    same("{{ {'b': [1, 2.0, none, true], 'a': '<é\"'} | tojson }}", "{\"b\": [1, 2.0, null, true], \"a\": \"<é\\\"\"}");
    same("{{ [1, {'a': 2}] | tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": 2\n  }\n]");
    same(
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "023",
    );
    // as Python prints, not as other languages do
    same("{{ [true, none, 1.0, 1e20, 'a\\'b', (1,), {'k': 2}] }}", "[True, None, 1.0, 1e+20, \"a'b\", (1,), {'k': 2}]");
    same("{{ 7 // -2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ 1 ~ 2 * 3 }}", "-4 2 3.5 8 16");
    same(
        "{{ 'a,b'.split(',') }} {{ 'abc'[::-1] }} {{ 'abc'[-2:] }} {{ '%05.1f|%-3s|' % (2.25, 'x') }}",
        "['a', 'b'] cba bc 002.2|x  |",
    );
    same("{{ x is defined }} {{ x | default('d') }} {{ x.y is defined if x else 'none' }}", "False d none");
    same(
        "{% macro m(a, b='c') %}{{ a }}{{ b }}{{ caller() if caller else '' }}{% endmacro %}{{ m(1) }}{% call m(2) %}x{% endcall %}",
        "1c2cx",
    );
    same("{% set ns = namespace(n=0) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "3");
    same(
        "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ loop.index }}{{ k }}{{ v }}{{ ',' if not loop.last }}{% endfor %}",
        "1a2,2b1",
    );
    same("  {% if true %}\n  a\n  {%- endif %}\n{# c #}\nb\n", "  ab");
    same(
        "{% raw %}{{ x }}{% endraw %}{% filter upper %}a{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}",
        "{{ x }}A1",
    );
}

/// Every kind of template that was seen to overflow the stack, to run without end or to fill memory, and its relations.
#[test]
fn hostile_templates_end_soon_and_with_a_sentence() {
    let mut templates: Vec<String> = [
        // lists that hold themselves, and values doubled forty times
        "{% set n = namespace() %}{% set n.s = n %}{{ n }}",
        "{% set n = namespace() %}{% set n.s = [n] %}{{ n | pprint }}",
        "{% set n = namespace() %}{% set n.s = {'a': namespace(b=n)} %}{{ n.s | tojson }}",
        "{% for x in [1] %}{% set n = namespace(l=loop) %}{{ n }}{% endfor %}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}{{ n.s | tojson }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ n.s == n.s }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s < n.s }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s ~ '' }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ '%s' % [n.s] }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s in [n.s] }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ [n.s, n.s] | sort }}",
        "{% set n = namespace(s=1) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ [n.s] | join }}",
        "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | length }}",
        "{% set n = namespace(s=1) %}{% for i in range(5000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s | replace('a', 'aa') %}{% endfor %}{{ n.s }}",
        // wide things from a few letters
        "{{ 'x' * 99999999 }}",
        "{{ [1] * 100000000 == [1] * 100000000 }}",
        "{{ [[1] * 1000000] * 1000000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a'.zfill(10 ** 9) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ ('a\n' * 100000) | indent(100000, true) }}",
        "{{ [[[[1]]]] | tojson(indent=999999999) }}",
        "{{ range(10 ** 12) | list }}",
        "{{ range(10 ** 12) | batch(2) | list }}",
        "{{ [1] | slice(10 ** 9) | list }}",
        "{{ [1] | batch(10 ** 9, 0) | list }}",
        "{{ 10 ** 10 ** 10 }}",
        // work without end
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(x) %}{{ m([x]) }}{{ m([x]) }}{% endmacro %}{{ m(1) }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro m() %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}",
        "{{ raise_exception('x' * 5000000) }}",
        "{{ raise_exception('\x1b[2J') }}{{ bos_token['\x0f'] }}",
        "{{ bos_token['\x0f'].x.y }}",
        "{% for x in range(3) recursive %}{{ loop([x]) }}{% endfor %}",
        "{{ ''.__class__.__mro__ }}{{ x.__init__.__globals__ }}",
        "{{ strftime_now('%A' * 1000000) | length }}{{ strftime_now('%A' * 100000000) }}",
    ]
    .map(str::to_owned)
    .to_vec();
    // chains and nests of everything that can be chained or nested
    for part in [
        "1+",
        "1-",
        "1~",
        "1*",
        "1//",
        "1%",
        "1**",
        "1 and ",
        "1 or ",
        "1<",
        "1 == ",
        "1 in ",
        "not ",
        "-",
        "+",
        "1 if 1 else ",
        "x.",
        "x is y is ",
    ] {
        templates.push(format!("{{{{ {}1 }}}}", part.repeat(30_000)));
    }
    for part in ["|e", ".a", "[0]", "()", "[0:1]", " is string", ", 1", " 'a'"] {
        templates.push(format!("{{{{ 'a'{} }}}}", part.repeat(30_000)));
    }
    for [open, close] in
        [["(", ")"], ["[", "]"], ["{1:", "}"], ["a(", ")"], ["a[", "]"], ["1|e(", ")"], ["1 if (", ")"]]
    {
        templates.push(format!("{{{{ {}1{} }}}}", open.repeat(30_000), close.repeat(30_000)));
    }
    templates.push(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(30_000)));
    for [open, close] in [
        ["{% if 1 %}", "{% endif %}"],
        ["{% for i in [1] %}", "{% endfor %}"],
        ["{% macro a() %}", "{% endmacro %}"],
        ["{% set a %}", "{% endset %}"],
        ["{% filter upper %}", "{% endfilter %}"],
        ["{% with %}", "{% endwith %}"],
        ["{% generation %}", "{% endgeneration %}"],
    ] {
        templates.push(format!("{}1{}", open.repeat(20_000), close.repeat(20_000)));
        templates.push(open.repeat(20_000));
    }
    templates.push("{".repeat(1_000_000));
    templates.push("{%".repeat(500_000));
    templates.push("{#".repeat(500_000));
    templates.push("{% raw %}".repeat(100_000));
    templates.push("x".repeat(2_000_000));
    for source in &templates {
        let began = Instant::now();
        let result = render(source);
        let name: String = source.chars().take(80).collect();
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: {:?}", began.elapsed());
        match result {
            Ok(text) => assert!(text.len() < 10_000_000, "{name}"),
            Err(error) => {
                let sentence = error.to_string();
                assert!(sentence.len() < 500 && !sentence.contains("fault of its own"), "{name}: {sentence}");
                assert!(!sentence.contains(char::is_control), "{name}: {sentence:?}");
            }
        }
    }
}

#[test]
fn a_long_conversation_has_budget_enough() {
    let template = "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim }}\
        {% for other in messages %}{% if other == m %}{% endif %}{% endfor %}{% endfor %}";
    let turns: Vec<Turn> =
        (0..501).map(|i| if i % 2 == 0 { Turn::user("word ".repeat(1000)) } else { Turn::model("yes") }).collect();
    assert!(ChatTemplate::from_jinja(template).render(&turns, true).is_ok());
}

/// `expressions.py` beside this file says where the expected texts come from.
#[test]
fn expressions_are_what_jinja_makes_of_them() {
    let cases: Vec<(String, Option<String>)> = serde_json::from_str(include_str!("expressions.json")).unwrap();
    assert!(cases.len() > 2000, "{}", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(expression, expected)| {
            let rendered = render(&format!("{{{{ {expression} }}}}"));
            match (expected, &rendered) {
                (Some(expected), Ok(text)) if expected == text => None,
                // what is an error there may have a value here
                (None, _) => None,
                _ => Some(format!("{expression}: {expected:?}, not {rendered:?}")),
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
