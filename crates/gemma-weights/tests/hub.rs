//! Resolving and downloading models, against a hub that runs in the test.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]
#![cfg(feature = "hub")]

mod stub;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gemma_weights::{Error, HubId, HubOptions, cached, pull, resolve, resolve_adapter};
use stub::{Answer, COMMIT, Repository, Request, Server, file, sha256};
use tempfile::TempDir;

/// A cache of its own and a hub at that address; impatient, so that tests are fast.
fn options(endpoint: &str) -> (TempDir, HubOptions) {
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        cache: cache.path().join("hub"),
        endpoint: endpoint.to_owned(),
        token: None,
        offline: false,
        attempts: 3,
        pause: Duration::from_millis(1),
        timeout: Duration::from_secs(5),
        certificates: Vec::new(),
    };
    (cache, options)
}

fn root(options: &HubOptions) -> PathBuf {
    options.cache.join("models--org--name")
}

/// The names in a folder, sorted; none if there is no such folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

fn is_weights(request: &Request) -> bool {
    request.method == "GET" && request.path.ends_with("/model.safetensors")
}

/// The error of a download, after checking that it is one line.
fn failure(options: &HubOptions) -> Error {
    let error = resolve("org/name", options).expect_err("the hub refuses");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

#[test]
fn a_model_is_downloaded_once_into_the_standard_layout() {
    let repository = Repository::small();
    let served = repository.clone();
    let hub = Server::start(move |request| served.answer(request));
    let (_guard, options) = options(&hub.address);
    assert_eq!(cached(&HubId::parse("org/name").unwrap(), &options), None);

    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(folder, root(&options).join("snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), repository.weights());
    assert_eq!(fs::read_to_string(root(&options).join("refs/main")).unwrap(), COMMIT);
    let blob = root(&options).join("blobs").join(sha256(repository.weights()));
    assert!(fs::symlink_metadata(&blob).unwrap().is_file());
    assert_eq!(names(&root(&options).join("blobs")).len(), 3, "nothing incomplete is left");
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(folder.join("model.safetensors")).unwrap(),
        Path::new("../../blobs").join(sha256(repository.weights()))
    );

    let before = hub.asked();
    assert!(!before.iter().any(|line| line.contains("README") || line.contains("gguf") || line.contains("original")));
    for id in ["org/name", "org/name@main", &format!("org/name@{COMMIT}")] {
        assert_eq!(resolve(id, &options).unwrap(), folder);
    }
    assert_eq!(hub.asked(), before, "what is in the cache costs no request");
    assert_eq!(cached(&HubId::parse("org/name").unwrap(), &options), Some(folder.clone()));

    pull("org/name", &options, &mut |_| {}).unwrap();
    assert_eq!(hub.asked().len(), before.len() + 1, "pulling again asks for the newest commit, and that is all");
    // a revision is another name of the same blobs
    resolve("org/name@refs/pr/1", &options).unwrap();
    assert_eq!(hub.asked().last().unwrap(), "GET /api/models/org/name/revision/refs%2Fpr%2F1");
    assert_eq!(fs::read_to_string(root(&options).join("refs/refs/pr/1")).unwrap(), COMMIT);
}

#[test]
fn progress_grows_to_the_whole() {
    let repository = Repository::small();
    let total = (repository.weights().len() + 2 + 12) as u64;
    let hub = Server::start(move |request| repository.answer(request));
    let (_guard, options) = options(&hub.address);
    let mut reports = Vec::new();
    pull("org/name", &options, &mut |at| {
        reports.push((at.file.to_owned(), at.done, at.total, at.all_done, at.all_total))
    })
    .unwrap();
    assert!(reports.windows(2).all(|pair| pair[0].3 <= pair[1].3));
    assert!(reports.iter().all(|(_, done, size, _, all)| done <= size && *all == total));
    assert_eq!(reports.last().unwrap(), &("model.safetensors".to_owned(), 80_000, 80_000, total, total));
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let repository = Repository::small();
    let weights = repository.weights().to_vec();
    let mut cuts = vec![30_000, 1_000, 20_000].into_iter();
    let hub = Server::start(move |request| {
        let mut answer = repository.answer(request);
        if is_weights(request) {
            answer.cut = cuts.next();
        }
        answer
    });
    let (_guard, options) = options(&hub.address);
    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    let ranges: Vec<Option<String>> =
        hub.requests().iter().filter(|r| is_weights(r)).map(|r| r.headers.get("range").cloned()).collect();
    let expected =
        [None, Some(30_000), Some(31_000), Some(51_000)].map(|from| from.map(|from| format!("bytes={from}-")));
    assert_eq!(ranges, expected);
}

#[test]
fn a_later_process_resumes_too() {
    let repository = Repository::small();
    let weights = repository.weights().to_vec();
    let served = repository.clone();
    let broken = Server::start(move |request| {
        let mut answer = served.answer(request);
        if is_weights(request) {
            let resumed = request.headers.contains_key("range");
            answer.cut = Some(if resumed { 0 } else { 50_000 });
        }
        answer
    });
    let (_guard, mut options) = options(&broken.address);
    let error = failure(&options);
    assert!(matches!(error, Error::HubConnection { .. }), "{error}");
    let incomplete = root(&options).join("blobs").join(format!("{}.incomplete", sha256(&weights)));
    assert_eq!(fs::metadata(&incomplete).unwrap().len(), 50_000);
    assert!(!root(&options).join("refs/main").exists(), "the revision names no half snapshot");
    assert!(matches!(
        resolve("org/name", &HubOptions { offline: true, ..options.clone() }),
        Err(Error::Offline { .. })
    ));

    let hub = Server::start(move |request| repository.answer(request));
    options.endpoint = hub.address.clone();
    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert!(!incomplete.exists());
    let gets: Vec<_> = hub.requests().into_iter().filter(|request| request.method == "GET").collect();
    assert_eq!(gets.len(), 2, "the listing and the rest of the weights");
    assert_eq!(gets[1].headers["range"], "bytes=50000-");
}

#[test]
fn a_server_that_does_not_resume_sends_it_all_again() {
    for wrong in ["ignores", "another place", "nothing there"] {
        let repository = Repository::small();
        let weights = repository.weights().to_vec();
        let mut first = true;
        let hub = Server::start(move |request| {
            let mut answer = repository.answer(request);
            if is_weights(request) && std::mem::take(&mut first) {
                answer.cut = Some(40_000);
            } else if is_weights(request) && request.headers.contains_key("range") {
                answer = match wrong {
                    "ignores" => {
                        let mut plain = request.clone();
                        plain.headers.remove("range");
                        repository.answer(&plain)
                    }
                    "another place" => {
                        Answer::new(206, &[("Content-Range", "bytes 0-79999/80000")]).with_body(repository.weights())
                    }
                    _ => Answer::new(416, &[]),
                };
            }
            answer
        });
        let (_guard, options) = options(&hub.address);
        let folder = resolve("org/name", &options).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights, "{wrong}");
    }
}

#[test]
fn what_an_earlier_process_left_is_checked() {
    let repository = Repository::small();
    let weights = repository.weights().to_vec();
    let hub = Server::start(move |request| repository.answer(request));
    for left in [vec![9; 100], vec![9; weights.len()], vec![9; weights.len() + 1], weights.clone()] {
        let (_guard, options) = options(&hub.address);
        let blobs = root(&options).join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(&weights))), &left).unwrap();
        let folder = resolve("org/name", &options).unwrap();
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights, "{} bytes were left", left.len());
    }
}

#[test]
fn a_wrong_hash_leaves_nothing() {
    let repository = Repository::small();
    let hub = Server::start(move |request| {
        let mut answer = repository.answer(request);
        if is_weights(request) {
            answer.body[1234] ^= 1;
        }
        answer
    });
    let (_guard, options) = options(&hub.address);
    let error = failure(&options);
    assert!(matches!(&error, Error::HubHash { file, .. } if file == "model.safetensors"), "{error}");
    assert_eq!(names(&root(&options).join("blobs")).len(), 2, "config and tokenizer");
    assert_eq!(cached(&HubId::parse("org/name").unwrap(), &options), None);
}

#[test]
fn a_file_longer_than_announced_is_refused() {
    let repository = Repository::small();
    let hub = Server::start(move |request| {
        let mut answer = repository.answer(request);
        if is_weights(request) {
            answer.body.push(0);
        }
        answer
    });
    let (_guard, options) = options(&hub.address);
    assert!(matches!(failure(&options), Error::HubAnswer { .. }));
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let repository = Repository::small();
    let (weights, served) = (repository.weights().to_vec(), repository.weights().to_vec());
    let store = Server::start(move |request| {
        let mut answer = file("x.safetensors", &served, request);
        if !request.headers.contains_key("range") {
            answer.cut = Some(10_000);
        }
        answer
    });
    let at_store = format!("{}/blob?signature=1", store.address);
    let hub = Server::start(move |request| {
        let answer = repository.answer(request);
        if request.path.ends_with("/model.safetensors") {
            let hash = sha256(repository.weights());
            let moved = [
                ("Location", at_store.as_str()),
                ("X-Linked-Etag", &format!("\"{hash}\"")),
                ("X-Linked-Size", "80000"),
            ];
            Answer::new(302, &moved)
        } else if request.path.ends_with("/config.json") && !request.path.starts_with("/moved") {
            // what such a redirect says of itself is not what lies where it leads
            Answer::new(307, &[("Location", "/moved/config.json"), ("ETag", "\"redirect\"")]).with_body("moved")
        } else if request.path == "/moved/config.json" {
            file("config.json", b"{}", request)
        } else {
            answer
        }
    });
    let (_guard, mut options) = options(&hub.address);
    options.token = Some("hf_secret".to_owned());
    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{}");
    assert!(hub.requests().iter().all(|request| request.headers["authorization"] == "Bearer hf_secret"));
    let store = store.requests();
    assert!(store.iter().all(|request| !request.headers.contains_key("authorization")));
    // size and hash are the hub's own words, and the store resumes
    let seen: Vec<_> = store.iter().map(|r| (r.method.as_str(), r.headers.get("range").map(String::as_str))).collect();
    assert_eq!(seen, [("GET", None), ("GET", Some("bytes=10000-"))]);
}

#[test]
fn a_gated_model_says_where_to_accept_the_licence() {
    for (status, code, at_listing) in
        [(401, "GatedRepo", true), (403, "GatedRepo", false), (401, "", true), (403, "", false)]
    {
        for token in [None, Some("hf_secret".to_owned())] {
            let repository = Repository::small();
            let hub = Server::start(move |request| match request.path.starts_with("/api/") {
                true if !at_listing => repository.listing(),
                _ if code.is_empty() => Answer::new(status, &[]),
                _ => Answer::new(status, &[("X-Error-Code", code)]),
            });
            let (_guard, mut options) = options(&hub.address);
            options.token = token;
            let error = failure(&options);
            assert!(matches!(error, Error::Gated { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("https://huggingface.co/org/name") && text.contains("HF_TOKEN"), "{text}");
            assert!(!text.contains("hf_secret"), "{text}");
        }
    }
}

#[test]
fn a_model_or_revision_that_does_not_exist() {
    let hub = Server::start(|request| match request.path.contains("nothere") {
        true => Answer::new(404, &[("X-Error-Code", "RevisionNotFound")]),
        false => Answer::new(401, &[("X-Error-Code", "RepoNotFound")]),
    });
    let (_guard, options) = options(&hub.address);
    assert!(matches!(failure(&options), Error::NoSuchModel { id, .. } if id == "org/name"));
    let error = resolve("org/name@nothere", &options).unwrap_err();
    assert!(matches!(&error, Error::NoSuchRevision { revision, .. } if revision == "nothere"), "{error}");
    let plain = Server::start(|_| Answer::new(404, &[]));
    let options = HubOptions { endpoint: plain.address.clone(), ..options };
    assert!(matches!(failure(&options), Error::NoSuchModel { .. }));
    assert_eq!(plain.asked().len(), 1, "that will not change, so it is not asked again");
    assert!(!options.cache.exists(), "and nothing is written");
}

#[test]
fn a_repository_without_safetensors() {
    let mut repository = Repository::small();
    repository.files.retain(|name, _| !name.ends_with(".safetensors") && !name.ends_with(".gguf"));
    let hub = Server::start(move |request| repository.answer(request));
    let (_guard, options) = options(&hub.address);
    let error = failure(&options);
    assert!(matches!(&error, Error::NoHubWeights { found, .. } if *found == ["original/model.bin"]), "{error}");
}

/// A repository of these files, each with its name as content.
fn repository(names: &[&'static str]) -> Repository {
    Repository { files: names.iter().map(|name| (*name, name.as_bytes().to_vec())).collect() }
}

/// The names of the files that were fetched, sorted.
fn fetched(hub: &Server) -> Vec<String> {
    let begin = format!("/org/name/resolve/{COMMIT}/");
    let gets = hub.requests().into_iter().filter(|request| request.method == "GET");
    let mut names: Vec<String> =
        gets.filter_map(|request| Some(request.path.strip_prefix(&begin)?.to_owned())).collect();
    names.sort();
    names
}

#[test]
fn one_file_of_a_gguf_repository_is_fetched() {
    let names = [
        "README.md",
        "n-Q4_K_M.gguf",
        "n-Q8_0.gguf",
        "mmproj-n-f16.gguf",
        "big/n-F16-00001-of-00002.gguf",
        "big/n-F16-00002-of-00002.gguf",
    ];
    let served = repository(&names);
    let hub = Server::start(move |request| served.answer(request));
    for (id, files) in [
        ("org/name", &["n-Q4_K_M.gguf"][..]),
        ("org/name:q8_0", &["n-Q8_0.gguf"]),
        ("org/name:n-Q8_0.gguf", &["n-Q8_0.gguf"]),
        ("org/name:F16", &["big/n-F16-00001-of-00002.gguf", "big/n-F16-00002-of-00002.gguf"]),
    ] {
        let (_guard, options) = options(&hub.address);
        let before = fetched(&hub);
        let place = resolve(id, &options).unwrap();
        assert!(place.ends_with(files[0]), "{}", place.display());
        let mut news = fetched(&hub);
        before.iter().for_each(|name| drop(news.remove(news.iter().position(|new| new == name).unwrap())));
        assert_eq!(news, files, "{id}");
        for file in files {
            let path = root(&options).join("snapshots").join(COMMIT).join(file);
            assert_eq!(fs::read_to_string(path).unwrap(), *file);
        }
        let asked = hub.asked().len();
        assert_eq!(resolve(id, &HubOptions { offline: true, ..options.clone() }).unwrap(), place);
        assert_eq!(resolve(id, &options).unwrap(), place);
        assert_eq!(hub.asked().len(), asked, "{id}: what is in the cache costs no request");
        // the file by its path, as a person may write it; only what is in the cache is found so
        assert_eq!(resolve(&format!("org/name/{}", files[0]), &options).unwrap(), place);
    }
    let (_guard, options) = options(&hub.address);
    let error = resolve("org/name:Q2_K", &options).unwrap_err();
    assert!(matches!(&error, Error::HubChoice { files, .. } if files.len() == 3), "{error}");
    assert!(error.to_string().contains("n-Q8_0.gguf"), "{error}");
    assert!(matches!(resolve("org/name/n-Q5_0.gguf", &options), Err(Error::NoSuchPath { .. })));
}

#[test]
fn what_a_repository_lacks_is_named_before_anything_is_fetched() {
    for (names, id, lacking) in [
        (&["n-Q8_0-00001-of-00002.gguf"][..], "org/name", "n-Q8_0-00002-of-00002.gguf"),
        (&["n-Q8_0-00002-of-00002.gguf"], "org/name:Q8_0", "n-Q8_0-00001-of-00002.gguf"),
        (&["model.safetensors", "tokenizer.json"], "org/name", "config.json"),
        (&["model.safetensors.index.json", "a.safetensors"], "org/name", "config.json"),
    ] {
        let served = repository(names);
        let hub = Server::start(move |request| served.answer(request));
        let (_guard, options) = options(&hub.address);
        let error = pull(id, &options, &mut |_| {}).unwrap_err();
        assert!(
            matches!(&error, Error::HubIncomplete { lacking: found, .. } if found == lacking),
            "{names:?}: {error}"
        );
        assert_eq!(fetched(&hub), [""; 0], "{names:?}");
    }
}

#[test]
fn the_address_of_a_page_of_this_hub_is_a_name() {
    let served = repository(&["n-Q4_K_M.gguf", "mmproj-n-f16.gguf"]);
    let hub = Server::start(move |request| served.answer(request));
    let (_guard, options) = options(&hub.address);
    let page = format!("{}/org/name?show_file_info=mmproj-n-f16.gguf", hub.address);
    let place = resolve(&page, &options).unwrap();
    assert!(place.ends_with("mmproj-n-f16.gguf"), "{}", place.display());
    assert_eq!(fetched(&hub), ["mmproj-n-f16.gguf"]);
    let error = resolve("https://elsewhere.example/org/name", &options).unwrap_err();
    assert!(matches!(error, Error::HubId { .. }), "{error}");
}

#[test]
fn weights_that_are_there_twice_are_fetched_once() {
    let served =
        repository(&["config.json", "consolidated.safetensors", "model.fp16.safetensors", "model.safetensors"]);
    let hub = Server::start(move |request| served.answer(request));
    let (_guard, options) = options(&hub.address);
    resolve("org/name", &options).unwrap();
    assert_eq!(fetched(&hub), ["config.json", "model.safetensors"]);

    // the shards that the index names, and no others
    let mut served = repository(&["config.json", "a.safetensors", "b.safetensors", "other.safetensors"]);
    let index = r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}"#;
    served.files.insert("model.safetensors.index.json", index.into());
    let mut lacking = served.clone();
    lacking.files.remove("b.safetensors");
    let hub = Server::start(move |request| served.answer(request));
    let options = HubOptions { endpoint: hub.address.clone(), cache: options.cache.join("sharded"), ..options };
    resolve("org/name", &options).unwrap();
    assert_eq!(fetched(&hub), ["a.safetensors", "b.safetensors", "config.json", "model.safetensors.index.json"]);
    let hub = Server::start(move |request| lacking.answer(request));
    let options = HubOptions { endpoint: hub.address.clone(), cache: options.cache.join("lacking"), ..options };
    assert!(matches!(failure(&options), Error::ShardMissing { shard, .. } if shard == "b.safetensors"));
}

#[test]
fn an_adapter_is_no_model() {
    let mut served = repository(&["README.md", "adapter_model.safetensors"]);
    let config = r#"{"peft_type": "LORA", "base_model_name_or_path": "google/gemma-2-2b"}"#;
    served.files.insert("adapter_config.json", config.into());
    let hub = Server::start(move |request| served.answer(request));
    let (_guard, options) = options(&hub.address);
    let error = failure(&options);
    assert!(matches!(&error, Error::HubAdapter { base, .. } if base == "google/gemma-2-2b"), "{error}");
    let folder = resolve_adapter("org/name", &options, &mut |_| {}).unwrap();
    assert_eq!(names(&folder), ["adapter_config.json", "adapter_model.safetensors"]);
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(resolve_adapter("org/name", &offline, &mut |_| {}).unwrap(), folder);
    assert!(matches!(resolve_adapter("org/other", &offline, &mut |_| {}), Err(Error::Offline { .. })));
    assert_eq!(resolve_adapter(folder.to_str().unwrap(), &offline, &mut |_| {}).unwrap(), folder);
}

#[test]
fn a_small_file_with_another_content_is_refused_and_fetched_again() {
    for wrong in [&b""[..], b"<html>busy</html>"] {
        let repository = Repository::small();
        let right = repository.clone();
        let spoilt = Server::start(move |request| {
            let mut answer = repository.answer(request);
            if request.path.ends_with("/config.json") {
                answer.body = wrong.to_vec();
            }
            answer
        });
        let (_guard, mut options) = options(&spoilt.address);
        let error = failure(&options);
        assert!(matches!(&error, Error::HubHash { file, .. } if file == "config.json"), "{error}");
        let hub = Server::start(move |request| right.answer(request));
        options.endpoint = hub.address.clone();
        let folder = resolve("org/name", &options).unwrap();
        assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{}");
        // what an older program kept is looked at again
        let blob = fs::canonicalize(folder.join("config.json")).unwrap();
        fs::write(&blob, wrong).unwrap();
        pull("org/name", &options, &mut |_| {}).unwrap();
        assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{}");
    }
}

#[test]
fn files_with_the_same_etag_stay_apart() {
    let repository = Repository::small();
    let files = repository.files.clone();
    let hub = Server::start(move |request| {
        let mut answer = repository.answer(request);
        if let Some((_, etag)) = answer.headers.iter_mut().find(|(name, _)| *name == "ETag") {
            *etag = "\"AAAA\"".to_owned();
        }
        answer
    });
    let (_guard, options) = options(&hub.address);
    let folder = resolve("org/name", &options).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert_eq!(fs::read(folder.join(name)).unwrap(), files[name], "{name}");
    }
}

#[test]
fn a_hub_that_announces_more_than_it_sends_is_not_asked_for_ever() {
    // once by the length that it says when it sends, once by ending early at the same place each time
    for honest in [true, false] {
        let repository = Repository::small();
        let hub = Server::start(move |request| {
            let mut answer = repository.answer(request);
            if request.path.ends_with("/model.safetensors") {
                let announced = ("Content-Length", "90000".to_owned());
                if request.method == "HEAD" || !honest {
                    answer.headers.push(announced);
                }
                answer.headers.retain(|(name, _)| *name != "Accept-Ranges");
                if request.headers.contains_key("range") {
                    answer = Answer::new(416, &[]);
                }
            }
            answer
        });
        let (_guard, options) = options(&hub.address);
        let error = failure(&options);
        assert!(matches!(error, Error::HubAnswer { .. } | Error::HubConnection { .. }), "{error}");
        assert!(hub.requests().iter().filter(|request| is_weights(request)).count() <= 6, "{:?}", hub.asked());
    }
}

#[test]
fn a_mirror_may_send_everything_elsewhere() {
    let repository = Repository::small();
    let weights = repository.weights().to_vec();
    let hub = Server::start(move |request| repository.answer(request));
    let address = hub.address.clone();
    let mirror =
        Server::start(move |request| Answer::new(307, &[("Location", format!("{address}{}", request.path).as_str())]));
    let (_guard, mut options) = options(&mirror.address);
    options.token = Some("hf_secret".to_owned());
    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert!(mirror.requests().iter().all(|request| request.headers["authorization"] == "Bearer hf_secret"));
    assert!(hub.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn an_answer_without_an_end_is_not_read_to_it() {
    let hub = Server::start(|_| Answer::new(200, &[]).with_body(vec![b' '; 17 << 20]));
    let (_guard, options) = options(&hub.address);
    assert!(matches!(failure(&options), Error::HubAnswer { why, .. } if why.contains("longer than")));
}

#[test]
#[cfg(unix)]
fn a_whole_model_in_a_cache_that_cannot_be_written_is_found() {
    use std::os::unix::fs::PermissionsExt;
    let repository = Repository::small();
    let hub = Server::start(move |request| repository.answer(request));
    let (_guard, options) = options(&hub.address);
    let folder = resolve("org/name", &options).unwrap();
    let places = [root(&options).join("refs"), root(&options).join("blobs"), folder.clone()];
    let allow = |mode: u32| {
        places.iter().for_each(|place| fs::set_permissions(place, fs::Permissions::from_mode(mode)).unwrap());
    };
    let changed = fs::metadata(root(&options).join("refs/main")).unwrap().modified().unwrap();
    allow(0o555);
    let pulled = pull("org/name", &options, &mut |_| {});
    allow(0o755);
    assert_eq!(pulled.unwrap(), folder);
    assert_eq!(fs::metadata(root(&options).join("refs/main")).unwrap().modified().unwrap(), changed);
}

#[test]
fn certificates_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("no.pem"), "nothing").unwrap();
    // what may never end is not read
    fs::File::create(folder.path().join("huge.pem")).unwrap().set_len(1 << 40).unwrap();
    let mut names =
        vec![folder.path().join("no.pem"), folder.path().join("missing.pem"), folder.path().join("huge.pem")];
    if cfg!(unix) {
        names.push("/dev/zero".into());
    }
    for name in names {
        let (_guard, mut options) = options("https://127.0.0.1:9");
        options.certificates = vec![name.clone()];
        let error = failure(&options);
        assert!(matches!(&error, Error::Certificates { path, .. } if *path == name), "{error}");
    }
}

#[test]
fn passing_errors_are_retried_and_others_are_not() {
    let repository = Repository::small();
    let mut failures = vec![503, 429, 500].into_iter();
    let hub = Server::start(move |request| match request.path.ends_with("/model.safetensors") {
        true => match (request.method.as_str(), failures.len()) {
            // twice at the question for the size, once at the file
            ("HEAD", 2..) | ("GET", 1) => Answer::new(failures.next().unwrap(), &[("Retry-After", "0")]),
            _ => repository.answer(request),
        },
        false => repository.answer(request),
    });
    let (_guard, options) = options(&hub.address);
    resolve("org/name", &options).unwrap();

    let hub = Server::start(|_| Answer::new(502, &[]));
    let options = HubOptions { endpoint: hub.address.clone(), cache: options.cache.join("other"), ..options };
    assert!(matches!(failure(&options), Error::HubStatus { status: 502, .. }));
    assert_eq!(hub.asked().len(), 3);
}

#[test]
fn a_hub_that_asks_for_an_hour_is_not_waited_for() {
    for wait in ["3600", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"] {
        let hub = Server::start(move |_| Answer::new(429, &[("Retry-After", wait)]));
        let (_guard, options) = options(&hub.address);
        let error = failure(&options);
        assert!(matches!(error, Error::HubBusy { status: 429, seconds: 3600.., .. }), "{error}");
        assert_eq!(hub.asked().len(), 1);
    }
}

#[test]
fn a_token_that_no_header_can_hold_is_refused_before_anything_is_sent() {
    let hub = Server::start(|_| Answer::new(404, &[]));
    let (_guard, options) = options(&hub.address);
    for token in ["hf_é", "hf x", "hf_x\r\nX-Y: z"] {
        let options = HubOptions { token: Some(token.to_owned()), ..options.clone() };
        assert!(matches!(failure(&options), Error::HubToken), "{token:?}");
    }
    assert!(hub.asked().is_empty());
}

#[test]
fn nobody_answers() {
    // a port that was free a moment ago
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_guard, options) = options(&format!("http://{address}"));
    assert!(matches!(failure(&options), Error::HubConnection { .. }));
}

#[test]
fn a_hub_that_falls_silent_is_not_waited_for() {
    let repository = Repository::small();
    let weights = repository.weights().to_vec();
    let mut first = true;
    let hub = Server::start(move |request| {
        let mut answer = repository.answer(request);
        if is_weights(request) && std::mem::take(&mut first) {
            (answer.cut, answer.stall) = (Some(40_000), true);
        }
        answer
    });
    let (_guard, mut options) = options(&hub.address);
    options.timeout = Duration::from_millis(300);
    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert_eq!(hub.requests().last().unwrap().headers["range"], "bytes=40000-");
}

#[test]
fn answers_that_are_not_the_hubs() {
    let listing =
        |sha: &str, file: &str| serde_json::json!({ "sha": sha, "siblings": [{ "rfilename": file }] }).to_string();
    for (body, words) in [
        ("<html>".to_owned(), "expected value"),
        ("{}".to_owned(), "missing field"),
        (listing("../../../etc", "model.safetensors"), "is no commit"),
        (listing("main", "model.safetensors"), "is no commit"),
    ] {
        let hub = Server::start(move |_| Answer::new(200, &[]).with_body(body.clone()));
        let (_guard, options) = options(&hub.address);
        let error = failure(&options);
        assert!(matches!(&error, Error::HubAnswer { why, .. } if why.contains(words)), "{error}");
    }
    // a file outside the folder is not a file of the model
    let outside = listing(COMMIT, "../../model.safetensors");
    let hub = Server::start(move |_| Answer::new(200, &[]).with_body(outside.clone()));
    let (_guard, options) = options(&hub.address);
    assert!(matches!(failure(&options), Error::NoHubWeights { .. }));
    // a hash that would be a path
    for etag in ["\"../../../x\"", "\"\"", "\"..\""] {
        let repository = Repository::small();
        let hub = Server::start(move |request| match request.path.starts_with("/api/") {
            true => repository.listing(),
            false => Answer::new(200, &[("ETag", etag)]).with_body("x"),
        });
        let options = HubOptions { endpoint: hub.address.clone(), ..options.clone() };
        assert!(matches!(failure(&options), Error::HubAnswer { .. }), "{etag}");
    }
    // round in circles
    let hub = Server::start(|request| Answer::new(302, &[("Location", &request.path)]));
    let options = HubOptions { endpoint: hub.address.clone(), ..options };
    assert!(matches!(failure(&options), Error::HubAnswer { .. }));
    assert!(hub.asked().len() < 20);
}

#[test]
fn offline_makes_no_request_and_says_what_is_missing() {
    let repository = Repository::small();
    let hub = Server::start(move |request| repository.answer(request));
    let (_guard, mut options) = options(&hub.address);
    options.offline = true;
    let text = failure(&options).to_string();
    for words in ["org/name", "config.json", "model.safetensors", "--offline", options.cache.to_str().unwrap()] {
        assert!(text.contains(words), "{text}");
    }
    assert!(matches!(pull("org/name", &options, &mut |_| {}), Err(Error::Offline { .. })));
    assert!(hub.asked().is_empty());

    options.offline = false;
    let folder = resolve("org/name", &options).unwrap();
    options.offline = true;
    assert_eq!(resolve("org/name", &options).unwrap(), folder);
    // a shard that is gone is named
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    fs::write(folder.join("model-00001-of-00002.safetensors"), b"x").unwrap();
    let text = failure(&options).to_string();
    assert!(text.contains("missing model-00002-of-00002.safetensors)"), "{text}");
    // without its tokenizer it is still a model
    fs::write(folder.join("model-00002-of-00002.safetensors"), b"x").unwrap();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert_eq!(resolve("org/name", &options).unwrap(), folder);
}

#[test]
fn a_blob_that_was_lost_is_fetched_again() {
    let repository = Repository::small();
    let weights = repository.weights().to_vec();
    let hub = Server::start(move |request| repository.answer(request));
    let (_guard, options) = options(&hub.address);
    let folder = resolve("org/name", &options).unwrap();
    fs::remove_file(root(&options).join("blobs").join(sha256(&weights))).unwrap();
    assert_eq!(resolve("org/name", &options).unwrap(), folder);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn two_at_the_same_time_are_both_right() {
    let repository = Repository::small();
    let weights = repository.weights().to_vec();
    let hub = Server::start(move |request| repository.answer(request));
    let (_guard, options) = options(&hub.address);
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| resolve("org/name", &options).unwrap())).collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    for folder in folders {
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    }
    assert_eq!(hub.requests().iter().filter(|request| is_weights(request)).count(), 1, "the others waited");
}

#[test]
fn folders_are_taken_as_they_are_and_other_names_are_refused() {
    let hub = Server::start(|_| Answer::new(500, &[]));
    let (guard, options) = options(&hub.address);
    let folder = guard.path().to_str().unwrap();
    assert_eq!(resolve(folder, &options).unwrap(), guard.path());
    for path in ["no-such-folder", "./no/such", "/no/such", "../no/such", "a/b/c/d", "~/no", "no\\such", ""] {
        assert!(matches!(resolve(path, &options), Err(Error::NoSuchPath { .. })), "{path}");
    }
    for id in ["org/na..me", "org/na me", "org/name@../../x", "org/.name", "org/name@"] {
        assert!(matches!(resolve(id, &options), Err(Error::HubId { .. })), "{id}");
    }
    assert!(hub.asked().is_empty());
}

/// The dense layers of an embedding model are part of it: a cache that another program filled without them is completed.
#[test]
fn the_modules_of_an_embedding_model_belong_to_it() {
    let mut repository = Repository::small();
    let modules = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;
    repository.files.insert("modules.json", modules.into());
    for name in ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"] {
        repository.files.insert(name, name.into());
    }
    let hub = Server::start(move |request| repository.answer(request));
    let (_guard, options) = options(&hub.address);
    let folder = resolve("org/name", &options).unwrap();
    let dense = folder.join("2_Dense/model.safetensors");
    assert_eq!(fs::read_to_string(&dense).unwrap(), "2_Dense/model.safetensors");
    let asked = hub.asked().len();
    assert_eq!(resolve("org/name", &options).unwrap(), folder);
    assert_eq!(hub.asked().len(), asked, "a whole model costs no request");
    fs::remove_file(&dense).unwrap();
    assert_eq!(resolve("org/name", &options).unwrap(), folder);
    assert!(dense.is_file(), "what was lacking is there again");
    fs::remove_file(&dense).unwrap();
    let offline = HubOptions { offline: true, ..options };
    let error = resolve("org/name", &offline).unwrap_err().to_string();
    assert!(error.contains("2_Dense/model.safetensors"), "{error}");
}
