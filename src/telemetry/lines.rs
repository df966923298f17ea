//! Lines on standard error, for a terminal or a pipe: whatever an event holds, it is one line.

use std::io::{self, Write};
use std::sync::Arc;

use tracing_subscriber::fmt::MakeWriter;

use super::rate::Rate;

/// Bytes of one line.
const LINE_BYTES: usize = 64 << 10;

/// Makes writers, one for each event.
#[derive(Clone, Debug)]
pub(super) struct Lines<W> {
    pub(super) rate: Arc<Rate>,
    /// Whether lines are JSON, which escapes by itself.
    pub(super) json: bool,
    /// Whether a terminal reads, whose colours are ours.
    pub(super) colours: bool,
    pub(super) to: W,
}

/// Writes one event, which comes whole.
#[derive(Debug)]
pub(super) struct Line<'a, W>(&'a Lines<W>);

impl<'a, W: Fn(&[u8]) -> io::Result<()> + 'a> MakeWriter<'a> for Lines<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self)
    }
}

impl<W: Fn(&[u8]) -> io::Result<()>> Write for Line<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lines = self.0;
        for note in lines.rate.notes() {
            let note = if lines.json {
                serde_json::json!({"level": "WARN", "fields": {"message": note}}).to_string()
            } else {
                format!(" WARN {note}")
            };
            (lines.to)(format!("{note}\n").as_bytes())?;
        }
        if lines.json || lines.colours {
            // The formatter escapes what comes from elsewhere; its own colours must stay.
            (lines.to)(bytes)?;
        } else {
            let text = String::from_utf8_lossy(bytes);
            let line = super::escaped(text.strip_suffix('\n').unwrap_or(&text));
            (lines.to)(format!("{}\n", super::short(&line, LINE_BYTES)).as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
