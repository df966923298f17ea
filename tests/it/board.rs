//! A service on a board made of files: what holds it back is told, and while memory is short no new prompts are taken.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::service::{Plan, Service};
use crate::support::{PATIENCE, http, wait_for};

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

/// Asks for an answer of three hundred letters; it comes when it comes.
fn ask_at_length(service: &Service) -> UnixStream {
    let asked = json!({"prompt": "Letters", "regex": "[a-z]{300}", "max_tokens": 400}).to_string();
    let mut stream = UnixStream::connect(service.lines()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{asked}\n").as_bytes()).unwrap();
    stream
}

#[test]
fn a_throttled_board_foretells_longer_waits() {
    let root = tempfile::tempdir().unwrap();
    let files = root.path();
    write(files, "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "600000");
    write(files, "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "2400000");
    write(files, "sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0");
    write(files, "sys/class/thermal/cooling_device0/cur_state", "0");
    let plan = Plan { slots: Some(1), ..Plan::demo() };
    let service = Service::start(&plan.with(&format!("[board]\nroot = {files:?}\n"))).ready();
    // How long such an answer takes is known from the first one.
    let mut answer = String::new();
    BufReader::new(ask_at_length(&service)).read_line(&mut answer).unwrap();
    assert!(answer.contains("\"status\":\"ok\""), "{answer}");

    // So many that most of the wait is still to come when the board is looked at the next time.
    let asked: Vec<UnixStream> = (0..20).map(|_| ask_at_length(&service)).collect();
    let last = || {
        let queue = http::get(&service.socket(), "/v1/queue").json();
        let prompts = queue["prompts"].as_array()?;
        (prompts.len() > 10).then(|| prompts.last()?["eta_ms"].as_u64()).flatten()
    };
    let before = wait_for("the queue", last);
    assert!(before > 0);
    // An idle processor has a low clock, and one that is held back has one too: a quarter of what it could have.
    write(files, "sys/class/thermal/cooling_device0/cur_state", "3");
    wait_for("a longer wait", || last().filter(|now| *now > 2 * before));
    drop(asked);
}
