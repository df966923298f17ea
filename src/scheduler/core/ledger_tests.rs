//! Random histories of the core against a ledger that knows only what an outsider may expect.

use std::collections::{HashMap, HashSet};

use super::tests::{Bench, SECOND, delta, died, finish, model, started, submission};
use super::{Action, FATAL_DEATHS, Order};
use crate::engine::client::EngineEvent;
use crate::engine::frames::{Execution, FromEngine, LoadRequest, ToEngine};
use crate::request::{Code, Event, Priority, PromptId, Refusal, Submission};

/// A small generator of its own (xorshift64*), so that a seed means the same history for ever.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap() % sides
    }
}

/// The engine's process.
#[derive(Clone, Copy, Default, PartialEq)]
enum Process {
    #[default]
    None,
    Alive,
    /// The scheduler wants it ended.
    Ending,
}

/// What an outsider may expect, kept from the actions alone.
#[derive(Default)]
struct Ledger {
    checks: HashSet<u64>,
    answered: HashSet<u64>,
    open: HashMap<PromptId, Vec<u32>>,
    ended: HashSet<PromptId>,
    /// Prompts in the engine that is there, and how many engines had each.
    running: Vec<PromptId>,
    deaths: HashMap<PromptId, u32>,
    /// Checks that this engine has answered, and prompts that it starts when it has answered their check.
    told: HashSet<u64>,
    claims: HashMap<u64, PromptId>,
    slots: usize,
    ready: bool,
    process: Process,
    /// The scheduler wants a model.
    wanted: bool,
    /// Which model is there, counted, and which began each answer.
    models: u32,
    begun_by: HashMap<PromptId, u32>,
}

impl Ledger {
    fn read(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(message) => self.sent(message),
                Action::Engine(order) => {
                    assert!(self.running.is_empty(), "{order:?} while {:?} run", self.running);
                    assert!(order == Order::Load || self.open.is_empty() || order != Order::Unload);
                    if matches!(order, Order::TakeOver | Order::Replace(Some(_))) {
                        self.models += 1;
                    }
                    // The engine that is there takes no more work.
                    self.ready = false;
                    if self.process == Process::Alive {
                        self.process = Process::Ending;
                    }
                    self.wanted = order != Order::Unload;
                }
                Action::Accept { check, id, .. } => {
                    assert!(self.answered.insert(check), "check {check} is answered twice");
                    assert!(
                        self.open.insert(id, Vec::new()).is_none() && !self.ended.contains(&id),
                        "{id} is used twice"
                    );
                    assert!(!self.claims.contains_key(&check), "{id} is accepted unchecked");
                }
                Action::Refuse { check, .. } => {
                    assert!(self.answered.insert(check), "check {check} is answered twice");
                }
                Action::Deliver { id, event } => {
                    assert!(!self.ended.contains(&id), "{id} gets {event:?} after its end");
                    let got = self.open.get_mut(&id).expect("only accepted prompts get events");
                    if let Event::Delta { tokens, .. } = &event {
                        got.extend(tokens);
                        let began = *self.begun_by.entry(id).or_insert(self.models);
                        assert_eq!(began, self.models, "{id} goes on with another model");
                    }
                    if event.is_final() {
                        self.open.remove(&id);
                        self.ended.insert(id);
                        self.running.retain(|other| *other != id);
                    }
                }
            }
        }
        let has = self.running.len() + self.claims.len();
        assert!(has <= self.slots, "more run than there are slots");
        // What it starts by itself when a check is good, it was either accepted for or called back from.
        for id in &self.running {
            assert!(self.open.contains_key(id), "{id} runs, and nobody was told");
        }
    }

    fn forget_checks(&mut self) {
        self.checks.clear();
        self.told.clear();
        self.claims.clear();
    }

    fn sent(&mut self, message: ToEngine) {
        assert!(self.ready, "{message:?} is sent to an engine that is not ready");
        match message {
            ToEngine::Pin(_) => {}
            ToEngine::Load(_) => panic!("loading is the supervisor's business"),
            ToEngine::Check { check, .. } => assert!(self.checks.insert(check)),
            ToEngine::Start { id, check: Some(check), resume, .. }
                if self.checks.contains(&check) && !self.told.contains(&check) =>
            {
                assert!(resume.is_empty() && !self.ended.contains(&id));
                assert!(self.claims.insert(check, id).is_none());
            }
            ToEngine::Start { id, resume, .. } => {
                assert!(
                    self.deaths.get(&id).copied().unwrap_or(0) < FATAL_DEATHS,
                    "{id} runs a third time"
                );
                assert_eq!(
                    Some(&resume),
                    self.open.get(&id),
                    "{id} resumes from what its asker has"
                );
                assert!(!self.running.contains(&id));
                self.running.push(id);
            }
            ToEngine::Cancel { id } => {
                let had = self.running.len() + self.claims.len();
                self.running.retain(|other| *other != id);
                self.claims.retain(|_, other| *other != id);
                let has = self.running.len() + self.claims.len();
                assert!(has < had, "{id} is cancelled and does not run");
            }
        }
    }
}

fn other_model() -> LoadRequest {
    LoadRequest {
        version: 0,
        model: "/other".into(),
        library: "/lib/ort.so".into(),
        execution: Execution::default(),
        store: None,
        trusted: Vec::new(),
        slots: 1,
        context: 0,
        beside: None,
    }
}

fn play(seed: u64) {
    let mut dice = Dice(seed);
    let (limit, slots) = (dice.below(6), 1 + dice.below(3));
    let mut bench = Bench::new(limit);
    let mut ledger = Ledger { slots, wanted: true, ..Ledger::default() };
    for step in 0..400 {
        happen(step, &mut dice, &mut bench, &mut ledger);
        ledger.read(bench.core.take_actions());
        compare(step, (limit, slots), &bench, &ledger);
    }
    bench.core.drain();
    bench.core.cancel_all(bench.now);
    ledger.read(bench.core.take_actions());
    assert!(bench.core.is_idle() && ledger.open.is_empty());
    assert_eq!(
        ledger.answered.len(),
        usize::try_from(bench.core.next_check).unwrap(),
        "each submission is answered once"
    );
}

/// Something happens.
fn happen(step: u32, dice: &mut Dice, bench: &mut Bench, ledger: &mut Ledger) {
    let known: Vec<PromptId> = (0..bench.core.next_id).map(PromptId).collect();
    match dice.below(16) {
        0..=2 => {
            let timeout =
                (dice.below(3) == 0).then(|| SECOND * u32::try_from(dice.below(9)).unwrap());
            let priority = [Priority::Low, Priority::Normal, Priority::High][dice.below(3)];
            let who = ["a", "b", "c"][dice.below(3)];
            bench.core.submit(Submission { priority, timeout, ..submission(who) }, bench.now);
        }
        3..=4 => {
            // Also checks that were answered or given up before: those must change nothing.
            let check = u64::try_from(dice.below(8)).unwrap();
            let check = bench.core.next_check.saturating_sub(check + 1);
            if ledger.ready && ledger.checks.contains(&check) {
                ledger.told.insert(check);
                ledger.running.extend(ledger.claims.remove(&check));
                bench.check(check);
            }
        }
        5..=7 if ledger.ready && !known.is_empty() => {
            // Mostly prompts that run; sometimes a late event of one that does not any more.
            let pool = if dice.below(8) == 0 || ledger.running.is_empty() {
                known
            } else {
                ledger.running.clone()
            };
            let id = pool[dice.below(pool.len())];
            let event = match dice.below(6) {
                0 => finish(SECOND, SECOND, 3),
                1 => Event::Failed(Refusal::new(Code::Internal, "x")),
                2 => Event::Prefill { done: 1, total: 2 },
                _ => delta(step),
            };
            bench.event(id, event);
        }
        8 if !known.is_empty() => bench.core.cancel(known[dice.below(known.len())], bench.now),
        9 => bench.pass(SECOND * u32::try_from(dice.below(4)).unwrap()),
        10 if ledger.wanted && ledger.process == Process::None => {
            bench.engine(started(step));
            ledger.process = Process::Alive;
            ledger.ready = true;
            bench.frame(FromEngine::Ready(model(u16::try_from(ledger.slots).unwrap())));
        }
        11 if ledger.process != Process::None && dice.below(4) == 0 => {
            ledger.ready = false;
            ledger.process = Process::None;
            // The next engine is asked again.
            ledger.forget_checks();
            for id in ledger.running.drain(..) {
                *ledger.deaths.entry(id).or_default() += 1;
            }
            bench.engine(died(Some(SECOND)));
        }
        12 if dice.below(3) == 0 => drop(bench.core.unload(bench.now)),
        13 => bench.core.load(bench.now),
        14 if dice.below(6) == 0 && ledger.ready && ledger.wanted => {
            let config = bench.core.config.clone();
            bench.core.take_over(config, bench.now);
        }
        14 if dice.below(4) == 0 => {
            let config = bench.core.config.clone();
            let other = (dice.below(2) == 0).then(|| Box::new(other_model()));
            bench.core.configure(config, other, true, bench.now);
        }
        15 if ledger.process == Process::Ending => {
            ledger.process = Process::None;
            // The next engine is asked again.
            ledger.forget_checks();
            bench.engine(EngineEvent::Ended);
        }
        _ => {}
    }
}

/// What the core says of itself agrees with what an outsider has seen.
fn compare(step: u32, (limit, slots): (usize, usize), bench: &Bench, ledger: &Ledger) {
    let status = bench.core.status();
    assert_eq!(status.running, ledger.running.len(), "step {step}");
    assert_eq!(status.waiting + status.running, ledger.open.len(), "step {step}");
    assert!(status.waiting <= limit + slots, "step {step}: {} wait", status.waiting);
    // One that has seen an engine die runs alone.
    let suspects = |ids: &mut dyn Iterator<Item = &PromptId>| {
        ids.filter(|id| ledger.deaths.contains_key(id)).count()
    };
    let alone = suspects(&mut ledger.running.iter());
    assert!(alone == 0 || ledger.running.len() == 1, "step {step}: {:?}", ledger.running);
    let idle_slot =
        ledger.ready && bench.core.is_serving() && status.running + ledger.claims.len() < slots;
    let held_back = status.running > 0 && suspects(&mut ledger.open.keys()) > 0;
    assert!(
        !(idle_slot && status.waiting > 0) || held_back,
        "step {step}: a slot is empty while prompts wait"
    );
}

#[test]
fn every_prompt_ends_once_in_random_histories() {
    for seed in 1..=500 {
        let played = std::panic::catch_unwind(|| play(seed));
        assert!(played.is_ok(), "seed {seed}");
    }
}
