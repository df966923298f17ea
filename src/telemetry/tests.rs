//! What reaches a journal made of a socket, and a log made of a vector.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

/// An entry taken apart as the journal does it.
fn fields(bytes: &[u8]) -> Vec<(String, String)> {
    let (mut rest, mut fields) = (bytes, Vec::new());
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n').unwrap();
        let (line, tail) = (&rest[..end], &rest[end + 1..]);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        if let Some(at) = line.iter().position(|b| *b == b'=') {
            fields.push((text(&line[..at]), text(&line[at + 1..])));
            rest = tail;
        } else {
            let length =
                usize::try_from(u64::from_le_bytes(tail[..8].try_into().unwrap())).unwrap();
            fields.push((text(line), text(&tail[8..8 + length])));
            assert_eq!(tail[8 + length], b'\n');
            rest = &tail[9 + length..];
        }
    }
    fields
}

#[test]
fn the_journal_gets_fields_that_no_value_can_forge() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let rate = Arc::new(Rate::new(Instant::now));
    let layer = Journal::connect(&path, Arc::clone(&rate)).unwrap();
    let hostile = "x\nPRIORITY=0\nMESSAGE=all is well\u{1b}[31m";
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tracing::warn!(request = hostile, completion_tokens = 7, code = %"busy", "not {}", "answered");
    });
    let mut buffer = vec![0; 65536];
    let length = journal.recv(&mut buffer).unwrap();
    let fields = fields(&buffer[..length]);
    let get = |name: &str| -> Vec<&str> {
        fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    };
    assert_eq!(get("PRIORITY"), ["4"]);
    assert_eq!(get("PROMPTD_REQUEST"), [hostile]);
    assert_eq!((get("PROMPTD_COMPLETION_TOKENS"), get("PROMPTD_CODE")), (vec!["7"], vec!["busy"]));
    assert_eq!(get("SYSLOG_IDENTIFIER"), ["promptd"]);
    let message = get("MESSAGE");
    assert_eq!(message.len(), 1);
    assert!(message[0].starts_with("not answered request=\"x\\nPRIORITY=0"), "{message:?}");
    assert!(!message[0].contains(['\n', '\u{1b}']), "{message:?}");
}

#[test]
fn a_line_is_one_line_and_a_flood_is_counted() {
    // A clock that the test moves.
    static SECONDS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    fn clock() -> Instant {
        let began = *BEGAN.get_or_init(Instant::now);
        began + Duration::from_secs(SECONDS.load(std::sync::atomic::Ordering::Relaxed))
    }
    let written = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&written);
    let to = move |bytes: &[u8]| {
        sink.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    };
    let rate = Arc::new(Rate::new(clock));
    let lines = Lines { rate: Arc::clone(&rate), json: false, colours: false, to };
    let layer = tracing_subscriber::fmt::layer().without_time().with_ansi(false).with_writer(lines);
    let subscriber = tracing_subscriber::registry().with(Limited { rate, layer });
    tracing::subscriber::with_default(subscriber, || {
        // It goes on for twenty seconds, and nothing else is written meanwhile.
        for n in 0..200 {
            SECONDS.store(n / 100 * 11, std::sync::atomic::Ordering::Relaxed);
            tracing::info!(n, "flood");
        }
        SECONDS.store(22, std::sync::atomic::Ordering::Relaxed);
        tracing::info!(topic = %"a\nERROR forged\u{7}", "calm");
    });
    let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let flood = lines.iter().filter(|line| line.contains("flood")).count();
    assert!((80..=82).contains(&flood), "{text}");
    let notes: Vec<&&str> = lines.iter().filter(|line| line.contains("more lines from")).collect();
    assert!(notes.len() == 2 && notes[0].contains("60 more lines from"), "{text}");
    assert!(lines.last().unwrap().contains("a\\nERROR forged\\u{7}"), "{text}");
    assert_eq!(lines.len(), flood + 3, "{text}");
}
