//! Models that are loaded on demand, and unloaded where memory is short.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use gemma_serve::http::{App, Backend, Located, Refusal, ServedModel, Settings, router};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::fake::Fake;
use crate::wire::{get, post, refused, send};

const MIB: u64 = 1 << 20;

/// Models that can be loaded, and which were, in order.
#[derive(Clone, Default)]
struct Disk {
    loads: Arc<Mutex<Vec<String>>>,
    /// How long one takes.
    delay: Duration,
}

impl Disk {
    /// A model of so many MiB that says its name, slowly.
    fn model(&self, name: &'static str, mib: u64) -> ServedModel {
        let (loads, delay) = (Arc::clone(&self.loads), self.delay);
        ServedModel::on_demand(name, move || {
            let loads = Arc::clone(&loads);
            let open = move || {
                std::thread::sleep(delay);
                loads.lock().expect("whole").push(name.to_owned());
                let fake = Fake::new(name).named(name).with_bytes(mib * MIB).with_delay(Duration::from_millis(5));
                Ok(Arc::new(fake) as Arc<dyn Backend>)
            };
            Ok(Located { bytes: mib * MIB, open: Box::new(open) })
        })
    }

    fn loads(&self) -> Vec<String> {
        self.loads.lock().expect("whole").clone()
    }
}

fn serving(models: Vec<ServedModel>, settings: Settings) -> Router {
    router(App::with_models(models, settings))
}

async fn ask(server: &Router, model: &str) -> Value {
    post(server, "/v1/completions", json!({"prompt": "a", "model": model})).await["choices"][0]["text"].clone()
}

async fn statuses(server: &Router) -> Vec<String> {
    let models = get(server, "/v1/models").await;
    let list = models["data"].as_array().expect("a list");
    list.iter().map(|model| model["status"]["value"].as_str().expect("a word").to_owned()).collect()
}

#[tokio::test]
async fn a_model_is_loaded_once_by_the_first_of_many_requests() {
    let disk = Disk { delay: Duration::from_millis(60), ..Disk::default() };
    let first = ServedModel::loaded(Arc::new(Fake::new("first").named("first")));
    let server = serving(vec![first, disk.model("second", 1)], Settings::default());
    assert_eq!(statuses(&server).await, ["loaded", "unloaded"]);
    assert_eq!(ask(&server, "first").await, "first");
    assert_eq!(disk.loads(), Vec::<String>::new(), "nobody has asked for it");
    let during = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let slots = get(&server, "/slots").await;
        let (_, metrics) = send(&server, "GET", "/metrics", "").await;
        assert!(metrics.contains("\ngemma_requests_waiting 12\n"), "{metrics}");
        let slots = slots.as_array().expect("a list");
        let loads = |slot: &&Value| {
            slot["model"] == "second" && slot["endpoint"] == "load" && slot["is_processing"] == json!(false)
        };
        assert_eq!((slots.len(), slots.iter().filter(loads).count()), (12, 12), "{slots:?}");
        (statuses(&server).await, ask(&server, "first").await)
    };
    let (answers, during) =
        tokio::join!(futures_util::future::join_all((0..12).map(|_| ask(&server, "second"))), during);
    assert!(answers.iter().all(|answer| answer == "second"), "{answers:?}");
    assert_eq!(get(&server, "/slots").await, json!([]), "nobody waits any more");
    assert_eq!(
        during,
        (vec!["loaded".to_owned(), "loading".to_owned()], json!("first")),
        "others are answered meanwhile"
    );
    assert_eq!(disk.loads(), ["second"]);
    assert_eq!(statuses(&server).await, ["loaded", "loaded"]);
    assert_eq!(get(&server, "/v1/models/second").await["meta"]["size"], MIB);
    let (_, metrics) = send(&server, "GET", "/metrics", "").await;
    assert!(metrics.contains("\ngemma_models_loaded 2\n"), "{metrics}");
}

#[tokio::test]
async fn the_idle_model_that_was_used_least_recently_is_unloaded() {
    let disk = Disk::default();
    let models = ["a", "b", "c"].map(|name| disk.model(name, 10)).into();
    let server = serving(models, Settings { model_memory: Some(21 * MIB), ..Settings::default() });
    for (model, loaded) in [
        ("a", ["loaded", "unloaded", "unloaded"]),
        ("b", ["loaded", "loaded", "unloaded"]),
        ("a", ["loaded", "loaded", "unloaded"]),
        ("c", ["loaded", "unloaded", "loaded"]),
        ("b", ["unloaded", "loaded", "loaded"]),
        ("c", ["unloaded", "loaded", "loaded"]),
        ("a", ["loaded", "unloaded", "loaded"]),
    ] {
        assert_eq!(ask(&server, model).await, model);
        assert_eq!(statuses(&server).await, loaded, "after {model}");
    }
    assert_eq!(disk.loads(), ["a", "b", "c", "b", "a"]);
    assert_eq!(get(&server, "/v1/models/b").await["family"], "gemma", "what it was is still known");
    let running: Vec<Value> = get(&server, "/api/ps").await["models"].as_array().expect("a list").clone();
    assert_eq!(running.iter().map(|model| model["name"].clone()).collect::<Vec<_>>(), ["a", "c"]);
}

/// Two models whose weights alone would fit take turns, since their KV caches would not.
#[tokio::test]
async fn the_limit_for_models_counts_kv_caches_and_tokenizers() {
    let model = |name: &'static str| {
        let fake = move || Fake::new(name).named(name).with_bytes(10 * MIB).with_cache_limit(5 << 20);
        let bytes = fake().memory_bytes();
        assert!((15 * MIB + 1..16 * MIB).contains(&bytes), "{bytes}");
        ServedModel::on_demand(name, move || {
            Ok(Located { bytes, open: Box::new(move || Ok(Arc::new(fake()) as Arc<dyn Backend>)) })
        })
    };
    let models = || ["a", "b"].map(model).into();
    for (limit, loaded) in [(30, ["unloaded", "loaded"]), (32, ["loaded", "loaded"])] {
        let server = serving(models(), Settings { model_memory: Some(limit * MIB), ..Settings::default() });
        assert_eq!((ask(&server, "a").await, ask(&server, "b").await), (json!("a"), json!("b")));
        assert_eq!(statuses(&server).await, loaded, "{limit} MiB");
    }
    let server = serving(models(), Settings { model_memory: Some(14 * MIB), ..Settings::default() });
    let (status, reply) = refused(&server, "/v1/completions", json!({"prompt": "a", "model": "a"})).await;
    assert_eq!((status, &reply["error"]["code"]), (503, &json!("model_too_large")), "{reply}");
}

#[tokio::test]
async fn a_model_that_answers_is_not_unloaded() {
    let disk = Disk::default();
    let long = "one two three four five six seven eight nine ten";
    let busy = Fake::new(long).named("busy").with_bytes(10 * MIB).with_delay(Duration::from_millis(10));
    let busy = ServedModel::loaded(Arc::new(busy)).with_source(|| Err(Refusal::failed("it is loaded already")));
    let settings = Settings { model_memory: Some(15 * MIB), ..Settings::default() };
    let server = serving(vec![busy, disk.model("other", 10)], settings);
    let begun = Instant::now();
    let answer = async {
        let body = json!({"prompt": "a", "model": "busy", "max_tokens": 60});
        let reply = post(&server, "/v1/completions", body).await;
        (reply["choices"][0]["text"].clone(), begun.elapsed())
    };
    let other = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        (ask(&server, "other").await, begun.elapsed())
    };
    let ((text, answered), (said, loaded)) = tokio::join!(answer, other);
    assert_eq!((text, said), (json!(long), json!("other")));
    assert!(loaded > answered, "{loaded:?} {answered:?}");
    assert_eq!(statuses(&server).await, ["unloaded", "loaded"]);
    // work beside the engine holds its model, too; while it lasts, there is no room
    let settings =
        Settings { model_memory: Some(15 * MIB), queue_timeout: Duration::from_millis(60), ..Settings::default() };
    let slow = Fake::new("x").named("slow").with_bytes(10 * MIB).with_delay(Duration::from_millis(100));
    let slow = ServedModel::loaded(Arc::new(slow)).with_source(|| Err(Refusal::failed("it is loaded already")));
    let server = serving(vec![slow, disk.model("other", 10)], settings);
    let work = post(&server, "/v1/embeddings", json!({"input": ["a", "b", "c"], "model": "slow"}));
    let refusal = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let request = Request::post("/v1/completions").body(Body::from(r#"{"prompt":"a","model":"other"}"#));
        server.clone().oneshot(request.expect("a request")).await.expect("a response")
    };
    let (work, refusal) = tokio::join!(work, refusal);
    assert_eq!(work["data"].as_array().map(Vec::len), Some(3));
    assert_eq!(refusal.status(), 429);
    assert!(refusal.headers().contains_key("retry-after"));
    assert_eq!(ask(&server, "other").await, "other", "there is room now");
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_an_error_of_its_requests_alone() {
    let sound = Arc::new(AtomicBool::new(false));
    let tries = Arc::new(AtomicUsize::new(0));
    let (sound_there, tries_there) = (Arc::clone(&sound), Arc::clone(&tries));
    let mending = ServedModel::on_demand("mending", move || {
        tries_there.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        if !sound_there.load(Ordering::SeqCst) {
            return Err(Refusal::cannot_load("mending", "its file is damaged"));
        }
        Ok(Located { bytes: 0, open: Box::new(|| Ok(Arc::new(Fake::new("mended").named("mending")))) })
    });
    let missing = ServedModel::on_demand("missing", || Err(Refusal::not_found("no such folder")));
    let panics = ServedModel::on_demand("panics", || {
        Ok(Located { bytes: 0, open: Box::new(|| panic!("a test of a loader that panics")) })
    });
    let large = Disk::default().model("large", 101);
    let first = ServedModel::loaded(Arc::new(Fake::new("first").named("first")));
    let settings = Settings { model_memory: Some(100 * MIB), ..Settings::default() };
    let server = serving(vec![first, mending, missing, panics, large], settings);
    let ask_for = |model: &'static str| refused(&server, "/v1/completions", json!({"prompt": "a", "model": model}));
    for (model, status, code, words) in [
        ("mending", 503, "model_load_failed", "its file is damaged"),
        ("missing", 404, "model_not_found", "no such folder"),
        ("panics", 503, "model_load_failed", "panics"),
        ("large", 503, "model_too_large", "101 MiB"),
        ("unknown", 404, "model_not_found", "mending, missing"),
    ] {
        let (found, reply) = ask_for(model).await;
        assert_eq!((found, reply["error"]["code"].as_str()), (status, Some(code)), "{model}: {reply}");
        assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains(words)), "{model}: {reply}");
    }
    assert_eq!(statuses(&server).await, ["loaded", "failed", "failed", "failed", "failed"]);
    assert_eq!(ask(&server, "first").await, "first");
    // requests that wait for the same load share its failure, and the next one tries again
    tries.store(0, Ordering::SeqCst);
    futures_util::future::join_all((0..6).map(|_| ask_for("mending"))).await;
    assert_eq!(tries.load(Ordering::SeqCst), 1);
    sound.store(true, Ordering::SeqCst);
    assert_eq!(ask(&server, "mending").await, "mended");
    let (status, text) = send(&server, "POST", "/api/chat", r#"{"model":"missing"}"#).await;
    assert_eq!((status.as_u16(), text.as_str()), (404, r#"{"error":"no such folder"}"#));
}

#[tokio::test]
async fn a_load_that_takes_too_long_is_429_and_goes_on() {
    let disk = Disk { delay: Duration::from_millis(150), ..Disk::default() };
    let first = ServedModel::loaded(Arc::new(Fake::new("first").named("first")));
    let settings = Settings { queue_timeout: Duration::from_millis(40), parallel: 1, queue: 1, ..Settings::default() };
    let server = serving(vec![first, disk.model("slow", 1)], settings);
    let body = json!({"prompt": "a", "model": "slow"});
    let replies =
        futures_util::future::join_all((0..3).map(|_| refused(&server, "/v1/completions", body.clone()))).await;
    let words = ["was not loaded within", "was not loaded within", "0 requests run and 2 wait"];
    for ((status, reply), words) in replies.iter().zip(words) {
        assert_eq!(*status, 429, "{reply}");
        assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains(words)), "{reply}");
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(ask(&server, "slow").await, "slow");
    assert_eq!(disk.loads(), ["slow"], "the load that was begun was not begun again");
    // a client that goes away while its model is loaded does not end the load
    let disk = Disk { delay: Duration::from_millis(80), ..Disk::default() };
    let first = ServedModel::loaded(Arc::new(Fake::new("first").named("first")));
    let server = serving(vec![first, disk.model("slow", 1)], Settings::default());
    assert!(tokio::time::timeout(Duration::from_millis(20), ask(&server, "slow")).await.is_err());
    assert_eq!(ask(&server, "slow").await, "slow");
    assert_eq!(disk.loads(), ["slow"]);
}
