//! promptd's metrics: names, meanings, and where each number comes from. docs/operations.md lists them for operators.

use super::exposition::Page;
use crate::board::{Board, Reading};
use crate::record::Health;
use crate::scheduler::Status;
use crate::traffic::Counts;

/// The states that there are, one of which promptd is in.
const STATES: [&str; 6] = ["loading", "ready", "degraded", "unloaded", "model_failed", "draining"];

/// What is looked up when somebody asks for the page.
#[derive(Clone, Debug, Default)]
pub(super) struct Looks {
    /// The board.
    pub(super) board: Reading,
    /// Bytes of memory of the service.
    pub(super) service: Option<u64>,
    /// Bytes of memory of the engine.
    pub(super) engine: Option<u64>,
}

impl Looks {
    /// Looks.
    pub(super) fn now(board: &Board, status: &Status) -> Self {
        let engine = status.engine_pid.and_then(|pid| board.resident(Some(pid)));
        Looks { board: board.read(), service: board.resident(None), engine }
    }
}

/// The page.
pub(super) fn text(status: &Status, counts: &Counts, looks: &Looks) -> String {
    let mut page = Page::default();
    state(&mut page, status);
    requests(&mut page, status, counts);
    tokens(&mut page, status, counts);
    times(&mut page, counts);
    processes(&mut page, status, looks);
    board(&mut page, &looks.board);
    let help = "1 while no new prompts are taken for want of memory.";
    let paused = u8::from(status.board.short_of_memory.is_some());
    page.one("promptd_admission_paused", "gauge", help, paused);
    if let Some(health) = &status.record {
        record(&mut page, health);
    }
    page.into_text()
}

fn state(page: &mut Page, status: &Status) {
    page.one("promptd_up", "gauge", "1 while the service answers.", 1);
    let model = status.model.as_ref().map_or("", |model| model.name.as_str());
    page.family("promptd_info", "gauge", "Version and model, as labels.");
    page.sample("promptd_info", &[("version", env!("CARGO_PKG_VERSION")), ("model", model)], 1);
    page.family("promptd_state", "gauge", "1 for the state that promptd is in.");
    for state in STATES {
        page.sample("promptd_state", &[("state", state)], u8::from(status.state_name() == state));
    }
    let help = "1 while the configuration on disk is wrong and an earlier one holds.";
    let wrong = u8::from(status.configuration_error.is_some());
    page.one("promptd_configuration_wrong", "gauge", help, wrong);
}

fn requests(page: &mut Page, status: &Status, counts: &Counts) {
    let help = "Requests that ended, by door, profile and outcome: ok, or the code of the refusal.";
    page.family("promptd_requests_total", "counter", help);
    for ((door, profile, outcome), count) in &counts.requests {
        let labels = [("door", door.as_str()), ("profile", profile.as_str()), ("outcome", outcome)];
        page.sample("promptd_requests_total", &labels, count);
    }
    let counters = &status.counters;
    page.one("promptd_prompts_accepted_total", "counter", "Prompts accepted.", counters.accepted);
    let help = "Prompts that ended well.";
    page.one("promptd_prompts_finished_total", "counter", help, counters.finished);
    page.family("promptd_prompts_refused_total", "counter", "Prompts refused or failed, by code.");
    for (code, count) in &counters.refused {
        page.sample("promptd_prompts_refused_total", &[("code", code)], count);
    }
    page.one("promptd_queue_waiting", "gauge", "Prompts that wait.", status.waiting);
    page.one("promptd_queue_limit", "gauge", "The most prompts that may wait.", status.queue_limit);
    let help = "Seconds that somebody new would wait for a slot, as it is foretold.";
    let wait = status.next_begins.as_secs_f64();
    page.one("promptd_queue_eta_seconds", "gauge", help, wait);
    page.one("promptd_prompts_running", "gauge", "Prompts that run in the engine.", status.running);
    let slots = status.model.as_ref().map_or(0, |model| model.slots);
    page.one("promptd_slots", "gauge", "Prompts that can run at once.", slots);
}

fn tokens(page: &mut Page, status: &Status, counts: &Counts) {
    let counters = &status.counters;
    let help = "Tokens of prompts read.";
    page.one("promptd_prompt_tokens_total", "counter", help, counters.prompt_tokens);
    let help = "Tokens of prompts that were in the KV cache already.";
    page.one("promptd_cached_tokens_total", "counter", help, counters.cached_tokens);
    let help = "Answers of which a part of the prompt was in the KV cache already.";
    page.one("promptd_cache_hits_total", "counter", help, counts.cache_hits);
    let help = "Tokens of answers.";
    page.one("promptd_completion_tokens_total", "counter", help, counters.completion_tokens);
    let prefill = counters.prefill.as_secs_f64();
    page.one("promptd_prefill_seconds_total", "counter", "Time spent reading prompts.", prefill);
    let decode = counters.decode.as_secs_f64();
    page.one("promptd_decode_seconds_total", "counter", "Time spent writing answers.", decode);
    let now = counts.gauges;
    let help = "Tokens a second that a prompt is read with, as a running mean.";
    page.one("promptd_prefill_tokens_per_second", "gauge", help, now.read_per_second);
    let help = "Tokens a second that one answer is written with, as a running mean.";
    page.one("promptd_decode_tokens_per_second", "gauge", help, now.written_per_second);
    let help = "Tokens of running prompts and their answers in the KV cache.";
    page.one("promptd_kv_cache_tokens", "gauge", help, now.cache_tokens);
    let room = status.model.as_ref().map(|model| u64::from(model.context) * u64::from(model.slots));
    let help = "Tokens that the KV cache has room for, all slots together.";
    page.maybe("promptd_kv_cache_capacity_tokens", "gauge", help, room);
}

fn times(page: &mut Page, counts: &Counts) {
    let help = "Seconds from acceptance to the first token of the answer.";
    page.histogram("promptd_first_token_seconds", help, &counts.first_token);
    let help = "Seconds for one token of an answer, the first left out; one observation an answer.";
    page.histogram("promptd_token_seconds", help, &counts.token);
    let help = "Seconds that prompts waited for their turn.";
    page.histogram("promptd_queue_wait_seconds", help, &counts.wait);
    let help = "Seconds between the wait that was foretold and the one there was, of prompts that had to wait.";
    page.histogram("promptd_eta_error_seconds", help, &counts.eta_error);
    let help = "Seconds of waiting that were foretold.";
    page.one("promptd_eta_foretold_seconds_total", "counter", help, counts.foretold);
    let help = "Seconds of waiting that there were, of those prompts.";
    page.one("promptd_eta_waited_seconds_total", "counter", help, counts.waited);
}

fn processes(page: &mut Page, status: &Status, looks: &Looks) {
    let restarts = "Engines that died and that others replace.";
    let counters = &status.counters;
    page.one("promptd_engine_restarts_total", "counter", restarts, counters.engine_restarts);
    let memory = "Resident memory of a process, file pages included.";
    page.family("promptd_memory_bytes", "gauge", memory);
    for (process, bytes) in [("service", looks.service), ("engine", looks.engine)] {
        if let Some(bytes) = bytes {
            page.sample("promptd_memory_bytes", &[("process", process)], bytes);
        }
    }
}

fn board(page: &mut Page, board: &Reading) {
    let help = "The hottest zone of the board in degrees Celsius.";
    page.maybe("promptd_board_temperature_celsius", "gauge", help, board.temperature);
    let help = "1 while heat or power holds the board back.";
    page.one("promptd_board_throttled", "gauge", help, u8::from(!board.throttled.is_empty()));
    let help = "The clock of the slowest processors at present.";
    page.maybe("promptd_board_clock_hertz", "gauge", help, board.clock.map(|c| c.now * 1_000_000));
    let help = "The fastest clock these processors can have.";
    let most = board.clock.map(|c| c.most * 1_000_000);
    page.maybe("promptd_board_clock_max_hertz", "gauge", help, most);
    let help = "Memory that programs can still have.";
    page.maybe("promptd_board_memory_available_bytes", "gauge", help, board.available);
    let help = "Share of the last 10 s in which all programs waited for memory, 0 to 1.";
    let share = board.pressure.map(|percent| percent / 100.0);
    page.maybe("promptd_board_memory_pressure_ratio", "gauge", help, share);
}

fn record(page: &mut Page, record: &Health) {
    let degraded = u8::from(record.trouble.is_some());
    let what = "1 while the state directory cannot be written.";
    page.one("promptd_record_degraded", "gauge", what, degraded);
    let what = "Accepted prompts in the record, without an answer.";
    page.one("promptd_record_prompts", "gauge", what, record.prompts);
    let what = "Answers in the record that may not have been delivered.";
    page.one("promptd_record_undelivered", "gauge", what, record.undelivered);
    let what = "Answers that are kept for those who ask again.";
    page.one("promptd_record_answers", "gauge", what, record.answers);
    let what = "Rows whose newest state waits for the disk.";
    page.one("promptd_record_waiting", "gauge", what, record.waiting);
    let what = "Prompts of an earlier start that were taken up.";
    page.one("promptd_record_replayed_total", "counter", what, record.replayed);
    let what = "Rows that were lost and files that were set aside.";
    page.one("promptd_record_lost_total", "counter", what, record.lost);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Clock;
    use crate::request::Door;

    #[test]
    fn a_page() {
        let mut status = Status { waiting: 3, ..Status::default() };
        std::sync::Arc::make_mut(&mut status.counters).refused.insert("busy", 2);
        status.record = Some(Health { replayed: 4, ..Health::default() });
        let mut counts = Counts::default();
        counts.requests.insert((Door::Mqtt, "house".to_owned(), "ok"), 7);
        let board = Reading {
            temperature: Some(61.5),
            throttled: vec!["x".to_owned()],
            clock: Some(Clock { now: 600, most: 1800 }),
            available: None,
            pressure: Some(12.5),
        };
        let page = text(&status, &counts, &Looks { board, service: Some(4096), engine: None });
        for line in [
            "promptd_up 1",
            "promptd_state{state=\"loading\"} 1",
            "promptd_state{state=\"ready\"} 0",
            "promptd_queue_waiting 3",
            "promptd_requests_total{door=\"mqtt\",profile=\"house\",outcome=\"ok\"} 7",
            "promptd_prompts_refused_total{code=\"busy\"} 2",
            "promptd_prefill_seconds_total 0",
            "promptd_first_token_seconds_count 0",
            "promptd_memory_bytes{process=\"service\"} 4096",
            "promptd_board_temperature_celsius 61.5",
            "promptd_board_throttled 1",
            "promptd_board_clock_hertz 600000000",
            "promptd_board_memory_pressure_ratio 0.125",
            "promptd_record_degraded 0",
            "promptd_record_replayed_total 4",
            "# TYPE promptd_engine_restarts_total counter",
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        assert!(!page.contains("memory_available") && !page.contains("process=\"engine\""));
    }

    #[test]
    fn every_family_has_the_house_name_help_a_type_and_its_place_in_the_document() {
        let document = include_str!("../../docs/operations.md");
        let (board, clock) = (Reading::default(), Some(Clock { now: 600, most: 1800 }));
        let board = Reading { temperature: Some(1.0), pressure: Some(1.0), clock, ..board };
        let looks = Looks { board: Reading { available: Some(1), ..board }, ..Looks::default() };
        let status = Status { record: Some(Health::default()), ..Status::default() };
        let page = text(&status, &Counts::default(), &looks);
        let names: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        for line in &names {
            let (name, kind) = line.split_once(' ').unwrap();
            assert!(name.starts_with("promptd_"), "{name}");
            assert!(page.contains(&format!("# HELP {name} ")), "{name}");
            let told = [format!("`{name}`"), format!("`{name}{{")];
            assert!(
                told.iter().any(|told| document.contains(told)),
                "{name} is not in the document"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        }
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len(), "no family stands twice");
    }
}
