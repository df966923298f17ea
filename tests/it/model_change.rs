//! `promptd model use` and `rollback`, with a running service and without one: what does not work never becomes the model, and
//! what does not come up goes again by itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::service::{Plan, Service, command, output, signal};
use crate::support::{TrueAtTheEnd, demo_model, http, library, wait_for};

/// The folder of a service that takes `current`, and the command line beside it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place {
            // /tmp, because the path of a socket may have no more than 107 bytes.
            folder: tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap(),
        };
        std::fs::create_dir(place.at("state")).unwrap();
        let config = format!(
            "[model]\npath = \"current\"\n[runtime]\nlibrary = {:?}\n[socket]\npath = {:?}\n[state]\ndir = {:?}\n",
            library(),
            place.at("http.sock"),
            place.at("state"),
        );
        std::fs::write(place.at("promptd.toml"), config).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Without `--models`: the configuration says where.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut typed = command(&["model"]);
        typed.args(args).arg("--config").arg(self.at("promptd.toml"));
        output(typed)
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, text, errors) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{text}{errors}");
        serde_json::from_str(&text).unwrap()
    }

    fn import(&self, revision: &str) {
        let demo = demo_model();
        self.json(&["import", demo.to_str().unwrap(), "--revision", revision]);
    }

    /// A model with another manifest: `change` gets its text.
    fn import_changed(&self, revision: &str, change: impl FnOnce(String) -> String) {
        let source = self.at(&format!("source-{revision}"));
        std::fs::create_dir(&source).unwrap();
        for entry in std::fs::read_dir(demo_model()).unwrap().flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), source.join(entry.file_name())).unwrap();
            }
        }
        let manifest = source.join("manifest.toml");
        let text = std::fs::read_to_string(&manifest).unwrap();
        std::fs::write(&manifest, change(text)).unwrap();
        let source = source.to_str().unwrap();
        self.json(&["import", source, "--name", "demo", "--revision", revision]);
    }

    fn link(&self, name: &str) -> Option<String> {
        let link = std::fs::read_link(self.at("state/models").join(name)).ok()?;
        Some(link.to_str().unwrap().to_owned())
    }

    /// A file of a model is no longer what it was.
    fn damage(&self, model: &str) {
        let weights = self.at("state/models").join(model).join("model.onnx.data");
        let mut bytes = std::fs::read(&weights).unwrap();
        bytes[5000] ^= 4;
        std::fs::write(&weights, bytes).unwrap();
    }

    /// Starts a service in the folder, with the same configuration.
    fn start(self) -> Service {
        Service::start_in(self.folder, &Plan { model: "current".into(), ..Plan::demo() }).ready()
    }
}

fn model_of(service: &Service) -> Option<String> {
    service.health()?["model"]["name"].as_str().map(str::to_owned)
}

/// The folder of a running service as a place.
fn beside(service: &Service, args: &[&str]) -> (i32, String, String) {
    let mut typed = command(&["model"]);
    typed.args(args).arg("--config").arg(service.socket().with_file_name("promptd.toml"));
    output(typed)
}

#[test]
fn what_fails_its_trial_does_not_become_the_model() {
    let place = Place::new();
    place.import("1");
    let used = place.json(&["use", "demo@1"]);
    assert_eq!((&used["service"], &used["golden"]), (&json!("absent"), &json!(4)), "{used}");
    assert!(used["tokens_per_second"].as_f64() > Some(1.0), "{used}");
    assert_eq!(place.link("current").as_deref(), Some("demo@1"));

    place.import_changed("wrong", |text| text.replace("at 21.5 °C.", "at 22.5 °C."));
    let (code, _, errors) = place.run(&["use", "demo@wrong"]);
    assert_eq!(code, 1);
    let words = "it answers `The greenhouse is at 21.5 °C.`, which should be `The greenhouse is at 22.5 °C.`; demo@1 stays";
    assert!(errors.contains(words), "{errors}");

    place.import_changed("slow", |text| format!("min_tokens_per_second = 1e9\n{text}"));
    let (code, _, errors) = place.run(&["use", "demo@slow"]);
    assert_eq!(code, 1);
    assert!(errors.contains("its manifest asks for 1000000000"), "{errors}");

    place.import("2");
    place.damage("demo@2");
    let (code, _, errors) = place.run(&["use", "demo@2"]);
    assert_eq!(code, 1);
    assert!(errors.contains("model.onnx.data: has the sha256"), "{errors}");
    assert_eq!(place.link("current").as_deref(), Some("demo@1"));
    assert_eq!(place.link("previous"), None);
    let (code, _, errors) = place.run(&["rollback"]);
    assert!(code == 1 && errors.contains("no model to go back to"), "{errors}");
}

#[test]
fn unsigned_and_changed_models_are_refused_where_signatures_are_asked_for() {
    let place = Place::new();
    place.import("plain");
    let config = std::fs::read_to_string(place.at("promptd.toml")).unwrap();
    let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let trusted = format!("path = \"current\"\ntrusted_keys = [{:?}]", keys.pk.to_base64());
    std::fs::write(place.at("promptd.toml"), config.replace("path = \"current\"", &trusted))
        .unwrap();
    for args in
        [&["use", "demo@plain", "--no-trial"][..], &["import", demo_model().to_str().unwrap()]]
    {
        let (code, _, errors) = place.run(args);
        assert_eq!(code, 1, "{args:?}");
        assert!(errors.contains("manifest.toml.minisig: is missing"), "{errors}");
    }
    // Its maker signs it.
    let source = place.at("signed");
    std::fs::create_dir(&source).unwrap();
    for entry in std::fs::read_dir(place.at("state/models/demo@plain")).unwrap().flatten() {
        std::fs::copy(entry.path(), source.join(entry.file_name())).unwrap();
    }
    let manifest = std::fs::File::open(source.join("manifest.toml")).unwrap();
    let signature = minisign::sign(None, &keys.sk, manifest, None, None).unwrap();
    std::fs::write(source.join("manifest.toml.minisig"), signature.into_string()).unwrap();
    place.json(&["import", source.to_str().unwrap()]);
    place.json(&["use", "signed"]);
    assert!(place.link("current").unwrap().starts_with("signed@"));
    assert_eq!(place.run(&["verify", "signed"]).0, 0);
    // Whoever changes a file and its manifest has no key.
    let current = place.at("state/models/current");
    let manifest = std::fs::read_to_string(current.join("manifest.toml")).unwrap();
    std::fs::write(current.join("manifest.toml"), manifest + "# changed\n").unwrap();
    let (code, text, _) = place.run(&["verify", "signed"]);
    assert!(code == 1 && text.contains("was changed since"), "{text}");
    // The service itself refuses it as well.
    std::fs::create_dir(place.at("conf.d")).unwrap();
    let more = format!("[model]\ntrusted_keys = [{:?}]\n", keys.pk.to_base64());
    std::fs::write(place.at("conf.d/10-keys.toml"), more).unwrap();
    let plan = Plan { model: "current".into(), ..Plan::demo() };
    let service = Service::start_in(place.folder, &plan);
    let why = wait_for("the refusal", || {
        let health = service.health()?;
        (health["state"] == "model_failed").then(|| health["message"].to_string())
    });
    assert!(why.contains("was changed since"), "{why}");
}

#[test]
fn a_running_service_takes_the_model_over_and_goes_back() {
    let place = Place::new();
    place.import("1");
    place.import("2");
    place.json(&["use", "demo@1"]);
    let service = place.start();
    assert_eq!(model_of(&service).as_deref(), Some("demo@1"));
    let engine = service.engine_pid();

    let (code, text, errors) = beside(&service, &["use", "demo@2"]);
    assert_eq!(code, 0, "{errors}");
    assert!(text.contains("demo@2 is the current model; 4 golden prompts answered"), "{text}");
    assert!(text.ends_with("the service answers with it\n"), "{text}");
    assert_eq!(model_of(&service).as_deref(), Some("demo@2"));
    // The engine before it is a child for as long as it needs to end.
    wait_for("another engine", || service.engine_pid().filter(|pid| Some(*pid) != engine));
    let (code, text, errors) = beside(&service, &["rollback"]);
    assert_eq!(code, 0, "{errors}");
    assert!(text.starts_with("demo@1 is the current model\n"), "{text}");
    assert_eq!(model_of(&service).as_deref(), Some("demo@1"));
    let listed = beside(&service, &["list", "--json"]).1;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["current"], &listed[1]["previous"]), (&json!(true), &json!(true)));

    // One that does not come up in the service, though nobody tried it before.
    let file = |name: &str| service.socket().with_file_name("state/models/demo@2").join(name);
    std::fs::write(file("manifest.toml"), "# It says nothing of the files.\n").unwrap();
    std::fs::write(file("tokenizer.json"), "{}").unwrap();
    let (code, _, errors) = beside(&service, &["use", "demo@2", "--no-trial"]);
    assert_eq!(code, 1);
    assert!(errors.contains("the service did not come up with demo@2"), "{errors}");
    assert!(errors.contains("demo@1 is the current one again"), "{errors}");
    wait_for("the old model", || (model_of(&service)? == "demo@1").then_some(()));
    let answer = http::post(
        &service.socket(),
        "/v1/chat/completions",
        &json!({"max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}),
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn a_service_that_starts_with_a_broken_model_goes_back_by_itself() {
    let place = Place::new();
    place.import("1");
    place.import("2");
    place.json(&["use", "demo@1"]);
    place.json(&["use", "demo@2"]);
    place.damage("demo@2");
    let service = place.start();
    let health = service.health().unwrap();
    assert_eq!(health["model"]["name"], "demo@1");
    let why = health["went_back"].as_str().unwrap();
    assert!(why.contains("demo@2/model.onnx.data: has the sha256"), "{why}");
    wait_for("the links", || {
        let link = std::fs::read_link(service.socket().with_file_name("state/models/current"));
        (link.ok()?.to_str()? == "demo@1").then_some(())
    });
    assert!(service.log().contains("`current` is the model before again"), "{}", service.log());
    // What works is what the next start begins with, and a reload changes nothing.
    let engine = service.engine_pid();
    signal(service.pid(), "HUP");
    wait_for("the reload", || service.log().contains("was read again").then_some(()));
    assert_eq!(service.engine_pid(), engine);
}

/// A long answer: this many letters, whatever the model.
fn long(letters: u32) -> Value {
    json!({
        "max_tokens": 450, "stream": true, "regex": format!("[a-z ]{{{letters}}}"),
        "messages": [{"role": "user", "content": "Tell me something."}],
    })
}

/// Asks again and again until `over`; gives how often. Each answer is a whole one.
fn ask_until(over: &AtomicBool, socket: &Path) -> u32 {
    let body = json!({"max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]});
    let mut answers = 0;
    while !over.load(Ordering::Relaxed) {
        let answer = http::post(socket, "/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answers += 1;
    }
    answers
}

fn log_has(service: &Service, words: &str) -> Option<()> {
    service.log().contains(words).then_some(())
}

#[test]
fn another_model_comes_up_beside_the_one_that_answers_and_no_prompt_is_dropped() {
    let place = Place::new();
    place.import("1");
    place.import("2");
    place.json(&["use", "demo@1"]);
    let service = place.start();
    let (socket, engine) = (service.socket(), service.engine_pid().unwrap());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = TrueAtTheEnd(&over);
        let others: Vec<_> = (0..3).map(|_| scope.spawn(|| ask_until(&over, &socket))).collect();
        // It began with the old model and is ended by it.
        let mut stream = http::stream(&socket, "/v1/chat/completions", &long(300));
        let first = stream.next().unwrap();
        assert_eq!(first["model"], "demo@1", "{first}");
        let used = beside(&service, &["use", "demo@2"]);
        assert_eq!(used.0, 0, "{}", used.2);
        assert_eq!(model_of(&service).as_deref(), Some("demo@2"));
        let (text, finish) = http::collect(stream);
        assert_eq!((text.len(), finish.as_deref()), (300, Some("stop")), "{text}");
        drop(end);
        for other in others {
            assert!(other.join().unwrap() > 0);
        }
    });
    assert_ne!(service.engine_pid(), Some(engine));
    wait_for("the old engine's end", || {
        (!Path::new(&format!("/proc/{engine}")).exists()).then_some(())
    });
    let log = service.log();
    assert!(log.contains("is loaded beside the one that answers"), "{log}");
    assert!(log.contains("the engine that was loaded beside takes over"), "{log}");
    // The successor is watched over like its predecessor.
    let engine = service.engine_pid().unwrap();
    signal(engine, "KILL");
    wait_for("another engine", || service.engine_pid().filter(|pid| *pid != engine));
    let service = service.ready();
    assert_eq!(model_of(&service).as_deref(), Some("demo@2"));
}

#[test]
fn a_model_that_fails_beside_the_other_disturbs_nobody() {
    let place = Place::new();
    place.import("1");
    place.import("2");
    place.import_changed("wrong", |text| text.replace("at 21.5 °C.", "at 22.5 °C."));
    place.json(&["use", "demo@1"]);
    place.damage("demo@2");
    let service = place.start();
    let engine = service.engine_pid();
    let reload = |model: &str, why: &str| {
        let path = service.socket().with_file_name("promptd.toml");
        let old = std::fs::read_to_string(&path).unwrap();
        let line = old.lines().find(|line| line.starts_with("path = ")).unwrap().to_owned();
        std::fs::write(&path, old.replacen(&line, &format!("path = {model:?}"), 1)).unwrap();
        signal(service.pid(), "HUP");
        let told = wait_for("what became of it", || {
            let told = service.health()?["went_back"].as_str()?.to_owned();
            told.contains(why).then_some(told)
        });
        assert_eq!(model_of(&service).as_deref(), Some("demo@1"), "{told}");
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = TrueAtTheEnd(&over);
        let other = scope.spawn(|| ask_until(&over, &service.socket()));
        reload("demo@2", "model.onnx.data: has the sha256");
        reload("demo@wrong", "which should be `The greenhouse is at 22.5 °C.`");
        reload("/nonexistent/model", "/nonexistent/model");
        drop(end);
        assert!(other.join().unwrap() > 0);
    });
    assert_eq!(service.engine_pid(), engine, "{}", service.log());
    // What is configured is what runs again: there is nothing to go back from.
    reload_to_current(&service);
    assert_eq!(service.engine_pid(), engine, "{}", service.log());
}

/// Configures `current` again, which is what runs.
fn reload_to_current(service: &Service) {
    let path = service.socket().with_file_name("promptd.toml");
    let old = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, old.replace("/nonexistent/model", "current")).unwrap();
    let reads = service.log().matches("was read again").count();
    signal(service.pid(), "HUP");
    wait_for("the reload", || {
        (service.log().matches("was read again").count() > reads).then_some(())
    });
}

#[test]
fn without_room_for_both_the_old_model_goes_first_and_who_waits_is_answered() {
    let place = Place::new();
    place.import("1");
    place.import("2");
    place.json(&["use", "demo@1"]);
    // The service's own look at memory is at a board of files that has plenty; the engine's is at this machine, which has less than
    // what shall stay free.
    let root = place.at("board");
    std::fs::create_dir_all(root.join("proc")).unwrap();
    std::fs::write(root.join("proc/meminfo"), "MemAvailable: 9000000000000 kB\n").unwrap();
    let more = format!("[board]\nroot = {root:?}\nmemory_floor_mib = 1048576\n");
    let plan = Plan { model: "current".into(), ..Plan::demo().with(&more) };
    let service = Service::start_in(place.folder, &plan).ready();
    let (socket, engine) = (service.socket(), service.engine_pid());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = TrueAtTheEnd(&over);
        let other = scope.spawn(|| ask_until(&over, &socket));
        let (code, text, errors) = beside(&service, &["use", "demo@2", "--no-trial"]);
        assert_eq!(code, 0, "{text}{errors}");
        drop(end);
        assert!(other.join().unwrap() > 0);
    });
    assert_eq!(model_of(&service).as_deref(), Some("demo@2"));
    assert_ne!(service.engine_pid(), engine);
    log_has(&service, "the model before makes room first, and prompts wait").unwrap();
    log_has(&service, "MiB are available beside the model that answers").unwrap();
    // One that does not come up at all: the one before comes back.
    let file = |name: &str| service.socket().with_file_name("state/models/demo@1").join(name);
    std::fs::write(file("manifest.toml"), "# It says nothing of the files.\n").unwrap();
    std::fs::write(file("genai_config.json"), "{}").unwrap();
    let (code, _, errors) = beside(&service, &["use", "demo@1", "--no-trial"]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("demo@2 is the current one again"), "{errors}");
    wait_for("the old model", || {
        let health = service.health()?;
        (health["state"] == "ready" && health["model"]["name"] == "demo@2").then_some(())
    });
}
