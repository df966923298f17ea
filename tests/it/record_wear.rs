//! What the record writes, and what it does on a disk whose writes fail: for real, with small file systems of our own where
//! we may mount any.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use crate::support::broker::{Broker, Client};
use crate::support::service::{Plan, Service};
use crate::support::{PATIENCE, http};

/// Bytes that a process has handed to the file systems of disks.
fn written(service: &Service) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", service.pid())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.parse().unwrap()
}

/// Name, length and time of everything in the state directory.
fn files(state: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut files: Vec<_> = std::fs::read_dir(state)
        .unwrap()
        .flatten()
        .map(|entry| {
            let about = entry.metadata().unwrap();
            (entry.path(), about.len(), about.modified().unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Waits until nothing was written for longer than the record ever waits with a write.
async fn at_rest(service: &Service, state: &Path) {
    service.until_written().await;
    let deadline = Instant::now() + PATIENCE;
    let is_old = |(_, _, changed): &(PathBuf, u64, SystemTime)| {
        changed.elapsed().is_ok_and(|age| age > Duration::from_millis(2500))
    };
    while !files(state).iter().all(is_old) {
        assert!(Instant::now() < deadline, "the record is never at rest: {:?}", files(state));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_is_refused_writes_nothing_and_what_is_answered_little() {
    const PROMPTS: u64 = 40;
    let Some(broker) = Broker::start("") else { return };
    let uid = rustix::process::getuid().as_raw();
    let clients = format!(
        "[clients.me]\nuids = [{uid}]\nprompts_per_minute = 1\n[clients.flood]\nmqtt = [\"flood\"]\nprompts_per_minute = 1\n"
    );
    let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
    let state = folder.path().join("state");
    let service =
        Service::start_in(folder, &Plan::demo().at_broker(broker.port).with(&clients)).ready();
    let mut client = Client::connect(broker.port, "flood", &["promptd/n/answer/#"], false).await;
    let before = written(&service);
    for n in 0..PROMPTS {
        let prompt =
            json!({"id": format!("a{n}"), "prompt": "Is the garage door open?", "max_tokens": 8});
        let answer = client.asked(prompt).await;
        assert_eq!(answer["status"], "ok", "{answer}");
    }
    let first = json!({"id": "flood:first", "prompt": "hi", "max_tokens": 2});
    assert_eq!(client.asked(first).await["status"], "ok");
    let chat = json!({"max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]});
    assert_eq!(http::post(&service.socket(), "/v1/chat/completions", &chat).status, 200);
    at_rest(&service, &state).await;
    let each = (written(&service) - before) / (PROMPTS + 1);
    println!(
        "{each} bytes were written for a prompt, from its acceptance to its delivery, one after the other"
    );
    assert!(each < 64 << 10, "{each} bytes for a prompt");

    // A flood that is refused: who floods may ask once a minute, and has.
    let (before, is, log) = (written(&service), files(&state), service.log().len());
    let mut refused = 0;
    for n in 0..300 {
        let prompt = json!({"id": format!("flood:{n}"), "prompt": "Is the garage door open?"});
        let answer = client.asked(prompt).await;
        if answer["status"] == "ok" {
            return println!("SKIPPED: the minute is over; this machine is too slow for a flood");
        }
        assert_eq!(answer["code"], "rate_limited", "{answer}");
        assert!(answer["retry_after_ms"].is_u64(), "{answer}");
        refused += 1;
        if n % 3 == 0 {
            let answer = http::post(&service.socket(), "/v1/chat/completions", &chat);
            assert_eq!(answer.status, 429, "{}", answer.body);
            refused += 1;
        }
    }
    assert_eq!(files(&state), is, "the record is as it was");
    // The log of this test is a file as well: it is all that may have been written.
    let (more, text) = (written(&service) - before, service.log());
    let lines = text.get(log..).unwrap_or_default();
    println!(
        "{more} bytes were written for {refused} refusals, the log included: {} bytes",
        lines.len()
    );
    // One in a minute and what the others were in sum, for each door.
    assert!(lines.matches("not answered").count() <= 4, "{lines}");
    assert!(lines.len() < 4096, "{} bytes for {refused} refusals:\n{lines}", lines.len());
}

/// A file system on a device whose writes fail when the file beneath it finds no room. Unmounted when dropped.
struct Failing {
    below: PathBuf,
    state: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Failing {
    /// `None`, and a line that says so, where this user may not mount.
    fn at(folder: &Path) -> Option<Failing> {
        let failing = Failing { below: folder.join("below"), state: folder.join("state") };
        std::fs::create_dir(&failing.below).unwrap();
        std::fs::create_dir(&failing.state).unwrap();
        let below = failing.below.to_str().unwrap();
        let mounted = run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", below])
            && failing.make("disk")
            && failing.mount("disk");
        if mounted {
            return Some(failing);
        }
        println!("SKIPPED: no file system can be mounted here; that needs root and loop devices");
        None
    }

    fn file(&self, name: &str) -> String {
        self.below.join(name).to_str().unwrap().to_owned()
    }

    fn make(&self, name: &str) -> bool {
        let file = std::fs::File::create(self.file(name)).unwrap();
        file.set_len(64 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", &self.file(name)])
    }

    fn mount(&self, name: &str) -> bool {
        let options = "loop,errors=remount-ro";
        run("mount", &["-o", options, &self.file(name), self.state.to_str().unwrap()])
    }

    /// Nothing more finds room beneath it.
    fn break_it(&self) {
        let _ = std::fs::write(self.file("filler"), vec![0; 32 << 20]);
    }

    /// The file system finds an error and makes itself read-only, with its files open.
    fn make_read_only(&self) {
        let source =
            Command::new("findmnt").args(["-no", "SOURCE"]).arg(&self.state).output().unwrap();
        let device = String::from_utf8(source.stdout).unwrap();
        let name = device.trim().strip_prefix("/dev/").expect("a loop device").to_owned();
        std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "by the test").unwrap();
    }

    /// Another device with what was on it takes its place, as after the card was put in again.
    fn mend(&self) {
        let _ = std::fs::remove_file(self.file("filler"));
        assert!(run("cp", &["--sparse=always", &self.file("disk"), &self.file("copy")]));
        assert!(run("umount", &["-l", self.state.to_str().unwrap()]));
        assert!(self.mount("copy"));
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        run("umount", &["-l", self.state.to_str().unwrap()]);
        run("umount", &["-l", self.below.to_str().unwrap()]);
    }
}

#[tokio::test]
async fn a_disk_whose_writes_fail_until_it_is_read_only_stops_nobody() {
    let Some(broker) = Broker::start("") else { return };
    let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
    let Some(disk) = Failing::at(folder.path()) else { return };
    let service = Service::start_in(folder, &Plan::demo().at_broker(broker.port)).ready();
    let mut client = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let prompt = |n: u32| {
        let text = format!("{n} {}", "x ".repeat(150));
        json!({"id": format!("a{n}"), "prompt": text, "max_tokens": 4})
    };
    assert_eq!(client.asked(prompt(0)).await["status"], "ok");
    disk.break_it();
    let mut n = 0;
    let degraded = loop {
        n += 1;
        assert_eq!(client.asked(prompt(n)).await["status"], "ok");
        let health = service.health().unwrap();
        if health["state"] == "degraded" {
            break health;
        }
        assert!(n < 500, "the disk never fails: {health}");
    };
    let reason = degraded["record"]["reason"].as_str().unwrap();
    println!("after {n} prompts: {reason}");
    let known = ["the disk fails", "is read-only", "cannot be opened", "the disk is full"];
    assert!(known.iter().any(|known| reason.contains(known)), "{reason}");
    // It goes on, with what the broker keeps until the answer.
    for more in 1..4 {
        assert_eq!(client.asked(prompt(n + more)).await["status"], "ok");
    }
    disk.mend();
    let health = service.until("recovery", |health| health["state"] == "ready").await;
    assert!(health["record"].get("reason").is_none(), "{health}");
    assert_eq!(client.asked(prompt(n + 9)).await["status"], "ok");
    service.until_written().await;
    let (status, log) = service.stop();
    assert!(status.success() && log.contains("can be written again"), "{log}");
    drop(disk);
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_under_a_running_service_stops_nobody() {
    let Some(broker) = Broker::start("") else { return };
    let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
    let Some(disk) = Failing::at(folder.path()) else { return };
    let service = Service::start_in(folder, &Plan::demo().at_broker(broker.port)).ready();
    let mut client = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let prompt = |id: &str| json!({"id": id, "prompt": "hi", "max_tokens": 4});
    assert_eq!(client.asked(prompt("before")).await["status"], "ok");
    disk.make_read_only();
    assert_eq!(client.asked(prompt("while")).await["status"], "ok");
    let health = service.until("trouble", |health| health["state"] == "degraded").await;
    let reason = health["record"]["reason"].as_str().unwrap();
    // The first write fails, the later ones find it read-only.
    let known = ["the disk fails", "is read-only", "cannot be opened"];
    assert!(known.iter().any(|known| reason.contains(known)), "{reason}");
    assert_eq!(client.asked(prompt("still")).await["status"], "ok");
    disk.mend();
    let health = service.until("recovery", |health| health["state"] == "ready").await;
    assert!(health["record"].get("reason").is_none(), "{health}");
    assert_eq!(client.asked(prompt("after")).await["status"], "ok");
    service.until_written().await;
    let (status, log) = service.stop();
    assert!(status.success() && log.contains("can be written again"), "{log}");
    drop(disk);
}
