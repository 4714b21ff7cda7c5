//! The deployment files against what they name.

use serde::Deserialize;
use serde_json::Value;

use crate::fake::Fake;
use crate::wire::{send, server};

fn documents() -> Vec<Value> {
    let yaml = include_str!("../../deploy/kubernetes.yaml");
    serde_yaml_ng::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).expect("YAML")).collect()
}

#[tokio::test]
async fn the_manifests_fit_each_other_and_the_server() {
    let documents = documents();
    let of =
        |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("{kind}"));
    let (deployment, service, scaler) = (of("Deployment"), of("Service"), of("HorizontalPodAutoscaler"));
    let pod = &deployment["spec"]["template"];
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"]);
    assert_eq!(service["spec"]["selector"], pod["metadata"]["labels"]);
    assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], deployment["metadata"]["name"]);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(service["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
    let arguments: Vec<&str> =
        container["args"].as_array().expect("arguments").iter().filter_map(Value::as_str).collect();
    let after = |flag: &str| arguments[1 + arguments.iter().position(|argument| *argument == flag).expect(flag)];
    assert_eq!(after("--port").parse::<i64>().ok(), container["ports"][0]["containerPort"].as_i64());
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    assert!(grace > after("--shutdown-timeout").parse::<u64>().expect("seconds") + 5);
    let server = server(Fake::new("x"));
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().expect(probe);
        assert_eq!(send(&server, "GET", path, "").await.0, 200, "{probe}");
    }
    let metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"].as_str().expect("a metric");
    assert!(send(&server, "GET", "/metrics", "").await.1.contains(&format!("\n{metric} ")), "{metric}");
}
