//! The order in which waiting prompts get their turn. Pure: no clock, no channel, no limit of its own
//! ([`super::core`] refuses before the queue is too long).

use std::collections::VecDeque;

use crate::request::{Identity, Priority, PromptId};

/// Waiting prompts. Higher priorities go first; inside a priority the identities take turns, one prompt each, and an
/// identity's own prompts go in the order in which they came.
///
/// Who had the last turn is passed over while somebody else of that priority waits. So an identity that floods the
/// queue delays another's prompt by no more than the prompt of its own that is running already.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Prompts that ran when their engine died: they had their turn, and go before everybody.
    returned: VecDeque<PromptId>,
    /// One level for each priority, the most urgent first.
    levels: [Level; 3],
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
    prompts: VecDeque<PromptId>,
}

impl Queue {
    /// Prompts that wait.
    pub(super) fn len(&self) -> usize {
        self.returned.len() + self.levels.iter().map(Level::len).sum::<usize>()
    }

    /// Puts a prompt behind the others of its identity.
    pub(super) fn push(&mut self, id: PromptId, identity: &Identity, priority: Priority) {
        self.level_mut(priority).push(id, identity);
    }

    /// Puts a prompt back before everybody: its engine died, and its asker has waited for its turn already.
    pub(super) fn push_front(&mut self, id: PromptId) {
        self.returned.push_front(id);
    }

    /// Takes out the prompt whose turn it is.
    pub(super) fn pop(&mut self) -> Option<PromptId> {
        self.returned.pop_front().or_else(|| self.levels.iter_mut().find_map(Level::pop))
    }

    /// Takes out a prompt that shall not get its turn. Unknown numbers are ignored.
    pub(super) fn remove(&mut self, id: PromptId) {
        self.returned.retain(|other| *other != id);
        for level in &mut self.levels {
            level.remove(id);
        }
    }

    /// How many of those waiting would get their turn before a prompt that this identity handed in now.
    pub(super) fn ahead_of(&self, identity: &Identity, priority: Priority) -> usize {
        let own = level_of(priority);
        let urgent: usize = self.levels.iter().take(own).map(Level::len).sum();
        self.returned.len()
            + urgent
            + self.levels.get(own).map_or(0, |level| level.ahead_of(identity))
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

    fn push(&mut self, id: PromptId, identity: &Identity) {
        match self.lines.iter_mut().find(|line| line.identity == *identity) {
            Some(line) => line.prompts.push_back(id),
            None => self
                .lines
                .push_back(Line { identity: identity.clone(), prompts: VecDeque::from([id]) }),
        }
    }

    fn pop(&mut self) -> Option<PromptId> {
        let turn = self
            .lines
            .iter()
            .position(|line| Some(&line.identity) != self.last.as_ref())
            .unwrap_or(0);
        let mut line = self.lines.remove(turn)?;
        let id = line.prompts.pop_front();
        self.last = Some(line.identity.clone());
        if !line.prompts.is_empty() {
            self.lines.push_back(line);
        }
        id
    }

    fn remove(&mut self, id: PromptId) {
        for line in &mut self.lines {
            line.prompts.retain(|other| *other != id);
        }
        self.lines.retain(|line| !line.prompts.is_empty());
    }

    fn ahead_of(&self, identity: &Identity) -> usize {
        let own = self
            .lines
            .iter()
            .find(|line| line.identity == *identity)
            .map_or(0, |line| line.prompts.len());
        let others = self.lines.iter().filter(|line| line.identity != *identity);
        own + others.map(|line| line.prompts.len().min(own + 1)).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            queue.push(PromptId(u64::try_from(n).unwrap()), &who(name), priority);
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
        (0..3).for_each(|n| queue.push(PromptId(n), &who("flood"), Priority::Normal));
        assert_eq!(queue.pop(), Some(PromptId(0)));
        queue.push(PromptId(9), &who("other"), Priority::Normal);
        assert_eq!(queue.ahead_of(&who("third"), Priority::Normal), 2);
        assert_eq!(queue.ahead_of(&who("third"), Priority::High), 0);
        assert_eq!(queue.ahead_of(&who("flood"), Priority::Low), 3);
        let rest: Vec<u64> = std::iter::from_fn(|| queue.pop()).map(|id| id.0).collect();
        assert_eq!(rest, [9, 1, 2]);
    }

    #[test]
    fn those_of_a_dead_engine_go_first_in_their_order() {
        let mut queue = Queue::default();
        queue.push(PromptId(5), &who("a"), Priority::High);
        queue.push_front(PromptId(2));
        queue.push_front(PromptId(1));
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
                    queue.push(PromptId(n), &who(names[name]), urgency[level]);
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
}
