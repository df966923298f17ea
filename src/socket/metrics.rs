//! The scheduler's status in Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::Write as _;

use crate::record::Health;
use crate::scheduler::Status;

/// The metrics, one family after the other.
pub(super) fn text(status: &Status) -> String {
    let mut page = Page(String::new());
    let counters = &status.counters;
    page.one("promptd_up", "gauge", "1 while the service answers.", "1");
    let model = status.model.as_ref().map_or("", |model| model.name.as_str());
    page.family("promptd_info", "gauge", "Version and model, as labels.");
    page.sample("promptd_info", &[("version", env!("CARGO_PKG_VERSION")), ("model", model)], "1");
    page.family("promptd_state", "gauge", "1 for the state that promptd is in.");
    for state in ["loading", "ready", "degraded", "unloaded", "model_failed", "draining"] {
        let is = if status.state_name() == state { "1" } else { "0" };
        page.sample("promptd_state", &[("state", state)], is);
    }
    page.one("promptd_queue_waiting", "gauge", "Prompts that wait.", status.waiting);
    page.one("promptd_queue_limit", "gauge", "The most prompts that may wait.", status.queue_limit);
    page.one("promptd_prompts_running", "gauge", "Prompts that run in the engine.", status.running);
    let slots = status.model.as_ref().map_or(0, |model| model.slots);
    page.one("promptd_slots", "gauge", "Prompts that can run at once.", slots);
    page.one("promptd_prompts_accepted_total", "counter", "Prompts accepted.", counters.accepted);
    page.one(
        "promptd_prompts_finished_total",
        "counter",
        "Prompts that ended well.",
        counters.finished,
    );
    page.family("promptd_prompts_refused_total", "counter", "Prompts refused or failed, by code.");
    for (code, count) in &counters.refused {
        page.sample("promptd_prompts_refused_total", &[("code", code)], count);
    }
    page.one(
        "promptd_prompt_tokens_total",
        "counter",
        "Tokens of prompts read.",
        counters.prompt_tokens,
    );
    let cached = "Tokens of prompts that were in the KV cache already.";
    page.one("promptd_cached_tokens_total", "counter", cached, counters.cached_tokens);
    page.one(
        "promptd_completion_tokens_total",
        "counter",
        "Tokens of answers.",
        counters.completion_tokens,
    );
    let prefill = counters.prefill.as_secs_f64();
    page.one("promptd_prefill_seconds_total", "counter", "Time spent reading prompts.", prefill);
    page.one(
        "promptd_decode_seconds_total",
        "counter",
        "Time spent writing answers.",
        counters.decode.as_secs_f64(),
    );
    let restarts = "Engines started after the first one.";
    page.one("promptd_engine_restarts_total", "counter", restarts, counters.engine_restarts);
    if let Some(record) = &status.record {
        page.record(record);
    }
    page.0
}

struct Page(String);

impl Page {
    fn record(&mut self, record: &Health) {
        let degraded = u8::from(record.trouble.is_some());
        let what = "1 while the state directory cannot be written.";
        self.one("promptd_record_degraded", "gauge", what, degraded);
        let what = "Accepted prompts in the record, without an answer.";
        self.one("promptd_record_prompts", "gauge", what, record.prompts);
        let what = "Answers in the record that may not have been delivered.";
        self.one("promptd_record_undelivered", "gauge", what, record.undelivered);
        let what = "Answers that are kept for those who ask again.";
        self.one("promptd_record_answers", "gauge", what, record.answers);
        let what = "Rows whose newest state waits for the disk.";
        self.one("promptd_record_waiting", "gauge", what, record.waiting);
        let what = "Prompts of an earlier start that were taken up.";
        self.one("promptd_record_replayed_total", "counter", what, record.replayed);
        let what = "Rows that were lost and files that were set aside.";
        self.one("promptd_record_lost_total", "counter", what, record.lost);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let escaped =
            |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let mut status = Status { waiting: 3, ..Status::default() };
        status.counters.refused.insert("busy", 2);
        status.record = Some(Health { replayed: 4, ..Health::default() });
        let page = text(&status);
        for line in [
            "promptd_up 1",
            "promptd_state{state=\"loading\"} 1",
            "promptd_state{state=\"ready\"} 0",
            "promptd_queue_waiting 3",
            "promptd_prompts_refused_total{code=\"busy\"} 2",
            "promptd_prefill_seconds_total 0",
            "promptd_record_degraded 0",
            "promptd_record_replayed_total 4",
            "# TYPE promptd_engine_restarts_total counter",
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page(String::new());
        page.sample("m", &[("a", "x\"\\\n")], 1);
        assert_eq!(page.0, "m{a=\"x\\\"\\\\\\n\"} 1\n");
    }
}
