//! Crowds before the real service's sockets: thousands of half requests, no file descriptors left, users who may not ask.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Gid, Resource, Rlimit, getrlimit, setrlimit};

use crate::support::service::{Plan, Service};
use crate::support::{PATIENCE, http, wait_for};

/// What a client has sent when it stops in the middle.
const HALVES: [&[u8]; 3] = [
    b"",
    b"POST /v1/comp",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
];

fn half(socket: &Path, number: usize) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    // Who has been sent away already cannot write any more.
    let _ = stream.write_all(HALVES[number % HALVES.len()]);
    stream
}

/// How long an honest client waits for its answer.
fn honest(socket: &Path) -> Duration {
    let began = Instant::now();
    assert_eq!(http::get(socket, "/health/live").status, 200);
    began.elapsed()
}

#[test]
fn thousands_of_half_requests_delay_nobody() {
    const CROWD: usize = 5000;
    let mut limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    limit.current = Some(most.min(CROWD as u64 + 1000));
    setrlimit(Resource::Nofile, Rlimit { ..limit }).unwrap();
    // Where so many files may not be open, the crowd is as large as may be.
    let crowd = CROWD.min(usize::try_from(most).unwrap_or(CROWD).saturating_sub(500));
    let service = Service::start(&Plan::demo()).ready();
    let alone: Vec<Duration> = (0..50).map(|_| honest(&service.socket())).collect();
    let mut halves = Vec::with_capacity(crowd);
    let mut waits = Vec::new();
    for number in 0..crowd {
        halves.push(half(&service.socket(), number));
        if number % 25 == 24 {
            waits.push(honest(&service.socket()));
        }
    }
    let answer = http::post(
        &service.socket(),
        "/v1/completions",
        &serde_json::json!({"prompt": "Once", "max_tokens": 3}),
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
    waits.sort();
    println!(
        "{crowd} half requests: an honest client waits {:?} at the median and {:?} at most (alone {:?} at most)",
        waits[waits.len() / 2],
        waits.last().unwrap(),
        alone.iter().max().unwrap()
    );
    // The machine itself may stop for longer, once or twice.
    assert!(waits[waits.len() * 99 / 100 - 1] < Duration::from_millis(100), "{waits:?}");
}

/// Time on the processor so far, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn without_file_descriptors_it_waits_and_does_not_spin() {
    let service = Service::start(&Plan { open_files: Some(64), ..Plan::demo() }).ready();
    let halves: Vec<UnixStream> = (0..120).map(|at| half(&service.socket(), at)).collect();
    wait_for("the want of descriptors", || {
        service.log().contains("cannot accept a connection").then_some(())
    });
    assert!(honest(&service.socket()) < PATIENCE);
    let before = ticks(service.pid());
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks(service.pid()) - before;
    assert!(used < 30, "{used} of 100 ticks for nothing");
    drop(halves);
    assert!(honest(&service.socket()) < PATIENCE);
    assert!(service.log().lines().count() < 400, "the log is flooded");
}

#[test]
fn who_may_not_ask_is_told_before_the_body_is_read() {
    let service = Service::start(&Plan::demo().with("[clients.default]\ndeny = true\n"));
    wait_for("the doors", || http::try_get(&service.socket(), "/health/live"));
    for path in ["/v1/chat/completions", "/admin/unload", "/api/show", "/v1/nothing"] {
        let mut stream = UnixStream::connect(service.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The body never comes; whoever waited for it would wait for 30 s and answer 408.
        write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n").unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert!(text.starts_with("HTTP/1.1 403 "), "{path}: {text}");
        // Ollama's clients read the reason alone.
        let word = if path.starts_with("/api/") { "may not ask here" } else { "\"forbidden\"" };
        assert!(text.contains(word), "{path}: {text}");
    }
}

/// Credentials belong to a thread, so one of its own shows what another group changes.
#[test]
fn any_group_that_somebody_is_in_counts() {
    let clients = "[clients.strangers]\ngids = [4242]\ndeny = true\n";
    let service = Service::start(&Plan::demo().with(clients)).ready();
    let socket = service.socket();
    let as_a_member_of = |groups: Vec<Gid>| {
        let socket = socket.clone();
        let inside = move || {
            rustix::thread::set_thread_groups(&groups).ok()?;
            Some(http::get(&socket, "/v1/models").status)
        };
        std::thread::Builder::new().spawn(inside).unwrap().join().unwrap()
    };
    let [one, stranger] = [4241, 4242].map(Gid::from_raw);
    let Some(status) = as_a_member_of(vec![one]) else {
        return println!("skipped: only root changes groups");
    };
    assert_eq!(status, 200);
    assert_eq!(as_a_member_of(vec![one, stranger]), Some(403));
}
