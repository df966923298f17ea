//! Writes to the journal in its own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>), so that request, client, topic, tokens
//! and times are fields that `journalctl PROMPTD_CLIENT=… -o json` finds.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::rate::Rate;

/// Bytes of one value. A datagram has room for some hundred kilobytes, and no line of ours needs as much as this.
const VALUE_BYTES: usize = 16 << 10;

/// A connection with the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    rate: Arc<Rate>,
    /// Lines that the journal had no room for. It is never waited for: a service that answers must not hang at its log.
    lost: AtomicU64,
}

impl Journal {
    /// Connects with the journal's socket.
    ///
    /// # Errors
    /// There is none, or it may not be used.
    pub(super) fn connect(path: &Path, rate: Arc<Rate>) -> std::io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Journal { socket, rate, lost: AtomicU64::new(0) })
    }

    fn send(&self, entry: &Entry) {
        // `write`, because a sandbox that forbids sending leaves it to a socket that is connected already.
        if rustix::io::write(&self.socket, &entry.bytes).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        for note in self.rate.notes() {
            self.send(&Entry::new(&note, Level::WARN));
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.send(&Entry::new(&format!("{lost} lines of the log were lost"), Level::WARN));
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let mut entry = Entry::new(&fields.text(), *metadata.level());
        entry.put("TARGET", metadata.target());
        for (name, value, _) in fields.others {
            let mut key = String::from("PROMPTD_");
            key.extend(
                name.chars()
                    .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }),
            );
            entry.put(&key, &value);
        }
        self.send(&entry);
    }
}

/// An entry as the journal reads it.
struct Entry {
    bytes: Vec<u8>,
}

impl Entry {
    fn new(message: &str, level: Level) -> Self {
        let mut entry = Entry { bytes: Vec::with_capacity(512) };
        // syslog(3)'s numbers.
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        entry.put("MESSAGE", message);
        entry.put("PRIORITY", priority);
        entry.put("SYSLOG_IDENTIFIER", "promptd");
        entry
    }

    /// Adds a field. Its length stands in front of a value with line ends, so that no value can make a field of its own.
    fn put(&mut self, name: &str, value: &str) {
        let value = super::short(value, VALUE_BYTES);
        self.bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.bytes.push(b'\n');
            let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
            self.bytes.extend_from_slice(&length.to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }
}

/// The fields of an event.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    /// Name, value, and whether it is text, which stands in quotes.
    others: Vec<(&'static str, String, bool)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: String, text: bool) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.others.push((field.name(), value, text));
        }
    }

    /// The line for people: the message, then what belongs to it.
    fn text(&self) -> String {
        let mut line = super::escaped(&self.message);
        for (name, value, text) in &self.others {
            // Writing into a String cannot fail.
            let _ = if *text {
                write!(line, " {name}={value:?}")
            } else {
                write!(line, " {name}={}", super::escaped(value))
            };
        }
        line
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field, format!("{value:?}"), false);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned(), true);
    }
}
