//! What is wrong is told by name, with its code, and promptd stays up: configuration, library, model folder, requests.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::service::{Plan, Service, command, output};
use crate::support::{demo_model, http, library, wait_for};

/// Starts promptd with something broken and waits until it says so.
fn failed(plan: &Plan) -> (Service, String) {
    let service = Service::start(plan);
    let message = wait_for("model_failed", || {
        let health = service.health()?;
        (health["state"] == "model_failed")
            .then(|| health["message"].as_str().unwrap_or("").to_owned())
    });
    // It stays up and tells askers the same.
    let answer = http::post(&service.socket(), "/v1/completions", &json!({"prompt": "hello"}));
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (503, Some("model_failed")),
        "{}",
        answer.body
    );
    assert_eq!(http::get(&service.socket(), "/health/live").status, 200);
    (service, message)
}

fn damaged_library(name: &str, damage: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut bytes = std::fs::read(library()).unwrap();
    damage(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_library_that_cannot_be_used_is_told_by_its_fault() {
    let missing = PathBuf::from("/nowhere/libonnxruntime.so");
    let (_a, truncated) = damaged_library("truncated.so", |bytes| bytes.truncate(bytes.len() / 2));
    // Byte 18 of an ELF header is the machine: 183 is aarch64, 62 is x86-64.
    let (_b, foreign) =
        damaged_library("foreign.so", |bytes| bytes[18] = if bytes[18] == 62 { 183 } else { 62 });
    let (_c, no_library) =
        damaged_library("text.so", |bytes| *bytes = b"not a library at all".to_vec());
    let table = [
        (&missing, vec!["/nowhere/libonnxruntime.so", "no such file"]),
        (&truncated, vec!["truncated.so", "cut short"]),
        (&foreign, vec!["foreign.so", "x86-64", "aarch64"]),
        (&no_library, vec!["text.so", "no shared library"]),
    ];
    for (path, words) in table {
        let (_service, message) = failed(&Plan { library: path.clone(), ..Plan::demo() });
        for word in words {
            assert!(
                message.to_lowercase().contains(&word.to_lowercase()),
                "{message:?} does not say {word:?}"
            );
        }
    }
}

#[test]
fn a_library_that_kills_its_process_is_told_by_the_signal() {
    // The headers are whole, so nothing can be seen from outside; the code behind them is not.
    let (_folder, path) = damaged_library("corrupt.so", |bytes| {
        let from = bytes.len() / 3;
        let to = bytes.len() / 2;
        bytes[from..to].fill(0);
    });
    let (_service, message) = failed(&Plan { library: path, ..Plan::demo() });
    assert!(message.contains("corrupt.so") && message.contains("killed"), "{message}");
}

#[test]
fn a_library_that_is_too_old_is_told_by_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let (source, object) = (folder.path().join("old.c"), folder.path().join("libonnxruntime.so"));
    // The two functions every libonnxruntime begins with (onnxruntime_c_api.h, OrtApiBase), as an old one would answer.
    let code = "#include <stddef.h>\n#include <stdint.h>\n\
        static const void *api(uint32_t version) { (void)version; return NULL; }\n\
        static const char *version(void) { return \"1.17.3\"; }\n\
        struct base { const void *(*get_api)(uint32_t); const char *(*get_version)(void); };\n\
        static const struct base base = { api, version };\n\
        const struct base *OrtGetApiBase(void) { return &base; }\n";
    std::fs::write(&source, code).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&object, &source])
        .status()
        .unwrap();
    assert!(built.success());
    let (_service, message) = failed(&Plan { library: object, ..Plan::demo() });
    assert!(message.contains("1.17.3") && message.contains("1.24"), "{message}");
}

fn copy_of_demo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo_model()).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

#[test]
fn a_model_folder_that_is_not_whole_is_refused_by_the_file() {
    type Damage = fn(&Path);
    let table: [(&str, Damage, &[&str]); 6] = [
        ("no graph", |d| std::fs::remove_file(d.join("model.onnx")).unwrap(), &["model.onnx"]),
        (
            "no weights",
            |d| std::fs::remove_file(d.join("model.onnx.data")).unwrap(),
            &["model.onnx.data"],
        ),
        (
            "no tokenizer",
            |d| std::fs::remove_file(d.join("tokenizer.json")).unwrap(),
            &["tokenizer.json"],
        ),
        (
            "half the weights",
            |d| {
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .open(d.join("model.onnx.data"))
                    .unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            },
            &["model.onnx.data", "bytes"],
        ),
        (
            "another graph",
            |d| std::fs::write(d.join("model.onnx"), [0, 255].repeat(500)).unwrap(),
            &["model.onnx"],
        ),
        (
            "no JSON",
            |d| std::fs::write(d.join("genai_config.json"), "{ \"model\": ").unwrap(),
            &["genai_config.json"],
        ),
    ];
    for (what, damage, words) in table {
        let folder = copy_of_demo();
        damage(folder.path());
        let (_service, message) = failed(&Plan::of_model(folder.path()));
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{what}: {message:?} does not say {words:?}"
        );
    }
    let (_service, message) = failed(&Plan::of_model(Path::new("/nowhere/model")));
    assert!(message.contains("/nowhere/model"), "{message}");
}

#[test]
fn a_folder_that_is_mended_is_taken_without_a_restart_of_the_service() {
    let folder = copy_of_demo();
    let tokenizer = folder.path().join("tokenizer.json");
    let aside = folder.path().join("tokenizer.aside");
    std::fs::rename(&tokenizer, &aside).unwrap();
    let (service, _) = failed(&Plan::of_model(folder.path()));
    std::fs::rename(&aside, &tokenizer).unwrap();
    let service = wait_for_ready_again(service);
    drop(service);
}

fn wait_for_ready_again(service: Service) -> Service {
    wait_for("the mended model", || (service.health()?["state"] == "ready").then_some(()));
    service
}

#[test]
fn a_wrong_configuration_ends_with_its_place_and_status_78() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("promptd.toml");
    let table = [
        (
            "[model]\npath = \"/m\"\n[sockets]\n",
            ":3:2: unknown key `sockets`; did you mean `socket`?",
        ),
        ("[model]\npath = 7\n", ":2:8: "),
        ("[model\n", ":1:"),
        ("[model]\npath = \"/m\"\n", "no door is open"),
        ("[model]\npath = \"/m\"\n[mqtt]\nurl = \"http://broker\"\n", "mqtt://"),
        ("[model]\npath = \"/m\"\n[mqtt]\nurl = \"mqtt://broker\"\nnode = \"a/b\"\n", "node"),
        (
            "[model]\npath = \"/m\"\n[socket]\npath = \"/tmp/x\"\n[log]\nlevel = \"promptd=loud\"\n",
            "log.level",
        ),
    ];
    for (text, wanted) in table {
        std::fs::write(&path, text).unwrap();
        let mut serve = command(&["serve", "--config"]);
        serve.arg(&path);
        let (status, _, errors) = output(serve);
        assert_eq!(status, 78, "{text}\n{errors}");
        assert!(errors.contains(wanted), "{text}\ngave {errors}\nnot  {wanted}");
    }
    let mut serve = command(&["serve", "--config", "/nowhere/promptd.toml"]);
    serve.env("PROMPTD__MODEL__PATH", "/m");
    let (status, _, errors) = output(serve);
    assert_eq!(status, 78);
    assert!(errors.contains("/nowhere/promptd.toml"), "{errors}");
}

#[test]
fn a_socket_path_that_cannot_be_had_is_told_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a socket").unwrap();
    let live = folder.path().join("live.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&live).unwrap();
    let long = folder.path().join("x".repeat(120));
    let table = [
        (file, "not a socket"),
        (live, "in use"),
        (long, "107"),
        (PathBuf::from("/nowhere/at/all.sock"), "/nowhere/at"),
    ];
    for (path, wanted) in table {
        let config = folder.path().join("promptd.toml");
        std::fs::write(
            &config,
            format!("[model]\npath = {:?}\n[socket]\npath = {path:?}\n", demo_model()),
        )
        .unwrap();
        let mut serve = command(&["serve", "--config"]);
        serve.arg(&config);
        let (status, _, errors) = output(serve);
        assert_ne!(status, 0);
        assert!(
            errors.contains(wanted) && errors.contains(&*path.to_string_lossy()),
            "{}: {errors}",
            path.display()
        );
    }
}

#[test]
fn two_services_do_not_share_a_state_directory() {
    let first = Service::start(&Plan::demo()).ready();
    let place = first.socket().parent().unwrap().to_owned();
    let config = place.join("second.toml");
    let text = format!(
        "[model]\npath = {:?}\n[socket]\npath = {:?}\n[state]\ndir = {:?}\n",
        demo_model(),
        place.join("2.sock"),
        place.join("state")
    );
    std::fs::write(&config, text).unwrap();
    let mut serve = command(&["serve", "--config"]);
    serve.arg(&config);
    let (status, _, errors) = output(serve);
    assert_ne!(status, 0);
    assert!(errors.contains("state") && errors.contains("another promptd"), "{errors}");
}

#[test]
fn a_request_that_is_wrong_gets_its_code_and_the_next_one_is_answered() {
    let service = Service::start(&Plan::demo()).ready();
    let long = "word ".repeat(3000);
    let table: [(Value, u16, &str); 7] = [
        (json!({"prompt": 7}), 400, "bad_request"),
        (json!({"prompt": "a", "max_tokens": -1}), 400, "bad_request"),
        (json!({"prompt": "a", "temperature": "hot"}), 400, "bad_request"),
        (json!({"prompt": "a", "temprature": 1}), 400, "bad_request"),
        (json!({"prompt": "a", "model": "another"}), 404, "not_found"),
        (json!({"prompt": "a", "profile": "nobody"}), 404, "not_found"),
        (json!({"prompt": long}), 400, "context_length_exceeded"),
    ];
    for (body, status, code) in table {
        let answer = http::post(&service.socket(), "/v1/completions", &body);
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, error["code"].as_str()),
            (status, Some(code)),
            "{body:.100} gave {}",
            answer.body
        );
        if code == "context_length_exceeded" {
            let (limit, have) = (error["limit"].as_u64().unwrap(), error["have"].as_u64().unwrap());
            assert!(have > limit, "{error}");
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains(&limit.to_string()) && message.contains(&have.to_string()),
                "{message}"
            );
        }
    }
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}});
    let answer = http::post(
        &service.socket(),
        "/v1/completions",
        &json!({"prompt": "a", "response_format": schema}),
    );
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (400, Some("bad_request")),
        "{}",
        answer.body
    );
    assert_eq!(
        http::post(&service.socket(), "/v1/completions", &json!({"prompt": "a", "max_tokens": 1}))
            .status,
        200
    );
}
