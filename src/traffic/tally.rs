//! Keeps a flood of refusals from filling the log: the first of each code is a line, the others are counted until a minute is
//! over. Pure: time is passed in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Lines are summed up over this time. A minute of a flood is one line for each code, and one for all of them: less than a
/// megabyte a day, which no card notices.
const EVERY: Duration = Duration::from_mins(1);

/// Refusals since the last sum, by code. As long as the list of codes.
#[derive(Debug, Default)]
pub(super) struct Tally {
    began: Option<Instant>,
    since: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Counts one; whether it is the first of its code, which is written.
    pub(super) fn note(&mut self, code: &'static str) -> bool {
        let count = self.since.entry(code).or_default();
        *count += 1;
        *count == 1
    }

    /// What was counted and not written, where the time is over: how many, and how many of each code. Has to be asked now and then.
    pub(super) fn sum(&mut self, now: Instant) -> Option<(u64, String)> {
        if self.since.is_empty() {
            self.began = None;
            return None;
        }
        let began = *self.began.get_or_insert(now);
        if now.saturating_duration_since(began) < EVERY {
            return None;
        }
        self.began = None;
        let (mut all, mut text) = (0_u64, String::new());
        for (code, count) in std::mem::take(&mut self.since) {
            let more = count - 1;
            if more > 0 {
                all += more;
                let comma = if text.is_empty() { "" } else { ", " };
                // Writing to a text does not fail.
                let _ = write!(text, "{comma}{more} {code}");
            }
        }
        (all > 0).then_some((all, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_code_is_written_and_the_others_are_summed_up() {
        let (mut tally, start) = (Tally::default(), Instant::now());
        assert_eq!(tally.sum(start), None);
        assert!(tally.note("busy") && !tally.note("busy") && tally.note("bad_request"));
        assert_eq!(tally.sum(start), None);
        for _ in 0..1000 {
            assert!(!tally.note("busy"));
        }
        assert_eq!(tally.sum(start + EVERY / 2), None);
        assert_eq!(tally.sum(start + EVERY), Some((1001, "1001 busy".to_owned())));
        // The next minute begins with its first refusal, and is no line where there was no other.
        assert!(tally.note("busy"));
        assert_eq!(tally.sum(start + EVERY * 9), None);
        assert_eq!(tally.sum(start + EVERY * 10), None);
        assert!(tally.note("busy") && tally.note("timeout"));
        assert!(!tally.note("timeout") && !tally.note("busy"));
        assert_eq!(tally.sum(start + EVERY * 20), None);
        assert_eq!(tally.sum(start + EVERY * 21), Some((2, "1 busy, 1 timeout".to_owned())));
    }
}
