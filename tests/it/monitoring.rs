//! Metrics of the real service: what is counted under which names, the door for collectors, and that the dashboard and the
//! alert rules name what there is. Where Prometheus is there (`make monitoring` fetches it), it loads and scrapes all of it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::broker::{Broker, Client, json as payload};
use crate::support::service::{Plan, Service, signal};
use crate::support::{PATIENCE, http, wait_for};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Status and body over TCP.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // HTTP/1.0, so that the body comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// A service with a profile and a door for collectors.
fn service() -> (Service, u16) {
    let port = free_port();
    let more = format!(
        "[metrics]\ntcp = \"127.0.0.1:{port}\"\n[profiles.house]\nsystem = \"garage door: open\"\n"
    );
    (Service::start(&Plan::demo().with(&more)).ready(), port)
}

fn chat(service: &Service, body: &Value) -> u16 {
    http::post(&service.socket(), "/v1/chat/completions", body).status
}

/// One line to the line socket, and the line that comes back.
fn line(service: &Service, request: &str) -> Value {
    let mut stream = UnixStream::connect(service.lines()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

/// The value of a sample.
fn value(page: &str, sample: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {sample} in\n{page}")).parse().unwrap()
}

#[test]
fn requests_are_counted_by_door_profile_and_outcome() {
    let (service, port) = service();
    let hello = json!([{"role": "user", "content": "Is the garage door open?"}]);
    for _ in 0..2 {
        let body = json!({"profile": "house", "max_tokens": 20, "messages": hello});
        assert_eq!(chat(&service, &body), 200);
    }
    assert_eq!(chat(&service, &json!({"messages": hello, "temperature": "hot"})), 400);
    assert_eq!(chat(&service, &json!({"profile": "nobody's", "messages": hello})), 404);
    assert_eq!(chat(&service, &json!({"model": "another", "messages": hello})), 404);
    assert_eq!(line(&service, "Who are you?")["status"], "ok");
    assert_eq!(line(&service, "{\"promt\":\"x\"}")["code"], "bad_request");
    let (status, page) = get(port, "/metrics");
    assert_eq!(status, 200);
    let requests = |door: &str, profile: &str, outcome: &str| {
        let labels = format!("{{door=\"{door}\",profile=\"{profile}\",outcome=\"{outcome}\"}}");
        value(&page, &format!("promptd_requests_total{labels}"))
    };
    for (door, profile, outcome, count) in [
        ("http", "house", "ok", 2.0),
        ("http", "", "bad_request", 1.0),
        ("http", "", "not_found", 2.0),
        ("lines", "", "ok", 1.0),
        ("lines", "", "bad_request", 1.0),
    ] {
        let have = requests(door, profile, outcome);
        assert!((have - count).abs() < 0.5, "{door} {profile} {outcome}: {have}");
    }
    assert!(!page.contains("nobody"), "a name that only a client knows is no label");
    for (sample, least) in [
        ("promptd_first_token_seconds_count", 3.0),
        ("promptd_first_token_seconds_bucket{le=\"+Inf\"}", 3.0),
        ("promptd_token_seconds_count", 3.0),
        ("promptd_completion_tokens_total", 6.0),
        ("promptd_decode_tokens_per_second", 0.001),
        ("promptd_prefill_tokens_per_second", 0.001),
        ("promptd_kv_cache_capacity_tokens", 512.0),
        ("promptd_memory_bytes{process=\"service\"}", 1e6),
        ("promptd_memory_bytes{process=\"engine\"}", 1e6),
        ("promptd_board_memory_available_bytes", 1e6),
    ] {
        let have = value(&page, sample);
        assert!(have >= least, "{sample} is {have}");
    }
    // Nothing else is behind this door.
    for path in ["/v1/models", "/health/ready", "/", "/admin/unload"] {
        assert_eq!(get(port, path).0, 404, "{path}");
    }
    assert!(value(&page, "promptd_kv_cache_tokens").abs() < 0.5, "nothing runs");
}

/// A service at a broker, with one slot, on a board made of files.
fn busy_service(broker: u16, root: &Path) -> Service {
    let thermal = root.join("sys/class/thermal");
    for (name, text) in [
        ("thermal_zone0/temp", "71500"),
        ("cooling_device0/type", "thermal-cpufreq-0"),
        ("cooling_device0/cur_state", "1"),
        ("cooling_device0/max_state", "4"),
    ] {
        std::fs::create_dir_all(thermal.join(name).parent().unwrap()).unwrap();
        std::fs::write(thermal.join(name), format!("{text}\n")).unwrap();
    }
    // Longer than a chunk: what begins alike is found in the KV cache again.
    let rooms: Vec<String> =
        (0..24).map(|n| format!("lamp {n} in the long corridor: on")).collect();
    let rooms = rooms.join("\\n");
    let more = format!("[board]\nroot = {root:?}\n[profiles.house]\nsystem = \"{rooms}\"\n");
    let plan = Plan { slots: Some(1), ..Plan::demo() };
    Service::start(&plan.at_broker(broker).with(&more)).ready()
}

/// One after the other, what a service lives through: a prompt over MQTT, the same again, a queue, the death of its engine.
#[tokio::test]
async fn what_happens_stands_on_the_page() {
    let Some(broker) = Broker::start("") else { return };
    let root = tempfile::tempdir().unwrap();
    let service = busy_service(broker.port, root.path());
    let page = || http::get(&service.socket(), "/metrics").body;
    let topics = ["promptd/n/availability", "promptd/n/answer/#"];
    let mut client = Client::connect(broker.port, "me", &topics, false).await;
    client.until("promptd/n/availability", "online").await;
    for id in ["lamp-1", "lamp-2"] {
        let ask = json!({"id": id, "prompt": "Is lamp 7 on?", "max_tokens": 20});
        client.ask("promptd/n/ask/house", ask.to_string()).await;
        assert_eq!(payload(&client.live().await)["status"], "ok");
    }
    client.ask("promptd/n/ask", r#"{"id":"lamp-3","promt":"x"}"#).await;
    assert_eq!(payload(&client.live().await)["code"], "bad_request");
    let told = page();
    let ok = "promptd_requests_total{door=\"mqtt\",profile=\"house\",outcome=\"ok\"}";
    let wrong = "promptd_requests_total{door=\"mqtt\",profile=\"\",outcome=\"bad_request\"}";
    let counted = |sample| value(&told, sample).to_string();
    assert_eq!([counted(ok), counted(wrong)], ["2", "1"]);
    assert!(value(&told, "promptd_cache_hits_total") >= 1.0, "the second begins as the first");
    assert!(value(&told, "promptd_cached_tokens_total") > 100.0, "{told}");

    // A long answer in the only slot, and one that waits for it.
    let long = json!({"prompt": "Letters", "regex": "[a-z]{300}", "max_tokens": 400}).to_string();
    let (running, waiting) = std::thread::scope(|scope| {
        let first = scope.spawn(|| line(&service, &long)["status"].clone());
        let running = wait_for("the long answer", || {
            let page = page();
            (value(&page, "promptd_kv_cache_tokens") > 0.0).then_some(page)
        });
        let second = scope.spawn(|| line(&service, "Who are you?")["status"].clone());
        // How long it will wait is reckoned anew once a second, so a moment later than that it waits.
        let waiting = wait_for("the one that waits", || {
            let page = page();
            let is = |sample| value(&page, sample) > 0.0;
            (is("promptd_queue_waiting") && is("promptd_queue_eta_seconds")).then_some(page)
        });
        assert_eq!([first, second].map(|asked| asked.join().unwrap()), ["ok", "ok"]);
        (running, waiting)
    });
    for (page, sample, least) in [
        (&running, "promptd_prompts_running", 1.0),
        (&running, "promptd_slots", 1.0),
        (&waiting, "promptd_queue_eta_seconds", 1e-6),
        (&waiting, "promptd_queue_limit", 2.0),
        (&page(), "promptd_eta_error_seconds_count", 1.0),
        (&page(), "promptd_eta_foretold_seconds_total", 1e-6),
        (&page(), "promptd_eta_waited_seconds_total", 1e-6),
        (&page(), "promptd_queue_wait_seconds_count", 4.0),
        (&page(), "promptd_first_token_seconds_count", 4.0),
        (&page(), "promptd_token_seconds_count", 4.0),
        (&page(), "promptd_prompt_tokens_total", 20.0),
        (&page(), "promptd_completion_tokens_total", 20.0),
        (&page(), "promptd_prefill_seconds_total", 1e-6),
        (&page(), "promptd_decode_seconds_total", 1e-6),
        (&page(), "promptd_board_temperature_celsius", 71.5),
        (&page(), "promptd_board_throttled", 1.0),
    ] {
        let have = value(page, sample);
        assert!(have >= least, "{sample} is {have}");
    }

    assert!(value(&page(), "promptd_engine_restarts_total") < 0.5);
    signal(service.engine_pid().expect("an engine"), "KILL");
    wait_for("the next engine", || {
        (value(&page(), "promptd_engine_restarts_total") > 0.5).then_some(())
    });
}

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring")
}

/// The names of promptd's metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c)).filter(|word| word.starts_with("promptd_"));
    words.map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let (service, _) = service();
    // What is only there when something has happened is there now.
    assert_eq!(chat(&service, &json!({"messages": []})), 400);
    let page = names(&http::get(&service.socket(), "/metrics").body);
    // Not every machine has sensors, and not every kernel tells of pressure.
    let of_boards = [
        "promptd_board_temperature_celsius",
        "promptd_board_clock_hertz",
        "promptd_board_clock_max_hertz",
        "promptd_board_memory_pressure_ratio",
    ];
    for file in ["dashboard.json", "alerts.yml"] {
        let text = std::fs::read_to_string(monitoring().join(file)).unwrap();
        let unknown: Vec<String> = names(&text)
            .into_iter()
            .filter(|name| !page.contains(name) && !of_boards.contains(&name.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
        assert!(names(&text).len() > 5, "{file} names nothing");
    }
    let text = std::fs::read_to_string(monitoring().join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}

/// A program of Prometheus: the system's, or the one that `make monitoring` fetched.
fn program(name: &str) -> Option<PathBuf> {
    let fetched =
        Path::new(env!("CARGO_BIN_EXE_promptd")).parent()?.join("../prometheus/usr/bin").join(name);
    let system = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|p| p.join(name)).find(|p| p.is_file()));
    let found = system.or_else(|| fetched.is_file().then_some(fetched));
    if found.is_none() {
        println!("SKIPPED: there is no {name} (`make monitoring` fetches it)");
    }
    found
}

fn promtool(arguments: &[&str], input: &str) -> Option<String> {
    let mut child = Command::new(program("promtool")?)
        .args(arguments)
        .current_dir(monitoring())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let text = words(&output.stdout) + &words(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    Some(text)
}

#[test]
fn promtool_finds_nothing_wrong() {
    let Some(text) = promtool(&["check", "rules", "alerts.yml"], "") else { return };
    assert!(text.contains("9 rules found"), "{text}");
    promtool(&["test", "rules", "alerts_test.yml"], "");
    promtool(&["check", "config", "prometheus.yml"], "");
    let (service, _) = service();
    chat(&service, &json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}));
    // It lints names and help texts as well.
    promtool(&["check", "metrics"], &http::get(&service.socket(), "/metrics").body);
}

/// A Prometheus, ended with the test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prometheus_scrapes_the_service_and_evaluates_the_rules() {
    let Some(prometheus) = program("prometheus") else { return };
    let (service, port) = service();
    chat(&service, &json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}));
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(monitoring().join("prometheus.yml")).unwrap();
    let config = config
        .replace("15s", "1s")
        .replace("127.0.0.1:9808", &format!("127.0.0.1:{port}"))
        .replace("alerts.yml", monitoring().join("alerts.yml").to_str().unwrap());
    std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let web = free_port();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let _running = Prometheus(
        Command::new(prometheus)
            .current_dir(folder.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address=127.0.0.1:{web}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    wait_for("prometheus to listen", || TcpStream::connect((Ipv4Addr::LOCALHOST, web)).ok());
    let query =
        |path: &str| -> Value { serde_json::from_str(&get(web, path).1).unwrap_or(Value::Null) };
    let answered = wait_for("the counter in Prometheus", || {
        let answer = query("/api/v1/query?query=promptd_requests_total");
        let result = answer["data"]["result"].get(0)?.clone();
        Some(result)
    });
    assert_eq!(answered["metric"]["outcome"], "ok", "{answered}");
    let health = wait_for("the rules", || {
        let rules = query("/api/v1/rules");
        let rules = rules["data"]["groups"].get(0)?["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert_eq!(health.len(), 9);
    assert!(health.iter().all(|rule| rule["health"] == "ok"), "{health:?}");
    assert!(health.iter().all(|rule| rule["state"] != "firing"), "{health:?}");
}
