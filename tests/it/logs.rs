//! What a service that runs under systemd tells a journal, which here is a socket of the test: fields, and no prompt unless it
//! was asked for.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::broker::{Broker, Client};
use crate::support::service::{Plan, Service, command, signal};
use crate::support::{PATIENCE, demo_model, library, wait_for};

/// A word that stands in no log.
const CANARY: &str = "rhododendron";

/// A promptd whose standard error is "the journal".
struct Journaled {
    child: Child,
    folder: tempfile::TempDir,
    journal: UnixDatagram,
}

impl Drop for Journaled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Journaled {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
        let place = folder.path();
        let journal = UnixDatagram::bind(place.join("journal")).unwrap();
        journal.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        write_config(place, false);
        let errors = std::fs::File::create(place.join("errors")).unwrap();
        let it = errors.metadata().unwrap();
        let child = command(&["serve", "--config"])
            .arg(place.join("promptd.toml"))
            .env("JOURNAL_STREAM", format!("{}:{}", it.dev(), it.ino()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        Journaled { child, folder, journal }
    }

    /// Reads entries, as text with the lengths of long values in it, until one holds this.
    fn until(&self, text: &str, seen: &mut String) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 1 << 18];
        loop {
            if let Ok(length) = self.journal.recv(&mut buffer) {
                let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
                seen.push_str(&entry);
                if entry.contains(text) {
                    return entry;
                }
            }
            assert!(Instant::now() < deadline, "no {text} in\n{seen}\n{}", self.errors());
        }
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("errors")).unwrap()
    }

    /// Asks, and returns how many tokens the answer has.
    fn ask(&self, id: &str) -> u64 {
        let mut stream = wait_for("the line socket", || {
            UnixStream::connect(self.folder.path().join("lines")).ok()
        });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request =
            format!("{{\"id\":\"{id}\",\"prompt\":\"Say {CANARY}.\",\"max_tokens\":3}}\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "ok", "{answer}");
        answer["usage"]["completion"].as_u64().unwrap()
    }
}

fn write_config(place: &Path, content: bool) {
    let text = format!(
        "[model]\npath = {:?}\n[runtime]\nlibrary = {:?}\n[socket]\nlines_path = {:?}\n[log]\njournal = {:?}\ncontent = {content}\n",
        demo_model(),
        library(),
        place.join("lines"),
        place.join("journal"),
    );
    std::fs::write(place.join("promptd.toml"), text).unwrap();
}

#[test]
fn the_journal_gets_fields_and_prompts_only_where_that_is_wanted() {
    let service = Journaled::start();
    let mut seen = String::new();
    service.until("MESSAGE=the model answers", &mut seen);
    let tokens = format!("PROMPTD_COMPLETION_TOKENS={}\n", service.ask("lamp-1"));
    let entry = service.until("PROMPTD_REQUEST=lamp-1", &mut seen);
    for field in [
        "PRIORITY=6\n",
        "SYSLOG_IDENTIFIER=promptd\n",
        "PROMPTD_DOOR=lines\n",
        "PROMPTD_CLIENT=uid:",
        "PROMPTD_FINISH=",
        "PROMPTD_PROMPT_TOKENS=",
        &tokens,
        "PROMPTD_QUEUE_MS=",
        "PROMPTD_PREFILL_MS=",
        "PROMPTD_DECODE_MS=",
        "MESSAGE=answered request=\"lamp-1\"",
    ] {
        assert!(entry.contains(field), "no {field} in\n{entry}");
    }
    assert!(!seen.contains(CANARY), "{seen}");

    write_config(service.folder.path(), true);
    signal(service.child.id(), "HUP");
    service.until("MESSAGE=the configuration was read again", &mut seen);
    service.ask("lamp-2");
    let entry = service.until("PROMPTD_REQUEST=lamp-2", &mut seen);
    assert!(entry.contains(&format!("PROMPTD_ASKED=Say {CANARY}.\n")), "{entry}");
    assert!(entry.contains("PROMPTD_ANSWER="), "{entry}");
    assert_eq!(service.errors(), "", "everything went to the journal");
}

/// The line about a request over MQTT, in a log of this format.
async fn line_about_a_request(broker: u16, format: &str) -> (Service, String) {
    let plan = Plan::demo().at_broker(broker).with(format);
    let service = Service::start(&plan).ready();
    let topics = ["promptd/n/availability", "promptd/n/answer/#"];
    let mut client = Client::connect(broker, "me", &topics, true).await;
    client.until("promptd/n/availability", "online").await;
    let ask = format!("{{\"id\":\"lamp-3\",\"prompt\":\"Say {CANARY}.\",\"max_tokens\":3}}");
    client.ask("promptd/n/ask", ask).await;
    client.live().await;
    let line = wait_for("the line", || {
        let log = service.log();
        log.lines().find(|line| line.contains("lamp-3")).map(str::to_owned)
    });
    assert!(!service.log().contains(CANARY), "{}", service.log());
    (service, line)
}

#[tokio::test]
async fn json_where_it_is_wanted_and_words_elsewhere() {
    let Some(broker) = Broker::start("") else { return };
    let (service, line) = line_about_a_request(broker.port, "").await;
    for words in ["INFO answered ", "request=\"lamp-3\"", "topic=\"promptd/n/answer/lamp-3\""] {
        assert!(line.contains(words), "no {words} in {line}");
    }
    assert!(!service.log().contains('\u{1b}'), "no colours in a file");
    drop(service);

    let (service, line) = line_about_a_request(broker.port, "[log]\nformat = \"json\"\n").await;
    let entry: Value = serde_json::from_str(&line).unwrap();
    let fields = &entry["fields"];
    assert_eq!((&entry["level"], &fields["message"]), (&"INFO".into(), &"answered".into()));
    assert_eq!(fields["topic"], "promptd/n/answer/lamp-3");
    assert_eq!(fields["door"], "mqtt");
    for number in ["prompt_tokens", "completion_tokens", "queue_ms", "prefill_ms", "decode_ms"] {
        assert!(fields[number].is_u64(), "{number} in {line}");
    }
    for line in service.log().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()), "{line}");
    }
}
