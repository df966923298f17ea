//! Keeps lines of one kind from filling the log, whoever provokes them: so many of each place in the code in ten seconds, and how
//! many there were besides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one place in the code in [`WINDOW`]: four prompts a second that are answered are logged each, and a flood of refusals
/// is not.
const LINES: u32 = 40;

/// See [`LINES`].
const WINDOW: Duration = Duration::from_secs(10);

/// Counts lines by the place in the code that they come from. There are as many as the program has such places.
#[derive(Debug)]
pub(super) struct Rate {
    now: fn() -> Instant,
    windows: Mutex<HashMap<Identifier, Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
    left_out: u64,
    place: String,
}

impl Rate {
    /// `now` is the clock.
    pub(super) fn new(now: fn() -> Instant) -> Self {
        Rate { now, windows: Mutex::default() }
    }

    /// Whether a line from this place is still one of those that are written.
    fn admits(&self, metadata: &Metadata<'_>) -> bool {
        let now = (self.now)();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(metadata.callsite()).or_insert_with(|| Window {
            began: now,
            lines: 0,
            left_out: 0,
            place: format!(
                "{}:{}",
                metadata.file().unwrap_or_else(|| metadata.target()),
                metadata.line().unwrap_or_default()
            ),
        });
        if now.saturating_duration_since(window.began) >= WINDOW {
            if window.left_out > 0 {
                // With this line goes what was left out, and the next window begins: see `notes`.
                return true;
            }
            (window.began, window.lines) = (now, 0);
        }
        if window.lines < LINES {
            window.lines += 1;
            return true;
        }
        window.left_out += 1;
        false
    }

    /// What was left out in windows that are over, a sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let now = (self.now)();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes = Vec::new();
        for window in windows.values_mut() {
            if window.left_out > 0 && now.saturating_duration_since(window.began) >= WINDOW {
                notes.push(format!(
                    "{} more lines from {} were left out",
                    window.left_out, window.place
                ));
                (window.began, window.lines, window.left_out) = (now, 0, 0);
            }
        }
        notes
    }
}

/// A layer that gets no more lines than that.
#[derive(Debug)]
pub(super) struct Limited<L> {
    pub(super) rate: Arc<Rate>,
    pub(super) layer: L,
}

impl<S: Subscriber, L: Layer<S>> Layer<S> for Limited<L> {
    fn on_layer(&mut self, subscriber: &mut S) {
        self.layer.on_layer(subscriber);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if self.rate.admits(event.metadata()) {
            self.layer.on_event(event, context);
        }
    }

    // Spans are not lines; they are the layer's own business.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.layer.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.layer.on_record(id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.layer.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.layer.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.layer.on_close(id, context);
    }
}
