//! The record on disks that are full or cannot be written, for real: small file systems of our own, where we may mount any.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::broker::{Broker, Client, json as json_of};
use crate::support::service::{Plan, Service, command, output, signal};

/// A small file system in memory. Unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, and a line that says so, where this user may not mount.
    fn at(path: &Path, options: &str) -> Option<Mounted> {
        std::fs::create_dir_all(path).unwrap();
        if mount(&["-t", "tmpfs", "-o", options, "tmpfs"], path) {
            return Some(Mounted(path.to_owned()));
        }
        println!("SKIPPED: no file system can be mounted here; that needs root");
        None
    }

    fn remount(&self, options: &str) {
        assert!(mount(&["-o", &format!("remount,{options}")], &self.0), "remount {options}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(arguments).arg(path).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap()
}

#[tokio::test]
async fn a_full_disk_stops_nobody_and_is_noticed_on_both_doors() {
    let Some(broker) = Broker::start("") else { return };
    let folder = folder();
    let state = folder.path().join("state");
    let Some(_mounted) = Mounted::at(&state, "size=1m") else { return };
    let service = Service::start_in(folder, &Plan::demo().at_broker(broker.port)).ready();
    let mut client = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    // As much as there is room for.
    let filler = state.join("filler");
    let _ = std::fs::write(&filler, vec![0; 4 << 20]);
    let mut n = 0;
    // What SQLite has room for in its log already is written all the same.
    let degraded = loop {
        n += 1;
        let prompt = json!({"id": format!("a{n}"), "prompt": "x ".repeat(150), "max_tokens": 4});
        assert_eq!(client.asked(prompt).await["status"], "ok");
        let health = service.health().unwrap();
        if health["state"] == "degraded" {
            break health;
        }
        assert!(n < 500, "the disk is never full: {health}");
    };
    assert!(degraded["record"]["reason"].as_str().unwrap().contains("full"), "{degraded}");
    let mut watcher = Client::connect(broker.port, "watcher", &["promptd/n/status"], false).await;
    loop {
        let status = next_status(&mut watcher).await;
        if status["state"] == "degraded" {
            assert_eq!(status["record"]["reason"], degraded["record"]["reason"]);
            break;
        }
    }
    let mut program = command(&["status"]);
    program.env("PROMPTD__SOCKET__PATH", service.socket());
    let (status, text, _) = output(program);
    assert!(status == 0 && text.contains("degraded: the disk is full"), "{text}");
    // It goes on, with what the broker keeps until the answer.
    let prompt = json!({"id": "while", "prompt": "hi", "max_tokens": 4});
    assert_eq!(client.asked(prompt).await["status"], "ok");
    std::fs::remove_file(&filler).unwrap();
    let health = service.until("recovery", |health| health["state"] == "ready").await;
    assert!(health["record"].get("reason").is_none(), "{health}");
    service.until_written().await;
    let (status, log) = service.stop();
    assert!(status.success() && log.contains("can be written again"), "{log}");
}

async fn next_status(watcher: &mut Client) -> Value {
    serde_json::from_slice(&watcher.next().await.payload).unwrap()
}

#[tokio::test]
async fn a_start_on_a_disk_that_cannot_be_written_takes_up_its_prompts_when_it_can() {
    let Some(broker) = Broker::start("") else { return };
    let folder = folder();
    let state = folder.path().join("state");
    let Some(mounted) = Mounted::at(&state, "size=4m") else { return };
    let plan = Plan::demo().at_broker(broker.port);
    let mut client = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let service = Service::start_in(folder, &plan).ready();
    let long = json!({"id": "old", "prompt": "Write.", "regex": "[a-z ]{400}", "max_tokens": 450});
    client.ask("promptd/n/ask", long.to_string()).await;
    service.until("a prompt that runs", |health| health["slots"]["running"] == 1).await;
    let engine = service.engine_pid().unwrap();
    signal(engine, "STOP");
    service
        .until("the record", |health| {
            health["record"]["prompts"] == 1 && health["record"]["waiting"] == 0
        })
        .await;
    let folder = service.kill();
    // The engine has to be gone: its open files keep the disk writable.
    signal(engine, "CONT");
    let deadline = Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{engine}")).exists() {
        assert!(Instant::now() < deadline, "the engine does not end");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    mounted.remount("ro");
    let service = Service::start_in(folder, &plan).ready();
    let health = service.until("health", |health| health["state"] == "degraded").await;
    assert!(health["record"]["reason"].as_str().unwrap().contains("is read-only"), "{health}");
    let new = client.asked(json!({"id": "new", "prompt": "hi", "max_tokens": 4})).await;
    assert_eq!((&new["id"], &new["status"]), (&json!("new"), &json!("ok")));
    mounted.remount("rw");
    let old = json_of(&client.live().await);
    assert_eq!(
        (&old["id"], &old["status"], &old["attempt"]),
        (&json!("old"), &json!("ok"), &json!(2)),
        "{old}"
    );
    let health = service.until("recovery", |health| health["state"] == "ready").await;
    assert_eq!(health["record"]["replayed"], 1, "{health}");
    drop(service);
}

#[tokio::test]
async fn a_damaged_record_is_set_aside_and_the_service_goes_on() {
    let Some(broker) = Broker::start("") else { return };
    let folder = folder();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(
        state.join("record.db"),
        "no database at all, but a text of some length".repeat(99),
    )
    .unwrap();
    let mut client = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let service = Service::start_in(folder, &Plan::demo().at_broker(broker.port)).ready();
    let health = service.health().unwrap();
    assert_eq!((&health["state"], &health["record"]["lost"]), (&json!("ready"), &json!(1)));
    let prompt = json!({"id": "a", "prompt": "hi", "max_tokens": 4});
    assert_eq!(client.asked(prompt).await["status"], "ok");
    let aside = std::fs::read_dir(&state)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("record.db.damaged-"));
    let aside = std::fs::read_to_string(aside.unwrap().path()).unwrap();
    assert!(aside.starts_with("no database at all"), "it is kept");
    assert!(service.log().contains("was set aside"), "{}", service.log());
}

#[test]
fn a_conversation_goes_on_after_kill_9() {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    let ask = |service: &Service, text: &str| -> Value {
        let mut stream = UnixStream::connect(service.lines()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{}", json!({"prompt": text, "session": "s", "max_tokens": 6})).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let plan = Plan::demo();
    let mut service = Service::start(&plan).ready();
    for turns in 0..3 {
        let answer = ask(&service, "and now?");
        assert_eq!(answer["session_turns"], turns, "{answer}");
        crate::support::wait_for("the conversation on the disk", || {
            (service.health()?["record"]["waiting"] == 0).then_some(())
        });
        service = Service::start_in(service.kill(), &plan).ready();
    }
}
