//! The fields that say how to sample, from every protocol that has them to the job.

use gemma_serve::http::backend::{Dry, Mirostat};
use serde_json::{Value, json};

use crate::fake::{Asked, Fake};
use crate::wire::{post, refused, server};

/// The protocols with a body that each answers.
fn bodies() -> Vec<(&'static str, Value)> {
    let chat = json!([{"role": "user", "content": "a"}]);
    vec![
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/chat/completions", json!({"messages": chat})),
        ("/v1/responses", json!({"input": "a"})),
        ("/v1/fim/completions", json!({"prompt": "a"})),
        ("/completion", json!({"prompt": "a"})),
        ("/infill", json!({"input_prefix": "a"})),
    ]
}

#[tokio::test]
async fn penalties_biases_dry_and_mirostat_reach_the_model_from_every_protocol() {
    let fake = Fake::new("x");
    let asked = std::sync::Arc::clone(&fake.asked);
    let server = server(fake);
    let fields = json!({
        "presence_penalty": 0.5, "frequency_penalty": -0.25, "logit_bias": {"7": -100, "9": 1.5}, "dry_multiplier": 0.8,
        "dry_base": 2, "dry_allowed_length": 3, "dry_penalty_last_n": 100, "dry_sequence_breakers": ["\n"], "mirostat": 2,
        "mirostat_tau": 4, "mirostat_eta": 0.2,
    });
    for (path, mut body) in bodies() {
        let all = body.as_object_mut().expect("an object");
        all.extend(fields.as_object().expect("an object").clone());
        post(&server, path, body).await;
        let Asked { sampling, logit_bias, .. } = asked.lock().expect("whole").pop().expect("a job");
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (0.5, -0.25), "{path}");
        assert_eq!(logit_bias, [(7, f32::NEG_INFINITY), (9, 1.5)], "{path}");
        let dry = Dry {
            multiplier: 0.8,
            base: 2.0,
            allowed_length: 3,
            last_tokens: Some(100),
            breakers: Some(vec!["\n".to_owned()]),
        };
        assert_eq!(sampling.dry, Some(dry), "{path}");
        assert_eq!(sampling.mirostat, Some(Mirostat { tau: 4.0, eta: 0.2 }), "{path}");
    }
    let options = json!({"presence_penalty": 0.5, "frequency_penalty": 1, "mirostat": 2, "mirostat_tau": 3});
    for (path, mut body) in [
        ("/api/generate", json!({"prompt": "a"})),
        ("/api/chat", json!({"messages": [{"role": "user", "content": "a"}]})),
    ] {
        body["stream"] = json!(false);
        body["options"] = options.clone();
        post(&server, path, body).await;
        let Asked { sampling, .. } = asked.lock().expect("whole").pop().expect("a job");
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (0.5, 1.0), "{path}");
        assert_eq!(sampling.mirostat, Some(Mirostat { tau: 3.0, eta: 0.1 }), "{path}");
    }
}

#[tokio::test]
async fn biases_are_read_in_the_forms_of_both_servers() {
    let fake = Fake::new("x");
    let (asked, word) = (std::sync::Arc::clone(&fake.asked), fake.tokens("return")[0]);
    let server = server(fake);
    for (biases, expected) in [
        (json!({"5": -100}), vec![(5, f32::NEG_INFINITY)]),
        (json!([[5, 1.5], [6, false]]), vec![(5, 1.5), (6, f32::NEG_INFINITY)]),
        (json!([["return", -0.5]]), vec![(word, -0.5)]),
        (json!([]), vec![]),
        (json!(null), vec![]),
    ] {
        post(&server, "/completion", json!({"prompt": "a", "logit_bias": biases})).await;
        let found = asked.lock().expect("whole").pop().expect("a job").logit_bias;
        assert_eq!(found, expected, "{biases}");
    }
    for wrong in [
        json!({"x": 1}),
        json!({"5": 101}),
        json!({"5": true}),
        json!({"99999999": 1}),
        json!([[99_999_999, 1]]),
        json!([[-1, 1]]),
        json!([5, 1]),
        json!("return"),
        json!([["a".repeat(5000), 1]]),
    ] {
        let (status, reply) = refused(&server, "/completion", json!({"prompt": "a", "logit_bias": wrong})).await;
        assert_eq!((status, reply["error"]["param"].as_str()), (400, Some("logit_bias")), "{wrong}: {reply}");
    }
}
