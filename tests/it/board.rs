//! A service on a board made of files: what holds it back is told, and while memory is short no new prompts are taken.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::service::{Plan, Service};
use crate::support::{http, wait_for};

/// Writes one of the kernel's files.
fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Whole or not at all, as the kernel's files are.
    let beside = path.with_extension("new");
    std::fs::write(&beside, format!("{text}\n")).unwrap();
    std::fs::rename(beside, path).unwrap();
}

fn pressure(root: &Path, percent: &str) {
    let line = format!("avg10={percent} avg60=0.00 avg300=0.00 total=1");
    write(root, "proc/pressure/memory", &format!("some {line}\nfull {line}"));
}

fn ask(service: &Service) -> http::Answer {
    let body = json!({"max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]});
    http::post(&service.socket(), "/v1/chat/completions", &body)
}

fn board(service: &Service) -> Value {
    service.health().map(|health| health["board"].clone()).unwrap_or_default()
}

#[test]
fn heat_is_told_and_a_want_of_memory_pauses_admission() {
    let root = tempfile::tempdir().unwrap();
    let files = root.path();
    write(files, "sys/class/thermal/thermal_zone0/temp", "61000");
    write(files, "sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0");
    write(files, "sys/class/thermal/cooling_device0/cur_state", "0");
    write(files, "sys/class/thermal/cooling_device0/max_state", "4");
    pressure(files, "0.00");
    let more = format!("[board]\nroot = {files:?}\n");
    let service = Service::start(&Plan::demo().with(&more)).ready();
    wait_for("the temperature", || (board(&service)["celsius"] == 60).then_some(()));
    assert_eq!(board(&service)["throttled"], json!([]));
    assert_eq!(ask(&service).status, 200);

    write(files, "sys/class/thermal/cooling_device0/cur_state", "2");
    write(files, "sys/class/thermal/thermal_zone0/temp", "86000");
    pressure(files, "55.00");
    let told = wait_for("the pressure", || {
        let board = board(&service);
        board["short_of_memory"].is_string().then_some(board)
    });
    assert_eq!(told["throttled"], json!(["the kernel slows thermal-cpufreq-0 down, step 2 of 4"]));
    let refused = ask(&service);
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.json()["error"]["code"], "busy");
    assert!(refused.body.contains("short of memory"), "{}", refused.body);
    assert_eq!(refused.header("retry-after"), Some("10"));
    let page = http::get(&service.socket(), "/metrics").body;
    for line in [
        "promptd_board_throttled 1",
        "promptd_board_temperature_celsius 86",
        "promptd_board_memory_pressure_ratio 0.55",
        "promptd_admission_paused 1",
    ] {
        assert!(page.lines().any(|there| there == line), "{line}\n{page}");
    }

    pressure(files, "1.00");
    wait_for("memory", || board(&service).get("short_of_memory").is_none().then_some(()));
    assert_eq!(ask(&service).status, 200);
}

#[test]
fn a_hot_board_runs_with_fewer_threads() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "sys/class/thermal/thermal_zone0/temp", "85000");
    let more = format!("[board]\nroot = {:?}\nhot_celsius = 80\nhot_threads = 1\n", root.path());
    let service = Service::start(&Plan::demo().with(&more)).ready();
    let hot = "the board is hot: the model runs with fewer threads";
    wait_for("the judgement", || service.log().contains(hot).then_some(()));
    wait_for("one thread", || (service.health()?["model"]["threads"] == 1).then_some(()));
    wait_for("the model", || (service.health()?["state"] == "ready").then_some(()));
    assert_eq!(ask(&service).status, 200, "{}", service.log());
}
