//! What is counted of requests, and under which names.

use std::time::Duration;

use super::*;
use crate::request::{
    Constraint, ContextOverflow, FinishReason, Priority, Quota, Request, Sampling, Timings, Usage,
};

fn submission(profile: &str) -> Submission {
    Submission {
        request: Request {
            input: Input::Completion("x".to_owned()),
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            context_overflow: ContextOverflow::default(),
            constraint: Constraint::None,
            logprobs: None,
            tools: None,
        },
        identity: Identity("me".to_owned()),
        priority: Priority::Normal,
        timeout: None,
        quota: Quota::default(),
        session: None,
        profile: None,
        recorded: None,
        again: None,
        origin: Origin { profile: Some(profile.to_owned()), ..Origin::new(Door::Mqtt) },
    }
}

fn finish() -> Finish {
    let timings = Timings {
        queue: Duration::from_secs(3),
        prefill: Duration::from_secs(1),
        decode: Duration::from_secs(2),
    };
    let usage = Usage { prompt: 9, cached: 4, completion: 5, forgotten: 0 };
    Finish { reason: FinishReason::Stop, usage, timings, seed: 0 }
}

#[test]
fn an_answer_is_counted_and_measured() {
    let traffic = Traffic::default();
    let mut passage = traffic.begin(&submission("house"));
    passage.accepted(PromptId(1));
    passage.event(&Event::Queued { position: 2, eta: Duration::from_secs(2) });
    passage.event(&Event::Queued { position: 1, eta: Duration::from_secs(9) });
    passage.end(&Event::Finished(finish()));
    traffic.begin(&submission("house")).refused(&Refusal::bad_request("no"));
    traffic.turned_away(&Origin::new(Door::Http), None, &Refusal::new(Code::Unauthorized, "who?"));
    let counts = traffic.counts();
    let seen: Vec<_> =
        counts.requests.iter().map(|((d, p, o), n)| (d.as_str(), p.as_str(), *o, *n)).collect();
    assert_eq!(
        seen,
        [
            ("mqtt", "house", "bad_request", 1),
            ("mqtt", "house", "ok", 1),
            ("http", "", "unauthorized", 1)
        ]
    );
    let close = |have: f64, want: f64| assert!((have - want).abs() < 1e-9, "{have} is not {want}");
    close(counts.first_token.sum(), 4.0);
    close(counts.token.sum(), 0.5);
    close(counts.wait.sum(), 3.0);
    // The first forecast is the one that was given to be relied on.
    close(counts.eta_error.sum(), 1.0);
    close(counts.waited / counts.foretold, 1.5);
    assert_eq!(counts.cache_hits, 1);
}

#[test]
fn profiles_without_end_are_counted_together() {
    let traffic = Traffic::default();
    for n in 0..1000 {
        let refusal = Refusal::new(Code::Busy, "full");
        traffic.begin(&submission(&format!("p{n}"))).refused(&refusal);
    }
    let counts = traffic.counts();
    assert_eq!(counts.requests.len(), PROFILES + 1);
    assert_eq!(counts.requests.values().sum::<u64>(), 1000);
}

#[test]
fn what_is_too_long_for_the_log_says_so() {
    assert_eq!(short("ä"), "ä");
    let long = short(&"ä".repeat(CONTENT_BYTES));
    assert!(long.ends_with(&format!("ä… ({CONTENT_BYTES} bytes more)")), "{}", long.len());
}
