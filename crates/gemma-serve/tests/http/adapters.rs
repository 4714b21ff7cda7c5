//! Adapters that requests choose: by name as vLLM's clients do, by number as llama.cpp's do.

use serde_json::{Value, json};

use crate::fake::Fake;
use crate::wire::{get, post, refused, server};

fn adapted() -> Fake {
    Fake::new("x").with_adapters(&[("poems", 1.0), ("facts", 0.5)])
}

#[tokio::test]
async fn a_name_or_numbers_choose_adapters() {
    let fake = adapted();
    let asked = std::sync::Arc::clone(&fake.asked);
    let server = server(fake);
    let chat = json!([{"role": "user", "content": "a"}]);
    for (path, body, expected) in [
        ("/v1/completions", json!({"prompt": "a"}), None),
        ("/v1/completions", json!({"prompt": "a", "model": "fake/gemma"}), None),
        ("/v1/completions", json!({"prompt": "a", "model": "poems"}), Some(vec![(0, 1.0)])),
        ("/v1/completions", json!({"prompt": "a", "model": "facts", "n": 1}), Some(vec![(1, 0.5)])),
        ("/v1/completions", json!({"prompt": "a", "lora": [{"id": 1, "scale": 0.25}]}), Some(vec![(1, 0.25)])),
        ("/v1/completions", json!({"prompt": "a", "model": "poems", "lora": []}), Some(vec![])),
        (
            "/completion",
            json!({"prompt": "a", "lora": [{"id": 0, "scale": 2}, {"id": 1, "scale": 1}]}),
            Some(vec![(0, 2.0), (1, 1.0)]),
        ),
        ("/infill", json!({"input_prefix": "a", "lora": [{"id": 0, "scale": 1}]}), Some(vec![(0, 1.0)])),
        ("/v1/fim/completions", json!({"prompt": "a", "model": "poems"}), Some(vec![(0, 1.0)])),
        ("/v1/chat/completions", json!({"messages": chat, "model": "facts"}), Some(vec![(1, 0.5)])),
        ("/v1/chat/completions", json!({"messages": chat, "lora": [{"id": 0, "scale": 1}]}), Some(vec![(0, 1.0)])),
        ("/v1/responses", json!({"input": "a", "model": "poems"}), Some(vec![(0, 1.0)])),
        ("/api/generate", json!({"prompt": "a", "model": "poems:latest", "stream": false}), Some(vec![(0, 1.0)])),
        ("/api/chat", json!({"messages": chat, "model": "facts", "stream": false}), Some(vec![(1, 0.5)])),
    ] {
        let reply = post(&server, path, body.clone()).await;
        if let Some(name) = body["model"].as_str().filter(|_| !path.starts_with("/infill")) {
            assert_eq!(reply["model"], name.trim_end_matches(":latest"), "{path} {body}");
        }
        let job = asked.lock().expect("whole").pop().expect("a job");
        assert_eq!(job.adapters, expected, "{path} {body}");
    }
}

#[tokio::test]
async fn adapters_are_listed_with_the_model_that_they_change() {
    let server = server(adapted());
    let models = get(&server, "/v1/models").await;
    let list = models["data"].as_array().expect("a list");
    let of = |name: &str| list.iter().map(|model| model[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), ["fake/gemma", "poems", "facts"]);
    assert_eq!(of("parent"), [Value::Null, json!("fake/gemma"), json!("fake/gemma")]);
    assert_eq!(of("root"), ["fake/gemma", "adapters/poems", "adapters/facts"]);
    assert_eq!(get(&server, "/v1/models/poems").await["parent"], "fake/gemma");
    let adapters = get(&server, "/lora-adapters").await;
    assert_eq!(adapters[1], json!({"id": 1, "path": "adapters/facts", "scale": 0.0, "name": "facts", "strength": 0.5}));
    assert_eq!(get(&server, "/api/tags").await["models"][2]["details"]["parent_model"], "fake/gemma");
    assert_eq!(get(&crate::wire::server(Fake::new("x")), "/lora-adapters").await, json!([]));
}

#[tokio::test]
async fn default_scales_count_for_requests_that_choose_no_adapter() {
    let fake = adapted();
    let asked = std::sync::Arc::clone(&fake.asked);
    let server = server(fake);
    let scales = async || {
        let list = get(&server, "/lora-adapters").await;
        list.as_array().expect("a list").iter().map(|one| one["scale"].as_f64().expect("a number")).collect::<Vec<_>>()
    };
    assert_eq!(scales().await, [0.0, 0.0]);
    let chat = json!([{"role": "user", "content": "a"}]);
    for (set, expected) in [
        (json!([{"id": 0, "scale": 0.5}, {"id": 1, "scale": -2}]), Some(vec![(0, 0.5), (1, -2.0)])),
        // what is left out is off
        (json!([{"id": 1, "scale": 0.25}]), Some(vec![(1, 0.25)])),
        (json!([{"id": 0, "scale": 0}]), None),
        (json!([{"id": 0, "scale": 1}]), Some(vec![(0, 1.0)])),
        (json!([]), None),
    ] {
        assert_eq!(post(&server, "/lora-adapters", set.clone()).await, json!({"success": true}));
        let shown: Vec<f64> = (0..2)
            .map(|id| expected.iter().flatten().find(|(number, _)| *number == id).map_or(0.0, |(_, scale)| *scale))
            .map(f64::from)
            .collect();
        assert_eq!(scales().await, shown, "{set}");
        for (path, body) in [
            ("/v1/completions", json!({"prompt": "a"})),
            ("/v1/completions", json!({"prompt": "a", "model": "fake/gemma"})),
            ("/v1/chat/completions", json!({"messages": chat})),
            ("/v1/responses", json!({"input": "a"})),
            ("/completion", json!({"prompt": "a"})),
            ("/infill", json!({"input_prefix": "a"})),
            ("/v1/fim/completions", json!({"prompt": "a"})),
            ("/api/generate", json!({"prompt": "a", "stream": false})),
            ("/api/chat", json!({"messages": chat, "stream": false})),
        ] {
            let reply = post(&server, path, body).await;
            let job = asked.lock().expect("whole").pop().expect("a job");
            assert_eq!(job.adapters, expected, "{path} after {set}");
            if path == "/completion" {
                let lora = reply["generation_settings"]["lora"].as_array().expect("a list").len();
                assert_eq!(lora, expected.iter().flatten().count(), "{reply}");
            }
        }
    }
    // a request that chooses gets what it chooses
    post(&server, "/lora-adapters", json!([{"id": 0, "scale": 1}, {"id": 1, "scale": 1}])).await;
    for (body, expected) in [
        (json!({"prompt": "a", "model": "facts"}), vec![(1, 0.5)]),
        (json!({"prompt": "a", "lora": []}), vec![]),
        (json!({"prompt": "a", "lora": [{"id": 1, "scale": 3}]}), vec![(1, 3.0)]),
    ] {
        post(&server, "/v1/completions", body.clone()).await;
        assert_eq!(asked.lock().expect("whole").pop().expect("a job").adapters, Some(expected), "{body}");
    }
    // what is refused changes nothing
    for (body, param) in [
        (json!([{"id": 2, "scale": 1}]), Some("[0].id")),
        (json!([{"id": 0, "scale": 1}, {"id": 0, "scale": 1}]), Some("[1].id")),
        (json!([{"id": 0, "scale": 1000}]), Some("[0].scale")),
        (json!([{"id": 0}]), Some("[0]")),
        (json!({"id": 0, "scale": 1}), None),
        (json!("poems"), None),
        (json!([[0, 1]]), Some("[0]")),
    ] {
        let (status, reply) = refused(&server, "/lora-adapters", body.clone()).await;
        assert_eq!((status, reply["error"]["param"].as_str()), (400, param), "{body}: {reply}");
    }
    assert_eq!(scales().await, [1.0, 1.0]);
}

#[tokio::test]
async fn adapters_that_cannot_be_chosen_are_refused() {
    let server = server(adapted());
    for (lora, param) in [
        (json!([{"id": 2, "scale": 1}]), "lora[0].id"),
        (json!([{"id": -1, "scale": 1}]), "lora[0].id"),
        (json!([{"id": 0}]), "lora[0]"),
        (json!([{"id": 0, "scale": 1}, {"id": 0, "scale": 1}]), "lora[1].id"),
        (json!([{"id": 0, "scale": 1e30}]), "lora[0].scale"),
        (json!("poems"), "lora"),
    ] {
        let (status, reply) = refused(&server, "/v1/completions", json!({"prompt": "a", "lora": lora})).await;
        assert_eq!((status, reply["error"]["param"].as_str()), (400, Some(param)), "{lora}: {reply}");
    }
    // with adapters there is more than one model, so that a mistyped name is not answered by the base
    let (status, reply) = refused(&server, "/v1/completions", json!({"prompt": "a", "model": "poem"})).await;
    assert_eq!((status, &reply["error"]["code"]), (404, &json!("model_not_found")));
    // what runs beside the engine knows no adapters
    for path in ["/v1/embeddings", "/v1/moderations"] {
        assert_eq!(refused(&server, path, json!({"input": "a", "model": "poems"})).await.0, 400, "{path}");
        assert_eq!(post(&server, path, json!({"input": "a"})).await["model"], "fake/gemma", "{path}");
    }
}
