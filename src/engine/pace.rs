//! How long an engine at work may be silent before it counts as wedged: a multiple of the slowest step it has shown. Pure.

use std::time::Duration;

/// Steps before the measure is believed: the first ones read pages from the card that later ones find in memory, and the
/// limit must not be learnt from a burst of small frames alone.
const ENOUGH: u32 = 16;

/// Silence of this many of the slowest steps is no slowness. A board that throttles is four times slower, one whose
/// memory is written to the card perhaps ten times; a wedged one never comes back.
const FACTOR: u32 = 20;

/// Nobody is called wedged sooner: a kernel that writes out dirty pages stops whole processes for seconds.
const SHORTEST: Duration = Duration::from_secs(10);

/// The limit grows to this many times the one that holds before anything is measured, and no further.
const LONGEST: u32 = 4;

/// The steps so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    steps: u32,
    slowest: Duration,
}

impl Pace {
    /// A step took this long. Older steps are forgotten slowly: half of the slowest one counts after some 700 quicker steps.
    pub(super) fn step(&mut self, took: Duration) {
        self.steps = self.steps.saturating_add(1);
        self.slowest = took.max(self.slowest.mul_f64(0.999));
    }

    /// How long the engine may be silent; `unmeasured` is what holds before enough is known.
    pub(super) fn patience(&self, unmeasured: Duration) -> Duration {
        if self.steps < ENOUGH {
            return unmeasured;
        }
        let longest = unmeasured.saturating_mul(LONGEST);
        // Where the operator's limit is shorter than ours, it is the shortest.
        self.slowest.saturating_mul(FACTOR).clamp(SHORTEST.min(unmeasured), longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn after(steps: u32, ms: u64) -> Duration {
        let mut pace = Pace::default();
        (0..steps).for_each(|_| pace.step(Duration::from_millis(ms)));
        pace.patience(MINUTE)
    }

    #[test]
    fn the_limit_follows_the_slowest_step() {
        assert_eq!(after(15, 100), MINUTE, "not enough is known");
        assert_eq!(after(16, 100), SHORTEST);
        assert_eq!(after(16, 1000), Duration::from_secs(20));
        assert_eq!(after(16, 5000), Duration::from_secs(100));
        assert_eq!(after(16, 60_000), 4 * MINUTE);
    }

    #[test]
    fn one_slow_step_is_remembered_for_a_while() {
        let mut pace = Pace::default();
        pace.step(Duration::from_secs(4));
        (0..100).for_each(|_| pace.step(Duration::from_millis(100)));
        assert!(pace.patience(MINUTE) > Duration::from_secs(70));
        (0..5000).for_each(|_| pace.step(Duration::from_millis(100)));
        assert_eq!(pace.patience(MINUTE), SHORTEST);
    }

    #[test]
    fn a_short_limit_of_the_operator_stays_short() {
        let mut pace = Pace::default();
        (0..20).for_each(|_| pace.step(Duration::from_millis(1)));
        assert_eq!(pace.patience(Duration::from_millis(300)), Duration::from_millis(300));
    }
}
