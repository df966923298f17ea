//! How long to wait before the next engine is started. Pure but for the jitter.

use std::time::Duration;

/// The wait before the first restart: an engine that died once by accident costs its askers no more than this and the load.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait after engines that had been ready.
const LONGEST: Duration = Duration::from_secs(30);

/// The longest wait after loads that fail for a reason that lies in the files. It begins at [`LONGEST`] and doubles: every
/// try costs the board a whole load, and who mends the files can ask for one at once.
const LONGEST_UNLOADABLE: Duration = Duration::from_mins(5);

/// An engine that was ready this long was a good one: after its death the waits begin at the first again.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// Deaths in a row before the model was ready, after which the longest wait applies. Such a death is nearly always in the
/// files (a damaged library, too little memory), and every try costs the board a whole load.
const FATAL_LOADS: u32 = 3;

/// How an engine's life went, as far as the next start depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It said that the model cannot be loaded.
    Refused,
    /// It died before the model was ready.
    NeverReady,
    /// It answered prompts for this long.
    Ready(Duration),
}

/// The waits so far.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    never_ready: u32,
    /// The wait after the next load that fails for a reason in the files.
    unloadable: Duration,
    /// A number from 0 to 1 for the jitter.
    random: fn() -> f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST, never_ready: 0, unloadable: LONGEST, random }
    }
}

impl Backoff {
    /// The wait after an engine's life.
    pub(super) fn after(&mut self, outcome: Outcome) -> Duration {
        match outcome {
            Outcome::Refused => return self.unloadable(),
            Outcome::NeverReady => self.never_ready = self.never_ready.saturating_add(1),
            Outcome::Ready(time) => {
                self.never_ready = 0;
                self.unloadable = LONGEST;
                if time >= GOOD_LIFE {
                    self.next = FIRST;
                }
            }
        }
        if self.never_ready >= FATAL_LOADS {
            return self.unloadable();
        }
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(LONGEST);
        self.jitter(wait)
    }

    fn unloadable(&mut self) -> Duration {
        let wait = self.unloadable;
        self.unloadable = wait.saturating_mul(2).min(LONGEST_UNLOADABLE);
        self.jitter(wait)
    }

    /// Four fifths of the time to the whole of it: boards on one power supply do not all load at the same moment.
    fn jitter(&self, time: Duration) -> Duration {
        time.mul_f64(1.0 - 0.2 * (self.random)().clamp(0.0, 1.0))
    }
}

fn random() -> f64 {
    // Without randomness there is no jitter, and nothing worse.
    getrandom::u32().map_or(0.0, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(outcomes: &[Outcome]) -> Vec<u128> {
        let mut backoff = Backoff { random: || 0.0, ..Backoff::default() };
        outcomes.iter().map(|outcome| backoff.after(*outcome).as_millis()).collect()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let short = Outcome::Ready(Duration::from_secs(1));
        assert_eq!(
            waits(&[short; 11]),
            [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]
        );
    }

    #[test]
    fn a_good_life_begins_anew() {
        let (short, good) = (Outcome::Ready(Duration::from_secs(1)), Outcome::Ready(GOOD_LIFE));
        assert_eq!(waits(&[short, short, good, short]), [100, 200, 100, 200]);
    }

    #[test]
    fn what_lies_in_the_files_is_tried_seldom() {
        assert_eq!(
            waits(&[Outcome::Refused; 6]),
            [30_000, 60_000, 120_000, 240_000, 300_000, 300_000]
        );
        assert_eq!(waits(&[Outcome::NeverReady; 4]), [100, 200, 30_000, 60_000]);
        let ready = Outcome::Ready(Duration::from_secs(1));
        assert_eq!(
            waits(&[Outcome::NeverReady, Outcome::NeverReady, ready, Outcome::NeverReady]),
            [100, 200, 400, 800]
        );
    }

    #[test]
    fn jitter_takes_a_fifth_at_most() {
        let mut backoff = Backoff { random: || 1.0, ..Backoff::default() };
        assert_eq!(backoff.after(Outcome::NeverReady), Duration::from_millis(80));
        for _ in 0..100 {
            let wait = Backoff::default().after(Outcome::NeverReady);
            assert!(
                wait >= Duration::from_millis(80) && wait <= Duration::from_millis(100),
                "{wait:?}"
            );
        }
    }
}
