//! What is accepted, what is refused, and in which words.

use gemma_generate::GenerateOptions;
use gemma_model::{ActivationPrecision, CachePrecision};

use super::*;

fn parsed(line: &str) -> Verb {
    Arguments::try_parse_from(line.split(' ')).expect(line).verb
}

fn refusal(line: &str) -> String {
    let words: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
    one_line(&Arguments::try_parse_from(line.split(' ')).expect_err(line), &words)
}

#[test]
fn the_definition_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn every_verb_has_examples_and_every_flag_an_explanation() {
    for verb in Arguments::command().get_subcommands() {
        let name = verb.get_name();
        let examples = verb.get_after_help().expect(name).to_string();
        assert!(examples.contains(&format!("gemma {name}")), "{name} shows no example of itself");
        assert!(verb.get_about().is_some(), "{name}");
        for flag in verb.get_arguments() {
            assert!(flag.get_help().is_some(), "{name} {}", flag.get_id());
        }
    }
}

#[test]
fn flags_that_are_not_given_are_the_library_defaults() {
    let Verb::Generate(args) = parsed("gemma generate x") else { panic!("another verb") };
    assert_eq!(args.sampling.options(), GenerateOptions::default());
}

#[test]
fn sampling_flags_arrive() {
    let line = "gemma generate x -n 3 --temperature 0 --top-k 0 --top-p 1 --min-p 0.1 --seed 7 --stop a --stop b \
                --ignore-eos --repetition-penalty 1.1";
    let Verb::Generate(args) = parsed(line) else { panic!("another verb") };
    let expected = GenerateOptions {
        max_tokens: 3,
        temperature: 0.0,
        top_k: None,
        top_p: None,
        min_p: Some(0.1),
        repetition_penalty: 1.1,
        seed: Some(7),
        stop: vec!["a".into(), "b".into()],
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    assert_eq!(args.sampling.options(), expected);
}

#[test]
fn numbers_that_mean_nothing_are_left_for_the_library_to_refuse() {
    let Verb::Generate(args) = parsed("gemma generate x --temperature NaN") else { panic!("another verb") };
    assert!(args.sampling.options().check().is_err());
    let Verb::Generate(args) = parsed("gemma generate x --temperature -1") else { panic!("another verb") };
    assert!(args.sampling.options().check().is_err());
}

#[test]
fn exactly_one_source_of_text() {
    assert!(refusal("gemma generate").contains("required"));
    assert!(refusal("gemma generate x --tokens-file y").contains("cannot be used with"));
    assert!(refusal("gemma generate --prompt-file x --tokens-file y").contains("cannot be used with"));
    assert!(refusal("gemma score").contains("required"));
}

#[test]
fn mistakes_are_one_line_with_a_tip() {
    let line = refusal("gemma generate x --max-token 3");
    assert!(line.starts_with("error: ") && line.contains("--max-tokens") && !line.contains('\n'), "{line}");
    assert!(!refusal("gemma logits").contains('\n'));
    assert!(refusal("gemma generate x --precision int3").contains("int3"));
    assert!(refusal("gemma generate x --backend abacus").contains("abacus"));
    assert!(refusal("gemma generate x --threads 0").contains("--threads"));
    assert!(refusal("gemma bench --model a --shape b").contains("cannot be used with"));
    assert!(refusal("gemma bench --repeat 0").ends_with("`gemma bench --help` shows what can be given"));
    assert!(refusal("gemma embed --dimensions 0").contains("must be an integer from 1"));
    assert!(refusal("gemma convert a b --format Q4_K_M").contains("q5_k and q6_k; the nearest is q4_k"));
    assert!(refusal("gemma tokenize --foo").contains("no such flag"));
}

#[test]
fn a_text_to_tokenize_may_begin_with_a_hyphen() {
    let Verb::Tokenize(args) = parsed("gemma tokenize --json -x") else { panic!("another verb") };
    assert_eq!((args.text.as_deref(), args.json), (Some("-x"), true));
}

#[test]
fn activations_are_exact_or_fast_and_not_both() {
    let activations = |line: &str| parsed(line).compute().expect("a verb that computes").activations();
    assert_eq!(activations("gemma bench --exact-activations"), ActivationPrecision::F32);
    assert_eq!(activations("gemma score --fast-activations x"), ActivationPrecision::Int8);
    for verb in ["generate x", "chat", "logits --tokens-file x --out y", "score x", "bench"] {
        assert_eq!(activations(&format!("gemma {verb}")), ActivationPrecision::default());
        assert_eq!(activations(&format!("gemma {verb} --exact-activations")), ActivationPrecision::F32);
    }
    assert!(refusal("gemma chat --exact-activations --fast-activations").contains("cannot be used with"));
}

#[test]
fn the_cache_is_f32_or_f16() {
    let cache = |line: &str| parsed(line).compute().expect("a verb that computes").cache_precision;
    assert_eq!(cache("gemma chat"), CachePrecision::F32);
    assert_eq!(cache("gemma generate --cache-precision f16 x"), CachePrecision::F16);
    assert!(refusal("gemma chat --cache-precision f8").contains("f32, f16 or q8_0"));
    assert_eq!(cache("gemma chat --cache-type q8_0"), CachePrecision::Q8_0);
}

/// The deployment files of the server: what they start, ask and measure exists.
#[cfg(feature = "serve")]
mod deployment {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    const KUBERNETES: &str = include_str!("../../../gemma-serve/deploy/kubernetes.yaml");
    const ENVOY: &str = include_str!("../../../gemma-serve/deploy/envoy.yaml");
    const UNIT: &str = include_str!("../../../gemma-serve/deploy/gemma.service");
    const DOCKERFILE: &str = include_str!("../../../gemma-serve/deploy/Dockerfile");
    /// Where the names of the metrics and the paths stand.
    const SERVER: [&str; 2] =
        [include_str!("../../../gemma-serve/src/http/metrics.rs"), include_str!("../../../gemma-serve/src/http.rs")];

    fn documents(text: &str) -> Vec<Value> {
        let read = |document| Value::deserialize(document).expect("YAML");
        serde_yaml_ng::Deserializer::from_str(text).map(read).collect()
    }

    fn starts(words: impl IntoIterator<Item = String>) {
        let words: Vec<String> = words.into_iter().collect();
        let parsed = Arguments::try_parse_from(["gemma".to_owned()].into_iter().chain(words.iter().cloned()));
        assert!(matches!(parsed.map(|arguments| arguments.verb), Ok(Verb::Serve(_))), "{words:?}");
    }

    fn words(value: &Value) -> Vec<String> {
        value.as_array().expect("a list").iter().map(|word| word.as_str().expect("a text").to_owned()).collect()
    }

    #[test]
    fn kubernetes_starts_probes_and_scales_the_server() {
        let documents = documents(KUBERNETES);
        let kinds: Vec<&str> = documents.iter().filter_map(|document| document["kind"].as_str()).collect();
        assert_eq!(kinds, ["Deployment", "Service", "HorizontalPodAutoscaler"]);
        let [deployment, service, scaler] = &documents[..] else { panic!("three documents") };
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        starts(words(&container["args"]));
        let port = &container["ports"][0];
        assert!(words(&container["args"]).contains(&port["containerPort"].to_string()));
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let asked = &container[probe]["httpGet"];
            assert_eq!(asked["port"], port["name"], "{probe}");
            assert!(SERVER[1].contains(&format!(".route({}", asked["path"])), "{probe}");
        }
        // the pod may end when running answers have
        let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a number");
        let args = words(&container["args"]);
        let limit = args.iter().skip_while(|word| *word != "--shutdown-timeout").nth(1).expect("a limit");
        assert!(grace > limit.parse::<u64>().expect("a number") + 5);
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels, &deployment["spec"]["selector"]["matchLabels"]);
        assert_eq!(labels, &service["spec"]["selector"]);
        assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
        assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], deployment["metadata"]["name"]);
        let metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"].as_str().expect("a name");
        let own = metric.strip_prefix("gemma_").expect("the prefix of our metrics");
        assert!(SERVER[0].contains(&format!("\"{own}\"")), "{metric}");
        for volume in container["volumeMounts"].as_array().expect("a list") {
            let volumes = pod["volumes"].as_array().expect("a list");
            assert!(volumes.iter().any(|other| other["name"] == volume["name"]), "{volume}");
        }
    }

    #[test]
    fn envoy_asks_for_health_where_it_is_answered() {
        let [envoy] = &documents(ENVOY)[..] else { panic!("one document") };
        let cluster = &envoy["static_resources"]["clusters"][0];
        let asked = &cluster["health_checks"][0]["http_health_check"]["path"];
        assert!(SERVER[1].contains(&format!(".route({asked}")), "{asked}");
        let listener = &envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
        let route = &listener["typed_config"]["route_config"]["virtual_hosts"][0]["routes"][0]["route"];
        assert_eq!(route["cluster"], cluster["name"]);
        assert_eq!(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn the_unit_and_the_image_start_the_server() {
        let line = UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/gemma ")).expect("a start");
        starts(line.split(' ').map(str::to_owned));
        let command = DOCKERFILE.lines().find_map(|line| line.strip_prefix("CMD ")).expect("a command");
        starts(words(&serde_json::from_str(command).expect("a list")));
        assert!(DOCKERFILE.lines().any(|line| line == "STOPSIGNAL SIGTERM"));
    }
}

#[test]
fn a_word_that_looks_like_a_flag_and_is_none_is_named() {
    let unknown = |line: &str| super::unknown_flag(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let said = unknown("generate --ctx-size 512 x").expect("generate has no such flag");
    assert!(said.contains("gemma generate has no flag --ctx-size"), "{said}");
    assert!(unknown("chat --ctx-size 512").is_none() && unknown("generate --temp 0 x").is_none());
    assert!(unknown("generate --max-tokens=5 x -- --what").is_none());
    assert!(unknown("generate - -- --what").is_none() && unknown("nothing --what").is_none());
}

#[test]
fn names_of_other_programs_are_understood() {
    let options = |line: &str| match parsed(line) {
        Verb::Generate(args) => args.sampling.options(),
        _ => panic!("{line}"),
    };
    assert_eq!(options("gemma generate x --temp 0").temperature, 0.0);
    assert_eq!(options("gemma generate x --n-predict 7").max_tokens, 7);
    assert_eq!(options("gemma generate x --max-new-tokens 7").max_tokens, 7);
    assert_eq!(options("gemma complete x --repeat-penalty 1.1").repetition_penalty, 1.1);
    assert!(refusal("gemma generate -p Hello").contains("a prompt needs no flag"));
    assert!(refusal("gemma generate").contains("`-` reads standard input"));
    assert!(refusal("gemma generate x --max-tokens -5").contains("it must be an integer from 0"));
    assert!(options("gemma generate x -n -1").max_tokens > 1 << 30);
    let words = |line: &str| as_typed(line.split(' ').map(Into::into).collect());
    assert_eq!(words("gemma help chat"), words("gemma chat --help"));
    assert_eq!(words("gemma chat help"), ["gemma", "chat", "help"]);
    for line in ["gemma list", "gemma ls", "gemma models ls"] {
        assert!(matches!(parsed(line), Verb::Models(_)), "{line}");
    }
}

#[test]
fn a_state_is_gone_on_with_without_a_prompt() {
    let Verb::Generate(args) = parsed("gemma generate --load-state s") else { panic!("another verb") };
    assert!(args.source.prompt.is_none() && args.load_state.is_some());
    assert!(refusal("gemma generate --save-state s").contains("<PROMPT>"));
}

#[test]
fn flags_stand_under_their_own_headings() {
    for (verb, flag, heading) in [
        ("generate", "json", None),
        ("generate", "load_state", None),
        ("generate", "system", Some("Chat format")),
        ("chat", "load", None),
        ("merge", "force", None),
        ("merge", "model", Some("Model")),
        ("ask", "lang", None),
        ("detect", "draw", None),
        ("segment", "mask_decoder", None),
    ] {
        let command = Arguments::command();
        let verb = command.find_subcommand(verb).expect(verb);
        let flag = verb.get_arguments().find(|arg| arg.get_id() == flag).expect(flag);
        assert_eq!(flag.get_help_heading(), heading, "{} {}", verb.get_name(), flag.get_id());
    }
}
