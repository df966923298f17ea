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
