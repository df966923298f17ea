//! The queue against a naive model: a list that is searched from its beginning for every question.

use proptest::prelude::*;

use super::queue::{Entry, Queue};
use super::rates::Size;
use crate::request::{Identity, Priority, PromptId};

#[derive(Clone, Debug)]
enum Step {
    Push {
        who: u8,
        priority: Priority,
    },
    Pop,
    /// The prompt that was taken out so many turns ago comes back.
    Return {
        ago: usize,
    },
    /// Cancelled or expired: one of those that wait.
    Remove {
        nth: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let priority = prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)];
    let step = prop_oneof![
        5 => (0..5_u8, priority).prop_map(|(who, priority)| Step::Push { who, priority }),
        4 => Just(Step::Pop),
        1 => (0..3_usize).prop_map(|ago| Step::Return { ago }),
        1 => (0..20_usize).prop_map(|nth| Step::Remove { nth }),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Clone, Debug)]
struct Waits {
    id: PromptId,
    who: u8,
    priority: Priority,
}

/// What the queue should be: who waits, in the order in which they came, and when whose line moved back.
#[derive(Clone, Debug, Default)]
struct Model {
    returned: Vec<PromptId>,
    waits: Vec<Waits>,
    /// For each priority and identity with a line: when it stood at the end of the round. The smallest is next.
    places: Vec<(Priority, u8, u64)>,
    last: Vec<(Priority, u8)>,
    clock: u64,
}

impl Model {
    fn push(&mut self, id: PromptId, who: u8, priority: Priority) {
        if !self.waits.iter().any(|w| (w.priority, w.who) == (priority, who)) {
            self.clock += 1;
            self.places.push((priority, who, self.clock));
        }
        self.waits.push(Waits { id, who, priority });
    }

    fn pop(&mut self) -> Option<PromptId> {
        if !self.returned.is_empty() {
            return Some(self.returned.remove(0));
        }
        let priority = self.waits.iter().map(|w| w.priority).max()?;
        let mut round: Vec<(u64, u8)> =
            self.places.iter().filter(|p| p.0 == priority).map(|p| (p.2, p.1)).collect();
        round.sort_unstable();
        let had_the_last = |who: u8| self.last.contains(&(priority, who));
        let (_, who) = *round.iter().find(|(_, who)| !had_the_last(*who)).or(round.first())?;
        let at = self.waits.iter().position(|w| (w.priority, w.who) == (priority, who))?;
        let id = self.waits.remove(at).id;
        self.last.retain(|last| last.0 != priority);
        self.last.push((priority, who));
        self.clock += 1;
        let clock = self.clock;
        self.places
            .iter_mut()
            .filter(|p| (p.0, p.1) == (priority, who))
            .for_each(|place| place.2 = clock);
        self.tidy();
        Some(id)
    }

    fn remove(&mut self, id: PromptId) {
        self.returned.retain(|other| *other != id);
        self.waits.retain(|w| w.id != id);
        self.tidy();
    }

    /// Who has no prompt has no place.
    fn tidy(&mut self) {
        let waits = &self.waits;
        self.places.retain(|p| waits.iter().any(|w| (w.priority, w.who) == (p.0, p.1)));
    }

    fn order(&self) -> Vec<PromptId> {
        let mut copy = self.clone();
        std::iter::from_fn(|| copy.pop()).collect()
    }

    fn ids(&self) -> Vec<PromptId> {
        self.returned.iter().copied().chain(self.waits.iter().map(|w| w.id)).collect()
    }
}

fn who(who: u8) -> Identity {
    Identity(who.to_string())
}

fn entry(id: PromptId) -> Entry {
    Entry { id, size: Size { prompt: 1, answer: 1 } }
}

fn ids(entries: &[Entry]) -> Vec<PromptId> {
    entries.iter().map(|entry| entry.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_a_naive_model(steps in steps()) {
        let (mut queue, mut model) = (Queue::default(), Model::default());
        let (mut next, mut popped) = (0, Vec::new());
        for step in steps {
            match step {
                Step::Push { who: name, priority } => {
                    let id = PromptId(next);
                    next += 1;
                    queue.push(entry(id), &who(name), priority);
                    model.push(id, name, priority);
                }
                Step::Pop => {
                    prop_assert_eq!(queue.next(), model.order().first().copied());
                    let id = model.pop();
                    prop_assert_eq!(queue.pop(), id);
                    popped.extend(id);
                }
                Step::Return { ago } => {
                    if let Some(at) = popped.len().checked_sub(ago + 1) {
                        let id = popped.remove(at);
                        queue.push_front(entry(id));
                        model.returned.insert(0, id);
                    }
                }
                Step::Remove { nth } => {
                    let waiting = model.ids();
                    // Also one that does not wait any more, which changes nothing.
                    let id = waiting.get(nth).copied().unwrap_or(PromptId(u64::MAX));
                    queue.remove(id);
                    model.remove(id);
                }
            }
            prop_assert_eq!(queue.len(), model.ids().len());
            prop_assert_eq!(ids(&queue.order()), model.order());
            for name in 0..6 {
                for priority in [Priority::High, Priority::Normal, Priority::Low] {
                    let mut with_guest = model.clone();
                    let guest = PromptId(u64::MAX);
                    with_guest.push(guest, name, priority);
                    let order = with_guest.order();
                    let before: Vec<PromptId> =
                        order.into_iter().take_while(|id| *id != guest).collect();
                    prop_assert_eq!(ids(&queue.ahead_of(&who(name), priority)), before);
                }
            }
        }
        // Nobody is lost: everything that waits gets its turn, once.
        let left = model.order();
        prop_assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), left);
    }

    /// However much one asks, another that comes waits for one prompt of it at most, besides those of other askers, of
    /// which each has one turn before it.
    #[test]
    fn a_flood_delays_another_by_one_turn_at_most(
        flood in 1..200_u64,
        others in 0..4_u8,
        taken in 0..50_usize,
    ) {
        let mut queue = Queue::default();
        for n in 0..flood {
            queue.push(entry(PromptId(n)), &who(9), Priority::Normal);
        }
        for other in 0..others {
            queue.push(entry(PromptId(1000 + u64::from(other))), &who(other), Priority::Normal);
        }
        for _ in 0..taken {
            queue.pop();
        }
        let guest = PromptId(5000);
        queue.push(entry(guest), &who(8), Priority::Normal);
        let before: Vec<u64> =
            std::iter::from_fn(|| queue.pop()).take_while(|id| *id != guest).map(|id| id.0).collect();
        prop_assert!(before.iter().filter(|id| **id < 1000).count() <= 1, "{before:?}");
        prop_assert!(before.len() <= 1 + usize::from(others), "{before:?}");
    }
}
