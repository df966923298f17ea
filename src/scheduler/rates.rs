//! How fast this board answers, learnt from the answers it has given, and what that means for those who ask next.

use std::time::Duration;

use crate::request::Finish;

/// Finished prompts after which an estimate is trusted enough to refuse somebody because of it. Fewer would let one
/// odd first prompt (a cold page cache, a very long answer) turn away everybody behind it.
const ENOUGH: u32 = 8;

/// Weight of the newest prompt in the running means: about the last ten count, so that a board that throttles for heat
/// is believed within a few prompts.
const WEIGHT: f64 = 0.2;

/// An answer is refused for its deadline only if the estimate is over it by this factor: answers differ in length, and
/// a prompt that could have been answered is worse lost than one that expires in the queue.
const CLEARLY: f64 = 1.5;

/// What is said of the time of one prompt before any was measured: a short answer of a 7B model on a board.
const UNKNOWN_SERVICE: Duration = Duration::from_secs(5);

/// Nobody is told to come back sooner than this: a refusal must stay cheaper than the work.
const SOONEST_RETRY: Duration = Duration::from_secs(1);

/// Nobody is told to come back later than this: the estimate is not good for more.
const LATEST_RETRY: Duration = Duration::from_secs(120);

/// Running means over the prompts that were answered.
#[derive(Debug, Default)]
pub(super) struct Rates {
    measured: u32,
    /// Seconds one prompt keeps its slot.
    service: f64,
    /// Seconds to read one token of a prompt.
    read: f64,
}

/// How busy the engine is, as far as an estimate needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Prompts that run.
    pub(super) running: usize,
    /// Prompts that get their turn first.
    pub(super) ahead: usize,
    /// Prompts that can run at once.
    pub(super) slots: usize,
}

impl Rates {
    /// Learns from an answer.
    pub(super) fn learn(&mut self, finish: &Finish) {
        let service = (finish.timings.prefill + finish.timings.decode).as_secs_f64();
        let weight = if self.measured == 0 { 1.0 } else { WEIGHT };
        self.service += weight * (service - self.service);
        let read = finish.usage.prompt.saturating_sub(finish.usage.cached);
        if read > 0 {
            let each = finish.timings.prefill.as_secs_f64() / f64::from(read);
            self.read += weight * (each - self.read);
        }
        self.measured = self.measured.saturating_add(1);
    }

    /// How long until a prompt behind this load gets its slot.
    pub(super) fn wait(&self, load: Load) -> Duration {
        let slots = load.slots.max(1);
        let turns = (load.ahead + load.running + 1).saturating_sub(slots);
        let turns = u32::try_from(turns).unwrap_or(u32::MAX);
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        self.service().saturating_mul(turns) / slots
    }

    /// How long until the answer to a prompt of that many tokens begins, if that is clearly later than `timeout`.
    pub(super) fn clearly_misses(
        &self,
        load: Load,
        prompt_tokens: u32,
        timeout: Duration,
    ) -> Option<Duration> {
        if self.measured < ENOUGH {
            return None;
        }
        let begins = self.wait(load).saturating_add(seconds(self.read * f64::from(prompt_tokens)));
        (begins.as_secs_f64() > timeout.as_secs_f64() * CLEARLY).then_some(begins)
    }

    /// When it is worth asking again after the queue was full: when the next place is free.
    pub(super) fn retry_after(&self, slots: usize) -> Duration {
        let slots = u32::try_from(slots.max(1)).unwrap_or(u32::MAX);
        sensible(self.service() / slots)
    }

    fn service(&self) -> Duration {
        if self.measured == 0 { UNKNOWN_SERVICE } else { seconds(self.service) }
    }
}

/// A retry time within the range that is worth saying.
pub(super) fn sensible(after: Duration) -> Duration {
    after.clamp(SOONEST_RETRY, LATEST_RETRY)
}

fn seconds(seconds: f64) -> Duration {
    // Only a mean of real durations comes here; what cannot be a duration is none.
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
