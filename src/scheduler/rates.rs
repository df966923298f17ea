//! How fast this board answers, learnt from the answers it has given, and what that means for those who wait and ask next.

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

/// What a prompt asks of the model, as its check found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Tokens to read.
    pub(super) prompt: u32,
    /// The most tokens to write.
    pub(super) answer: u32,
}

/// Running means over the prompts that were answered.
#[derive(Debug, Default)]
pub(super) struct Rates {
    measured: u32,
    /// Seconds one prompt keeps its slot.
    service: f64,
    /// Seconds for one token of a prompt, those found in the KV cache included: the next prompts will find as many there.
    read: f64,
    /// Seconds for one token of an answer behind the first.
    write: f64,
    /// Tokens of an answer.
    answer: f64,
    /// How much slower than unhindered the board is at present, less one.
    hindrance: f64,
}

impl Rates {
    /// Learns from an answer.
    pub(super) fn learn(&mut self, finish: &Finish) {
        let weight = if self.measured == 0 { 1.0 } else { WEIGHT };
        let mean = |mean: &mut f64, new: f64| *mean += weight * (new - *mean);
        let (prefill, decode) = (finish.timings.prefill, finish.timings.decode);
        mean(&mut self.service, (prefill + decode).as_secs_f64());
        // Where vectors were asked for, nothing was written: that says nothing of answers.
        if finish.usage.completion > 0 {
            mean(&mut self.answer, f64::from(finish.usage.completion));
        }
        if finish.usage.prompt > 0 {
            mean(&mut self.read, prefill.as_secs_f64() / f64::from(finish.usage.prompt));
        }
        // The first token comes out of prefill.
        if finish.usage.completion > 1 {
            let steps = f64::from(finish.usage.completion - 1);
            // Where the first answers had one token, nothing is known of the second yet.
            let weight = if self.write > 0.0 { WEIGHT } else { 1.0 };
            self.write += weight * (decode.as_secs_f64() / steps - self.write);
        }
        self.measured = self.measured.saturating_add(1);
    }

    /// The board is this much slower than unhindered (1: it is not). Returns whether that changes what is expected. What was
    /// measured is scaled at once, because the next answer that would teach it may be minutes away.
    pub(super) fn slowed(&mut self, factor: f64) -> bool {
        let ratio = factor / (1.0 + self.hindrance);
        // Clocks go up and down a little all the time.
        if (ratio - 1.0).abs() < 0.1 {
            return false;
        }
        self.hindrance = factor - 1.0;
        for seconds in [&mut self.service, &mut self.read, &mut self.write] {
            *seconds *= ratio;
        }
        self.measured > 0
    }

    /// Tokens a second, read and written by one prompt; 0 where nothing was measured.
    pub(super) fn per_second(&self) -> (f64, f64) {
        let inverse = |seconds: f64| if seconds > 0.0 { 1.0 / seconds } else { 0.0 };
        (inverse(self.read), inverse(self.write))
    }

    /// How long a prompt of this size keeps its slot, if its answer is as long as answers are.
    pub(super) fn service_of(&self, size: Size) -> Duration {
        if self.measured == 0 {
            return UNKNOWN_SERVICE;
        }
        let steps = (self.answer.min(f64::from(size.answer)) - 1.0).max(0.0);
        self.reading_of(size.prompt).saturating_add(seconds(self.write * steps))
    }

    /// How long one that has run for this long still needs. Who is over its estimate has a long answer, and the longer it
    /// has been, the longer it will be: a quarter again, rather than nothing.
    pub(super) fn rest_of(&self, size: Size, ran: Duration) -> Duration {
        self.service_of(size).saturating_sub(ran).max(ran / 4)
    }

    /// How long the model reads before the answer begins.
    pub(super) fn reading_of(&self, prompt_tokens: u32) -> Duration {
        seconds(self.read * f64::from(prompt_tokens))
    }

    /// Whether something that is expected in that time is clearly too late for a prompt with so much time left.
    pub(super) fn clearly_misses(&self, expected: Duration, left: Duration) -> bool {
        self.measured >= ENOUGH && clearly_over(expected, left)
    }

    /// When it is worth asking again after the queue was full: when the next place is free.
    pub(super) fn retry_after(&self, slots: usize) -> Duration {
        let slots = u32::try_from(slots.max(1)).unwrap_or(u32::MAX);
        let service = if self.measured == 0 { UNKNOWN_SERVICE } else { seconds(self.service) };
        sensible(service / slots)
    }
}

/// Whether an estimate is over the limit by more than its own error.
pub(super) fn clearly_over(expected: Duration, limit: Duration) -> bool {
    expected.as_secs_f64() > limit.as_secs_f64() * CLEARLY
}

/// When each slot is free, as prompts are put into them one after the other.
#[derive(Debug)]
pub(super) struct Forecast {
    /// Time until each slot is free.
    free: Vec<Duration>,
}

impl Forecast {
    /// Slots in which those who run still need so long each.
    pub(super) fn new(slots: usize, running: impl Iterator<Item = Duration>) -> Self {
        let mut free: Vec<Duration> = running.collect();
        free.resize(free.len().max(slots).max(1), Duration::ZERO);
        Forecast { free }
    }

    /// The next prompt takes the slot that is free first, and keeps it for its service time. Returns when it begins.
    pub(super) fn place(&mut self, service: Duration) -> Duration {
        let Some(first) = self.free.iter_mut().min() else { return Duration::ZERO };
        let begins = *first;
        *first = begins.saturating_add(service);
        begins
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{FinishReason, Timings, Usage};

    fn finish(prompt: u32, prefill_ms: u64, completion: u32, decode_ms: u64) -> Finish {
        let timings = Timings {
            queue: Duration::ZERO,
            prefill: Duration::from_millis(prefill_ms),
            decode: Duration::from_millis(decode_ms),
        };
        let usage = Usage { prompt, cached: 0, completion, forgotten: 0 };
        Finish { reason: FinishReason::Stop, usage, timings, seed: 0 }
    }

    #[test]
    fn a_prompt_costs_what_its_tokens_cost() {
        let mut rates = Rates::default();
        let size = |prompt, answer| Size { prompt, answer };
        assert_eq!(rates.service_of(size(1, 1)), UNKNOWN_SERVICE);
        // 10 ms a token read, 100 ms a token written, answers of 11 tokens.
        (0..10).for_each(|_| rates.learn(&finish(100, 1000, 11, 1000)));
        for (asked, ms) in [
            (size(100, 500), 2000),
            (size(200, 500), 3000),
            (size(100, 6), 1500),
            (size(100, 1), 1000),
        ] {
            let told = rates.service_of(asked).as_millis();
            assert!(told.abs_diff(ms) <= 1, "{asked:?}: {told} ms, not {ms}");
        }
        assert_eq!(rates.rest_of(size(100, 500), Duration::from_millis(500)).as_millis(), 1500);
        assert_eq!(rates.rest_of(size(100, 500), Duration::from_secs(8)), Duration::from_secs(2));
    }

    #[test]
    fn a_board_that_throttles_is_believed_within_a_few_prompts() {
        let mut rates = Rates::default();
        (0..20).for_each(|_| rates.learn(&finish(100, 1000, 11, 1000)));
        (0..6).for_each(|_| rates.learn(&finish(100, 4000, 11, 4000)));
        let told = rates.service_of(Size { prompt: 100, answer: 500 });
        assert!(told > Duration::from_secs(6), "{told:?} after six prompts of 8 s");
    }

    #[test]
    fn a_board_that_is_held_back_is_expected_to_be_slower_at_once() {
        let mut rates = Rates::default();
        for _ in 0..10 {
            rates.learn(&finish(100, 1000, 11, 1000));
        }
        let told = |rates: &Rates| rates.service_of(Size { prompt: 100, answer: 500 }).as_millis();
        assert!(!rates.slowed(1.05), "that is nothing");
        assert!(rates.slowed(3.0));
        assert!(told(&rates).abs_diff(6000) <= 2, "{}", told(&rates));
        assert!(!rates.slowed(3.0));
        assert!(rates.slowed(1.0));
        assert!(told(&rates).abs_diff(2000) <= 2, "{}", told(&rates));
    }

    #[test]
    fn prompts_go_into_the_slot_that_is_free_first() {
        let second = Duration::from_secs(1);
        let mut forecast = Forecast::new(2, [3 * second].into_iter());
        let begins: Vec<u64> =
            [1, 5, 1, 1].iter().map(|s| forecast.place(*s * second).as_secs()).collect();
        assert_eq!(begins, [0, 1, 3, 4]);
    }
}
