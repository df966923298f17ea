//! The ledger against a naive model: what is generated once, what is answered again, and what is acknowledged when.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::ledger::{KEEP, Key, Known, Ledger};
use super::message::{Delivery, Publication};
use crate::request::PromptId;

#[derive(Clone, Debug)]
enum Step {
    /// A prompt comes: which of a few, and whether the broker says that it repeats it.
    Comes {
        what: u8,
        again: bool,
    },
    /// The nth prompt in work is accepted, safe on disk, answered (well or not), delivered.
    Accepted {
        nth: usize,
    },
    Safe {
        nth: usize,
    },
    Answered {
        nth: usize,
        ok: bool,
    },
    Delivered {
        nth: usize,
    },
    /// The connection is lost; what was not acknowledged comes under new numbers.
    Reconnect,
    Passes {
        seconds: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let nth = || 0..6_usize;
    let step = prop_oneof![
        6 => (0..4_u8, any::<bool>()).prop_map(|(what, again)| Step::Comes { what, again }),
        2 => nth().prop_map(|nth| Step::Accepted { nth }),
        2 => nth().prop_map(|nth| Step::Safe { nth }),
        3 => (nth(), prop::bool::weighted(0.7)).prop_map(|(nth, ok)| Step::Answered { nth, ok }),
        3 => nth().prop_map(|nth| Step::Delivered { nth }),
        1 => Just(Step::Reconnect),
        1 => (1..200_u64).prop_map(|seconds| Step::Passes { seconds }),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A prompt as the model knows it: named ones only, so that equal means the same.
#[derive(Clone, Debug)]
struct Prompt {
    number: u64,
    what: u8,
    deliveries: Vec<Delivery>,
    accepted: bool,
    safe: bool,
    answered: Option<bool>,
}

#[derive(Clone, Debug)]
struct Answer {
    what: u8,
    number: u64,
    ok: bool,
    at: Instant,
}

fn key(what: u8) -> Key {
    Key::new("me/r", None, Some(&what.to_string()), "promptd/n/ask", b"hi")
}

fn messages(number: u64) -> Vec<Publication> {
    let payload = Bytes::from(number.to_string());
    vec![Publication { payload, ..Publication::default() }]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_a_naive_model(steps in steps()) {
        let mut ledger = Ledger::default();
        let (mut open, mut kept): (Vec<Prompt>, Vec<Answer>) = (Vec::new(), Vec::new());
        let (mut now, mut epoch, mut packet) = (Instant::now(), 1_u64, 0_u16);
        let mut owed: Vec<Delivery> = Vec::new();
        let mut generated = 0;
        for step in steps {
            kept.retain(|answer| now.saturating_duration_since(answer.at) < KEEP);
            ledger.forget(now);
            match step {
                Step::Comes { what, again } => {
                    packet += 1;
                    let delivery = Delivery { epoch, packet };
                    let known = ledger.lookup(&key(what), Some(delivery), again);
                    let found = open.iter_mut().find(|prompt| prompt.what == what);
                    let answer = kept.iter().find(|answer| answer.what == what && (answer.ok || again));
                    match (found, answer) {
                        (Some(prompt), _) if prompt.safe => prop_assert_eq!(known, Known::Safe),
                        (Some(prompt), _) => {
                            prop_assert_eq!(known, Known::InWork);
                            prompt.deliveries.retain(|known| known.epoch == epoch);
                            prompt.deliveries.push(delivery);
                            owed.push(delivery);
                        }
                        (None, Some(answer)) => {
                            let expected = Known::Answered { answer: messages(answer.number), ok: answer.ok };
                            prop_assert_eq!(known, expected);
                        }
                        (None, None) => {
                            prop_assert_eq!(known, Known::New);
                            generated += 1;
                            let number = ledger.open(key(what), Some(delivery), None);
                            owed.push(delivery);
                            let deliveries = vec![delivery];
                            open.push(Prompt { number, what, deliveries, accepted: false, safe: false, answered: None });
                        }
                    }
                }
                Step::Accepted { nth } => {
                    if let Some(prompt) = open.get_mut(nth) {
                        prompt.accepted = true;
                        ledger.accepted(prompt.number, PromptId(prompt.number));
                    }
                }
                Step::Safe { nth } => {
                    if let Some(prompt) = open.get_mut(nth).filter(|prompt| prompt.accepted) {
                        prompt.safe = true;
                        let acknowledged = ledger.safe(prompt.number);
                        prop_assert_eq!(&acknowledged, &std::mem::take(&mut prompt.deliveries));
                        owed.retain(|delivery| !acknowledged.contains(delivery));
                    }
                }
                Step::Answered { nth, ok } => {
                    if let Some(prompt) = open.get_mut(nth).filter(|prompt| prompt.answered.is_none()) {
                        // What was not accepted can only be refused.
                        let ok = ok && prompt.accepted;
                        prompt.answered = Some(ok);
                        ledger.answering(prompt.number, messages(prompt.number), ok);
                    }
                }
                Step::Delivered { nth } => {
                    let done = open.get(nth).is_some_and(|prompt| prompt.answered.is_some());
                    if done {
                        let prompt = open.remove(nth);
                        let acknowledged = ledger.delivered(prompt.number, now);
                        prop_assert_eq!(&acknowledged, &prompt.deliveries);
                        owed.retain(|delivery| !acknowledged.contains(delivery));
                        let ok = prompt.answered == Some(true);
                        if prompt.accepted {
                            kept.retain(|answer| answer.what != prompt.what);
                            kept.push(Answer { what: prompt.what, number: prompt.number, ok, at: now });
                        }
                    }
                }
                Step::Reconnect => {
                    epoch += 1;
                    packet = 0;
                    // The broker repeats what it is owed; older deliveries are worth nothing.
                    owed.clear();
                    for prompt in open.iter_mut().filter(|prompt| !prompt.deliveries.is_empty()) {
                        packet += 1;
                        let delivery = Delivery { epoch, packet };
                        prop_assert_eq!(ledger.lookup(&key(prompt.what), Some(delivery), true), Known::InWork);
                        prompt.deliveries = vec![delivery];
                        owed.push(delivery);
                    }
                }
                Step::Passes { seconds } => now += Duration::from_secs(seconds),
            }
            prop_assert_eq!(ledger.working(), open.iter().filter(|prompt| prompt.answered.is_none()).count());
        }
        // Each prompt that was generated is in work or was answered, and each delivery that is owed belongs to one in work.
        let waiting: Vec<Delivery> = open.iter().flat_map(|prompt| prompt.deliveries.clone()).collect();
        prop_assert_eq!(waiting.len(), owed.len());
        prop_assert!(generated >= open.len());
    }
}
