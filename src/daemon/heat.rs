//! Whether the board is too hot for all its threads, decided with patience: another number of threads means another engine.

use std::time::{Duration, Instant};

/// How long it has to be hot before fewer threads are taken. A long prompt heats a small heat sink within a minute.
const HOT_FOR: Duration = Duration::from_secs(10);

/// How long it has to be cool before all threads are taken again: sooner, and it would be hot again at once.
const COOL_FOR: Duration = Duration::from_mins(2);

/// How far below the limit it counts as cool.
const COOL_BELOW: f64 = 10.0;

/// The judgement so far.
#[derive(Debug, Default)]
pub(super) struct Heat {
    is_hot: bool,
    /// Since when the temperature has said the contrary.
    since: Option<Instant>,
}

impl Heat {
    /// Whether fewer threads are to be taken.
    pub(super) fn is_hot(&self) -> bool {
        self.is_hot
    }

    /// A temperature was read. Returns whether the judgement has changed. Without a limit, or a sensor, it is never hot.
    pub(super) fn judge(&mut self, limit: Option<f64>, now_at: Option<f64>, now: Instant) -> bool {
        let (Some(limit), Some(degrees)) = (limit, now_at) else {
            self.since = None;
            return std::mem::replace(&mut self.is_hot, false);
        };
        let (contrary, patience) = if self.is_hot {
            (degrees <= limit - COOL_BELOW, COOL_FOR)
        } else {
            (degrees >= limit, HOT_FOR)
        };
        if !contrary {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < patience {
            return false;
        }
        self.since = None;
        self.is_hot = !self.is_hot;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patiently() {
        let (mut heat, start) = (Heat::default(), Instant::now());
        let mut at = |second: u64, degrees: f64| {
            let changed =
                heat.judge(Some(80.0), Some(degrees), start + Duration::from_secs(second));
            (changed, heat.is_hot())
        };
        assert_eq!(at(0, 85.0), (false, false));
        // A moment below the limit begins the count anew.
        assert_eq!(at(8, 79.0), (false, false));
        assert_eq!(at(10, 85.0), (false, false));
        assert_eq!(at(19, 85.0), (false, false));
        assert_eq!(at(20, 85.0), (true, true));
        assert_eq!(at(30, 75.0), (false, true), "not cool yet");
        assert_eq!(at(40, 70.0), (false, true));
        assert_eq!(at(159, 60.0), (false, true));
        assert_eq!(at(160, 60.0), (true, false));
        assert!(!heat.judge(None, Some(120.0), start), "nobody asked for it");
    }
}
