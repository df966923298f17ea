//! The order in which waiting prompts get their turn. Pure: no clock, no channel, no limit of its own
//! ([`super::core`] refuses before the queue is too long).

use std::collections::VecDeque;

use super::rates::Size;
use crate::request::{Identity, Priority, PromptId};

/// Waiting prompts. Higher priorities go first; inside a priority the identities take turns, one prompt each, and an
/// identity's own prompts go in the order in which they came.
///
/// Who had the last turn is passed over while somebody else of that priority waits. So an identity that floods the
/// queue delays another's prompt by no more than the prompt of its own that is running already.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Prompts that ran when their engine died: they had their turn, and go before everybody.
    returned: VecDeque<Entry>,
    /// One level for each priority, the most urgent first.
    levels: [Level; 3],
}

/// A prompt in the queue and what it is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: PromptId,
    pub(super) size: Size,
}

#[derive(Debug, Default)]
struct Level {
    /// Those who wait, in the order of their turns. No line is empty.
    lines: VecDeque<Line>,
    /// Who had the last turn in this level.
    last: Option<Identity>,
}

#[derive(Debug)]
struct Line {
    identity: Identity,
    prompts: VecDeque<Entry>,
}

impl Queue {
    /// Prompts that wait.
    pub(super) fn len(&self) -> usize {
        self.returned.len() + self.levels.iter().map(Level::len).sum::<usize>()
    }

    /// Puts a prompt behind the others of its identity.
    pub(super) fn push(&mut self, entry: Entry, identity: &Identity, priority: Priority) {
        self.level_mut(priority).push(entry, identity);
    }

    /// Puts a prompt back before everybody: its engine died, and its asker has waited for its turn already.
    pub(super) fn push_front(&mut self, entry: Entry) {
        self.returned.push_front(entry);
    }

    /// Takes out the prompt whose turn it is.
    pub(super) fn pop(&mut self) -> Option<PromptId> {
        let entry =
            self.returned.pop_front().or_else(|| self.levels.iter_mut().find_map(Level::pop));
        entry.map(|entry| entry.id)
    }

    /// This identity had a turn without having waited.
    pub(super) fn had_turn(&mut self, identity: &Identity, priority: Priority) {
        self.level_mut(priority).last = Some(identity.clone());
    }

    /// The prompt whose turn it is.
    pub(super) fn next(&self) -> Option<PromptId> {
        let entry = self.returned.front().or_else(|| self.levels.iter().find_map(Level::next));
        entry.map(|entry| entry.id)
    }

    /// Takes out a prompt that shall not get its turn. Unknown numbers are ignored.
    pub(super) fn remove(&mut self, id: PromptId) {
        self.returned.retain(|other| other.id != id);
        for level in &mut self.levels {
            level.remove(id);
        }
    }

    /// Those waiting, in the order of their turns as they are now.
    pub(super) fn order(&self) -> Vec<Entry> {
        let mut order: Vec<Entry> = self.returned.iter().copied().collect();
        self.levels.iter().for_each(|level| level.turns(None, &mut order));
        order
    }

    /// Those waiting who would get their turn before a prompt that this identity handed in now, in that order.
    pub(super) fn ahead_of(&self, identity: &Identity, priority: Priority) -> Vec<Entry> {
        let own = level_of(priority);
        let mut ahead: Vec<Entry> = self.returned.iter().copied().collect();
        self.levels.iter().take(own).for_each(|level| level.turns(None, &mut ahead));
        if let Some(level) = self.levels.get(own) {
            level.turns(Some(identity), &mut ahead);
        }
        ahead
    }

    fn level_mut(&mut self, priority: Priority) -> &mut Level {
        let [high, normal, low] = &mut self.levels;
        match priority {
            Priority::High => high,
            Priority::Normal => normal,
            Priority::Low => low,
        }
    }
}

fn level_of(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

impl Level {
    fn len(&self) -> usize {
        self.lines.iter().map(|line| line.prompts.len()).sum()
    }

    fn push(&mut self, entry: Entry, identity: &Identity) {
        match self.lines.iter_mut().find(|line| line.identity == *identity) {
            Some(line) => line.prompts.push_back(entry),
            None => self
                .lines
                .push_back(Line { identity: identity.clone(), prompts: VecDeque::from([entry]) }),
        }
    }

    /// Whose turn it is: the first who did not have the last one.
    fn turn(&self) -> usize {
        let others = |line: &Line| Some(&line.identity) != self.last.as_ref();
        self.lines.iter().position(others).unwrap_or(0)
    }

    fn next(&self) -> Option<&Entry> {
        self.lines.get(self.turn())?.prompts.front()
    }

    fn pop(&mut self) -> Option<Entry> {
        let mut line = self.lines.remove(self.turn())?;
        let entry = line.prompts.pop_front();
        self.last = Some(line.identity.clone());
        if !line.prompts.is_empty() {
            self.lines.push_back(line);
        }
        entry
    }

    fn remove(&mut self, id: PromptId) {
        for line in &mut self.lines {
            line.prompts.retain(|other| other.id != id);
        }
        self.lines.retain(|line| !line.prompts.is_empty());
    }

    /// Plays the turns of [`Level::pop`] without taking anybody out. With a guest: until it would be the turn of a prompt
    /// that this identity handed in now.
    fn turns(&self, guest: Option<&Identity>, order: &mut Vec<Entry>) {
        let lines: Vec<&Line> = self.lines.iter().collect();
        let is_guest = |n: usize| lines.get(n).is_none_or(|line| Some(&line.identity) == guest);
        let is_last = |n: usize| {
            let identity = lines.get(n).map_or(guest, |line| Some(&line.identity));
            identity == self.last.as_ref()
        };
        let left = |n: usize, taken: usize| {
            lines.get(n).map_or(0, |line| line.prompts.len())
                + usize::from(guest.is_some() && is_guest(n))
                - taken
        };
        // The lines by number, and how many of each had their turn. A guest without a line is one behind the others.
        let newcomer = guest.is_some() && !(0..lines.len()).any(is_guest);
        let mut round: VecDeque<(usize, usize)> =
            (0..lines.len() + usize::from(newcomer)).map(|n| (n, 0)).collect();
        let mut last = (0..round.len()).find(|n| is_last(*n));
        while let Some(turn) =
            round.iter().position(|(n, _)| Some(*n) != last).or((!round.is_empty()).then_some(0))
        {
            let Some((n, taken)) = round.remove(turn) else { return };
            match lines.get(n).and_then(|line| line.prompts.get(taken)) {
                Some(entry) => order.push(*entry),
                // Only the guest's prompt stands in no line.
                None => return,
            }
            last = Some(n);
            if left(n, taken + 1) > 0 {
                round.push_back((n, taken + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        Entry { id: PromptId(n), size: Size { prompt: 1, answer: 1 } }
    }

    fn numbers(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.id.0).collect()
    }

    fn who(name: &str) -> Identity {
        Identity(name.to_owned())
    }

    /// Pushes `name` or `name!` (urgent) or `name?` (low) in order and pops everything.
    fn order(pushed: &[&str]) -> Vec<String> {
        let mut queue = Queue::default();
        for (n, name) in pushed.iter().enumerate() {
            let (name, priority) = match name.strip_suffix('!') {
                Some(name) => (name, Priority::High),
                None => name
                    .strip_suffix('?')
                    .map_or((*name, Priority::Normal), |name| (name, Priority::Low)),
            };
            queue.push(entry(u64::try_from(n).unwrap()), &who(name), priority);
        }
        std::iter::from_fn(|| queue.pop())
            .map(|id| pushed[usize::try_from(id.0).unwrap()].to_owned())
            .collect()
    }

    #[test]
    fn identities_take_turns_inside_a_priority() {
        assert_eq!(order(&["a", "a", "a", "b", "c", "b"]), ["a", "b", "c", "a", "b", "a"]);
        assert_eq!(order(&["a?", "a", "b!", "a!", "b"]), ["b!", "a!", "a", "b", "a?"]);
    }

    #[test]
    fn who_had_the_last_turn_is_passed_over() {
        let mut queue = Queue::default();
        (0..3).for_each(|n| queue.push(entry(n), &who("flood"), Priority::Normal));
        assert_eq!(queue.pop(), Some(PromptId(0)));
        queue.push(entry(9), &who("other"), Priority::Normal);
        let ahead = |name, priority| numbers(&queue.ahead_of(&who(name), priority));
        assert_eq!(ahead("third", Priority::Normal), [9, 1]);
        assert_eq!(ahead("flood", Priority::Normal), [9, 1, 2]);
        assert_eq!(ahead("other", Priority::Normal), [9, 1]);
        assert_eq!(ahead("third", Priority::High), [0; 0]);
        assert_eq!(ahead("flood", Priority::Low), [9, 1, 2]);
        let rest: Vec<u64> = std::iter::from_fn(|| queue.pop()).map(|id| id.0).collect();
        assert_eq!(rest, [9, 1, 2]);
    }

    #[test]
    fn those_of_a_dead_engine_go_first_in_their_order() {
        let mut queue = Queue::default();
        queue.push(entry(5), &who("a"), Priority::High);
        queue.push_front(entry(2));
        queue.push_front(entry(1));
        queue.remove(PromptId(7));
        assert_eq!(queue.len(), 3);
        let all: Vec<u64> = std::iter::from_fn(|| queue.pop()).map(|id| id.0).collect();
        assert_eq!(all, [1, 2, 5]);
    }

    /// Random pushes, pops and removals against a plain list that says what may come next.
    #[test]
    fn no_order_breaks_the_rules() {
        let names = ["a", "b", "c", "d"];
        let urgency = [Priority::High, Priority::Normal, Priority::Low];
        let mut random: u64 = 88;
        let mut below = |sides: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % sides
        };
        let mut queue = Queue::default();
        let mut plain: Vec<(PromptId, usize, usize)> = Vec::new();
        // Turns that others had since this identity began to wait, by level and identity.
        let mut passed_over = [[0_usize; 4]; 3];
        let mut last = [None; 3];
        for n in 0..20_000 {
            match below(5) {
                0 | 1 if plain.len() < 40 => {
                    let (level, name) = (below(3), below(4));
                    if !plain.iter().any(|(_, l, who)| (*l, *who) == (level, name)) {
                        passed_over[level][name] = 0;
                    }
                    queue.push(entry(n), &who(names[name]), urgency[level]);
                    plain.push((PromptId(n), level, name));
                }
                2 if !plain.is_empty() && below(4) == 0 => {
                    let (id, ..) = plain.remove(below(plain.len()));
                    queue.remove(id);
                }
                _ => {
                    let Some(id) = queue.pop() else {
                        assert!(plain.is_empty(), "{n}: {plain:?} are lost");
                        continue;
                    };
                    let place = plain
                        .iter()
                        .position(|(other, ..)| *other == id)
                        .expect("nobody comes twice");
                    let (_, level, name) = plain[place];
                    assert!(
                        plain.iter().all(|(_, l, _)| *l >= level),
                        "{n}: a more urgent one waits"
                    );
                    let own_first =
                        plain.iter().position(|(_, l, who)| (*l, *who) == (level, name));
                    assert_eq!(own_first, Some(place), "{n}: its own earlier one waits");
                    let others = plain.iter().any(|(_, l, who)| *l == level && *who != name);
                    assert!(
                        !others || last[level] != Some(name),
                        "{n}: two turns in a row while others wait"
                    );
                    last[level] = Some(name);
                    plain.remove(place);
                    for (other, turns) in passed_over[level].iter_mut().enumerate() {
                        let waits = plain.iter().any(|(_, l, who)| (*l, *who) == (level, other));
                        *turns = if waits && other != name { *turns + 1 } else { 0 };
                        // All others once, and once more whoever was next when it came.
                        assert!(*turns <= 4, "{n}: one waits for ever");
                    }
                }
            }
            assert_eq!(queue.len(), plain.len());
        }
    }

    /// A queue that is one list, and finds out whose turn it is by looking at all of it.
    #[derive(Clone, Default)]
    struct Naive {
        returned: Vec<u64>,
        /// In the order of coming: number, level, identity.
        waiting: Vec<(u64, usize, usize)>,
        /// For each level: the identities in the order in which they get their turns, and who had the last one.
        turns: [Vec<usize>; 3],
        last: [Option<usize>; 3],
    }

    impl Naive {
        fn push(&mut self, n: u64, level: usize, who: usize) {
            self.waiting.push((n, level, who));
            if !self.turns[level].contains(&who) {
                self.turns[level].push(who);
            }
        }

        fn remove(&mut self, n: u64) {
            self.returned.retain(|other| *other != n);
            self.waiting.retain(|(other, ..)| *other != n);
            self.forget_the_gone();
        }

        fn forget_the_gone(&mut self) {
            for (level, turns) in self.turns.iter_mut().enumerate() {
                turns.retain(|who| self.waiting.iter().any(|w| (w.1, w.2) == (level, *who)));
            }
        }

        fn pop(&mut self) -> Option<u64> {
            if !self.returned.is_empty() {
                return Some(self.returned.remove(0));
            }
            let level = self.waiting.iter().map(|(_, level, _)| *level).min()?;
            let turns = &self.turns[level];
            let who =
                *turns.iter().find(|who| Some(**who) != self.last[level]).unwrap_or(&turns[0]);
            let at = self.waiting.iter().position(|w| (w.1, w.2) == (level, who)).unwrap();
            let (n, ..) = self.waiting.remove(at);
            self.turns[level].retain(|other| *other != who);
            if self.waiting.iter().any(|w| (w.1, w.2) == (level, who)) {
                self.turns[level].push(who);
            }
            self.last[level] = Some(who);
            Some(n)
        }
    }

    /// Every order, and every place that a newcomer is told, is what the naive queue finds by playing it through.
    #[test]
    fn places_are_what_a_naive_queue_finds() {
        let names = ["a", "b", "c", "d"];
        let urgency = [Priority::High, Priority::Normal, Priority::Low];
        let mut random: u64 = 2026;
        let mut below = |sides: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % sides
        };
        let (mut queue, mut naive) = (Queue::default(), Naive::default());
        for n in 0..6_000_u64 {
            match below(9) {
                0..=3 if queue.len() < 24 => {
                    let (level, name) = (below(3), below(4));
                    queue.push(entry(n), &who(names[name]), urgency[level]);
                    naive.push(n, level, name);
                }
                4 if n > 0 => {
                    let gone =
                        n - 1 - u64::try_from(below(usize::try_from(n.min(30)).unwrap())).unwrap();
                    queue.remove(PromptId(gone));
                    naive.remove(gone);
                }
                5 if below(4) == 0 => {
                    queue.push_front(entry(n));
                    naive.returned.insert(0, n);
                }
                _ => assert_eq!(queue.pop().map(|id| id.0), naive.pop(), "{n}"),
            }
            assert_eq!(queue.next().map(|id| id.0), naive.clone().pop(), "{n}: the next");
            let mut played = naive.clone();
            let all: Vec<u64> = std::iter::from_fn(|| played.pop()).collect();
            assert_eq!(numbers(&queue.order()), all, "{n}: the order");
            let (level, name) = (below(3), below(4));
            let mut played = naive.clone();
            played.push(u64::MAX, level, name);
            let ahead: Vec<u64> =
                std::iter::from_fn(|| played.pop()).take_while(|next| *next != u64::MAX).collect();
            let told = queue.ahead_of(&who(names[name]), urgency[level]);
            assert_eq!(numbers(&told), ahead, "{n}: the place of a newcomer");
        }
    }
}
