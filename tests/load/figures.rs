//! What was measured.

use std::time::Duration;

/// What became of prompts, and how long they took.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Times from the question to the refusal.
    pub(crate) refusals: Vec<Duration>,
    /// Times that accepted prompts kept the engine, as their answers tell.
    pub(crate) service: Vec<Duration>,
    /// Times in the queue, as the answers tell.
    pub(crate) queue: Vec<Duration>,
    /// Times from the question to the answer.
    pub(crate) answers: Vec<Duration>,
    /// Refusals with another code than `busy`, or without `retry_after_ms`.
    pub(crate) odd: Vec<String>,
    /// Prompts that were not sent in time because every connection waited.
    pub(crate) late: usize,
}

impl Figures {
    pub(crate) fn add(&mut self, other: Figures) {
        self.refusals.extend(other.refusals);
        self.service.extend(other.service);
        self.queue.extend(other.queue);
        self.answers.extend(other.answers);
        self.odd.extend(other.odd);
        self.late += other.late;
    }

    /// Takes down what an answer says: its JSON, and how long it took.
    pub(crate) fn answered(&mut self, object: &serde_json::Value, took: Duration) {
        let error = object.get("error").unwrap_or(object);
        if let Some(code) = error.get("code").and_then(serde_json::Value::as_str) {
            self.refusals.push(took);
            if code != "busy" || !error["retry_after_ms"].is_u64() {
                self.odd.push(error.to_string());
            }
            return;
        }
        let ms = object.get("promptd").unwrap_or(object).get("ms").cloned().unwrap_or_default();
        let part = |name: &str| ms[name].as_u64().unwrap_or(0);
        self.service.push(Duration::from_millis(part("prefill") + part("decode")));
        self.queue.push(Duration::from_millis(part("queue")));
        self.answers.push(took);
    }
}

/// The time that this share of them do not exceed.
pub(crate) fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list, between 0 and its length"
    )]
    let at = (last as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// Their mean.
pub(crate) fn mean(times: &[Duration]) -> Duration {
    let count = u32::try_from(times.len()).unwrap_or(u32::MAX).max(1);
    times.iter().sum::<Duration>() / count
}

/// The median, and the tenth and the ninetieth of a hundred, for people to read.
pub(crate) fn spread(times: &[Duration]) -> String {
    let [low, median, high] = [0.1, 0.5, 0.9].map(|share| quantile(times, share));
    format!("{median:.1?} ({low:.1?} to {high:.1?})")
}
