//! What the core makes of the board: while memory is short it takes no new prompts, and while the board is held back it expects
//! everything to take longer.

use std::time::{Duration, Instant};

use super::Core;
use crate::board::Reading;
use crate::request::{Code, Refusal};
use crate::scheduler::{BoardState, MemoryLimits};

/// When it is worth asking again while memory is short: the kernel's measure is over ten seconds.
const RETRY: Duration = Duration::from_secs(10);

/// A board is not believed to be slower than this by its clock.
const SLOWEST: f64 = 4.0;

impl Core {
    /// The board was looked at.
    pub(in crate::scheduler) fn sense(&mut self, reading: &Reading, now: Instant) {
        let before = self.board.short_of_memory.take();
        let short = short_of_memory(reading, &self.config.memory, before.is_some());
        match (&before, &short) {
            (None, Some(why)) => {
                tracing::warn!("no new prompts are taken: {why}");
            }
            (Some(_), None) => tracing::info!("memory is there again: new prompts are taken"),
            _ => {}
        }
        if reading.throttled != self.board.throttled {
            if reading.throttled.is_empty() {
                tracing::info!("nothing holds the board back any more");
            } else {
                tracing::warn!("the board is held back: {}", reading.throttled.join("; "));
            }
        }
        self.board = BoardState {
            throttled: reading.throttled.clone(),
            short_of_memory: short,
            celsius: reading.temperature.map(in_fives),
        };
        // An idle processor has a low clock, whatever holds it back: only one at work tells.
        let tells = reading.throttled.is_empty() || !self.running.is_empty();
        if tells && self.rates.slowed(slowdown(reading)) {
            self.places.changed = true;
            self.tell_places(now);
        }
    }

    /// Whether the board has memory for one more.
    pub(super) fn has_memory(&self) -> Result<(), Refusal> {
        let Some(why) = &self.board.short_of_memory else { return Ok(()) };
        let message = format!("the board is short of memory ({why}); ask again in a moment");
        Err(Refusal::new(Code::Busy, message).with_retry_after(RETRY))
    }
}

/// Why no new prompts are taken. Once they are not, there has to be clearly more memory before they are again.
fn short_of_memory(reading: &Reading, limits: &MemoryLimits, is_short: bool) -> Option<String> {
    let (share, floor) =
        if is_short { (0.5, limits.floor.saturating_mul(3) / 2) } else { (1.0, limits.floor) };
    let most = limits.pressure_percent.map(|percent| f64::from(percent) * share);
    if let (Some(pressure), Some(most)) = (reading.pressure, most)
        && pressure >= most
    {
        return Some(format!(
            "all programs waited for memory {pressure:.0} % of the last ten seconds, and {most:.0} % is the limit"
        ));
    }
    let available = reading.available.filter(|available| *available < floor)?;
    Some(format!("{} MiB are left, and {} MiB are the least", available >> 20, floor >> 20))
}

/// How much slower a board is that is held back, as far as its clock tells.
fn slowdown(reading: &Reading) -> f64 {
    let Some(clock) = reading.clock.filter(|_| !reading.throttled.is_empty()) else { return 1.0 };
    let mhz = |mhz: u64| f64::from(u32::try_from(mhz).unwrap_or(u32::MAX));
    (mhz(clock.most) / mhz(clock.now).max(1.0)).clamp(1.0, SLOWEST)
}

/// Degrees in steps of five: the status is published when it changes.
fn in_fives(degrees: f64) -> i16 {
    let mut fives = -60;
    while f64::from(fives) + 2.5 <= degrees && fives < 200 {
        fives += 5;
    }
    fives
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Clock;

    #[test]
    fn memory_is_short_until_there_is_clearly_more() {
        let limits = MemoryLimits { pressure_percent: Some(40), floor: 32 << 20 };
        let pressed = |percent| Reading { pressure: Some(percent), ..Reading::default() };
        let left = |mib: u64| Reading { available: Some(mib << 20), ..Reading::default() };
        let short = |reading: &Reading, is| short_of_memory(reading, &limits, is).is_some();
        assert!(!short(&Reading::default(), false), "a board that tells nothing is not short");
        assert!(!short(&pressed(39.0), false) && short(&pressed(40.0), false));
        assert!(short(&pressed(20.0), true) && !short(&pressed(19.0), true));
        assert!(!short(&left(32), false) && short(&left(31), false));
        assert!(short(&left(47), true) && !short(&left(48), true));
        let never = MemoryLimits { pressure_percent: None, floor: 0 };
        assert_eq!(
            short_of_memory(&Reading { available: Some(0), ..pressed(99.0) }, &never, true),
            None
        );
    }

    #[test]
    fn a_clock_that_is_held_back_makes_slower() {
        let clock = Some(Clock { now: 600, most: 1800 });
        let idle = Reading { clock, ..Reading::default() };
        assert!((slowdown(&idle) - 1.0).abs() < 1e-9, "an idle board has a low clock too");
        let held = Reading { throttled: vec!["x".to_owned()], ..idle.clone() };
        assert!((slowdown(&held) - 3.0).abs() < 1e-9);
        let stopped = Reading { clock: Some(Clock { now: 0, most: 1800 }), ..held };
        assert!((slowdown(&stopped) - SLOWEST).abs() < 1e-9);
    }

    #[test]
    fn degrees() {
        for (degrees, told) in [(61.9, 60), (62.6, 65), (-3.0, -5), (1.0, 0)] {
            assert_eq!(in_fives(degrees), told, "{degrees}");
        }
    }
}
