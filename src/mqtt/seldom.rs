//! Keeps a line that others can provoke from filling the log. Pure: time is passed in.

use std::time::{Duration, Instant};

/// One line of a kind is written in this time; the others are counted.
const EVERY: Duration = Duration::from_mins(1);

/// When a line of one kind was written last, and how many were not since.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    last: Option<Instant>,
    skipped: u64,
}

impl Seldom {
    /// Whether to write the line now; if so, how many were left out since the last one.
    pub(super) fn now(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            self.skipped = self.skipped.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_minute_and_the_others_are_counted() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.now(start), Some(0));
        assert_eq!(seldom.now(start), None);
        assert_eq!(seldom.now(start + EVERY / 2), None);
        assert_eq!(seldom.now(start + EVERY), Some(2));
        assert_eq!(seldom.now(start + EVERY * 2), Some(0));
    }
}
