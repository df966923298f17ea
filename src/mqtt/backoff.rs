//! How long to wait before the next connection. Pure: time and chance are passed in.

use std::time::Duration;

/// The first wait is at most this long.
const FIRST: Duration = Duration::from_millis(500);
/// No wait is longer than this.
const LONGEST: Duration = Duration::from_mins(1);
/// While a broker that cannot be reached has been away for less than [`PATIENCE`], no wait is longer than this: a
/// broker that restarts is found again within five seconds. With full jitter that is one try in 2.5 s on average.
const LONGEST_AT_FIRST: Duration = Duration::from_secs(5);
/// After this long the broker is not merely restarting.
const PATIENCE: Duration = Duration::from_mins(10);
/// A connection that held this long was a good one: the next trouble begins at [`FIRST`] again. A broker that lets
/// promptd in and throws it out at once is no good one.
const GOOD: Duration = Duration::from_secs(10);
/// One that a broker ended on purpose has to have held for longer: two boards with one client id throw each other out.
const GOOD_BUT_REFUSED: Duration = Duration::from_mins(2);

/// What ended a connection or a try, as far as the wait depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody answers, or the connection broke: it may come back any moment.
    Away,
    /// The broker answered and does not want this client: somebody has to change something first.
    Refused,
}

/// Exponential back-off with full jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The wait after a connection that held for `held` (nothing where there was none) ended, `outage` after the
    /// last good one. `chance` is from 0 to 1.
    pub(crate) fn after(
        &mut self,
        kind: Kind,
        held: Duration,
        outage: Duration,
        chance: f64,
    ) -> Duration {
        if held >= if kind == Kind::Away { GOOD } else { GOOD_BUT_REFUSED } {
            self.tries = 0;
        }
        let cap = if kind == Kind::Away && outage < PATIENCE { LONGEST_AT_FIRST } else { LONGEST };
        // 2^7 times the first wait is past the longest one.
        let most = FIRST.saturating_mul(1 << self.tries.min(7)).min(cap);
        self.tries = self.tries.saturating_add(1);
        most.mul_f64(chance.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(kind: Kind, held: Duration, outage: Duration, chance: f64) -> Vec<Duration> {
        let mut backoff = Backoff::default();
        (0..10).map(|_| backoff.after(kind, held, outage, chance)).collect()
    }

    #[test]
    fn grows_to_its_cap() {
        let secs =
            |list: &[f64]| list.iter().map(|s| Duration::from_secs_f64(*s)).collect::<Vec<_>>();
        let zero = Duration::ZERO;
        assert_eq!(
            waits(Kind::Away, zero, zero, 1.0),
            secs(&[0.5, 1., 2., 4., 5., 5., 5., 5., 5., 5.])
        );
        assert_eq!(
            waits(Kind::Refused, zero, zero, 1.0),
            secs(&[0.5, 1., 2., 4., 8., 16., 32., 60., 60., 60.])
        );
        assert_eq!(waits(Kind::Away, zero, PATIENCE, 1.0)[9], LONGEST);
        assert_eq!(waits(Kind::Away, zero, zero, 0.5)[9], Duration::from_millis(2500));
    }

    #[test]
    fn a_good_connection_starts_over_and_a_short_one_does_not() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after(Kind::Away, Duration::from_secs(1), Duration::ZERO, 1.0);
        }
        assert_eq!(
            backoff.after(Kind::Away, Duration::from_secs(1), Duration::ZERO, 1.0),
            LONGEST_AT_FIRST
        );
        assert_eq!(backoff.after(Kind::Away, GOOD, Duration::ZERO, 1.0), FIRST);
        for _ in 0..9 {
            backoff.after(Kind::Refused, GOOD, Duration::ZERO, 1.0);
        }
        assert_eq!(backoff.after(Kind::Refused, GOOD, Duration::ZERO, 1.0), LONGEST);
        assert_eq!(backoff.after(Kind::Refused, GOOD_BUT_REFUSED, Duration::ZERO, 1.0), FIRST);
    }

    #[test]
    fn never_a_storm() {
        // On average over any minute at most one connection a second: the mean of full jitter is half the cap.
        for kind in [Kind::Away, Kind::Refused] {
            let mut backoff = Backoff::default();
            let (mut now, mut tries, mut chance) = (0.0_f64, 0_u32, 0.0_f64);
            while now < 60.0 {
                chance = (chance + 0.618_034).fract();
                now += backoff
                    .after(kind, Duration::ZERO, Duration::from_secs_f64(now), chance)
                    .as_secs_f64();
                tries += 1;
            }
            assert!(tries <= 60, "{kind:?}: {tries} in a minute");
        }
    }
}
