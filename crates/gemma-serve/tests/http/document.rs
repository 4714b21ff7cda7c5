//! The OpenAPI document against the router.

use serde_json::Value;

use crate::fake::Fake;
use crate::wire::{get, send, server};

/// The router's own source: each `.route("PATH", METHOD(..))`.
const ROUTER: &str = include_str!("../../src/http.rs");

#[tokio::test]
async fn the_document_and_the_router_have_the_same_paths() {
    let server = server(Fake::new("x"));
    let document = get(&server, "/openapi.json").await;
    let paths = document["paths"].as_object().expect("paths");
    let mut documented: Vec<(String, String)> = Vec::new();
    for (path, operations) in paths {
        for method in operations.as_object().expect("operations").keys() {
            documented.push((path.clone(), method.clone()));
            let concrete = path.replace("{id}", "fake/gemma").replace("{task}", "caption");
            let (status, text) = send(&server, &method.to_uppercase(), &concrete, "").await;
            assert!(status != 405 && !text.contains("no such path"), "{method} {path}: {status} {text}");
        }
    }
    let mut routed: Vec<(String, String)> = Vec::new();
    for line in ROUTER.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
        let (path, rest) = line.split_once("\", ").expect("a path and a method");
        let (method, _) = rest.split_once('(').expect("a method");
        routed.push((path.replace("{*id}", "{id}"), method.to_owned()));
    }
    documented.sort();
    routed.sort();
    assert_eq!(documented, routed);
}

#[tokio::test]
async fn every_reference_of_the_document_is_there() {
    fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = get(&server(Fake::new("x")), "/openapi.json").await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("a reference within the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
