//! The boards that are gone and whose sessions are still to be taken over, and when that is tried. Pure.

use std::time::{Duration, Instant};

/// A board that is gone for this long has its prompts taken over: shorter than anybody's patience, longer than a quick
/// restart of a connection.
const GONE: Duration = Duration::from_secs(1);
/// A takeover that did not succeed is tried again after this long, then after twice as long, and so on: a broker that was
/// only busy is soon ready, and one that forbids it is not asked every second.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest wait. The broker forgets a session that was taken over and given back after a minute
/// ([`super::lines::KEPT_AFTER`]); what is left in it has to be fetched before.
const AGAIN_AT_MOST: Duration = Duration::from_secs(20);
/// The most boards that are kept in mind, as many as are known.
const MOST: usize = 256;

#[derive(Debug)]
struct One {
    node: String,
    at: Instant,
    tries: u32,
}

/// The boards that are gone.
#[derive(Debug, Default)]
pub(super) struct Gone {
    known: Vec<One>,
}

impl Gone {
    /// A board is gone. The others that are gone are looked at again too: it may have been the one that was to take over
    /// what they had.
    pub(super) fn note(&mut self, node: &str, now: Instant) {
        let at = now + GONE;
        for one in &mut self.known {
            (one.at, one.tries) = (one.at.min(at), 0);
        }
        if !self.known.iter().any(|one| one.node == node) && self.known.len() < MOST {
            self.known.push(One { node: node.to_owned(), at, tries: 0 });
        }
    }

    /// When one of them is to be looked at.
    pub(super) fn next(&self) -> Option<Instant> {
        self.known.iter().map(|one| one.at).min()
    }

    /// Takes one out that is to be looked at now, with the tries so far.
    pub(super) fn due(&mut self, now: Instant) -> Option<(String, u32)> {
        let (index, first) = self.known.iter().enumerate().min_by_key(|(_, one)| one.at)?;
        if first.at > now {
            return None;
        }
        let one = self.known.swap_remove(index);
        Some((one.node, one.tries))
    }

    /// It was looked at and not taken over, or not all of it. `chance` is a number from 0 to 1: several boards do not ask the
    /// broker at once.
    pub(super) fn again(&mut self, node: String, tries: u32, now: Instant, chance: f64) {
        let longest = AGAIN.saturating_mul(1 << tries.min(10)).min(AGAIN_AT_MOST);
        let at = now + longest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
        let tries = tries.saturating_add(1);
        match self.known.iter_mut().find(|one| one.node == node) {
            // It came and went meanwhile.
            Some(one) => one.at = one.at.min(at),
            None => self.known.push(One { node, at, tries }),
        }
    }

    /// Nothing is known any more: who is gone is told anew.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_looked_at_after_a_second_then_ever_more_seldom() {
        let (mut gone, start) = (Gone::default(), Instant::now());
        gone.note("a", start);
        gone.note("a", start);
        assert_eq!((gone.next(), gone.due(start)), (Some(start + GONE), None));
        let mut now = start + GONE;
        let mut waits = Vec::new();
        for _ in 0..9 {
            let (node, tries) = gone.due(now).unwrap();
            assert_eq!((node.as_str(), gone.due(now)), ("a", None));
            gone.again(node, tries, now, 1.0);
            waits.push((gone.next().unwrap() - now).as_secs());
            now = gone.next().unwrap();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 20, 20, 20, 20]);
        let (node, tries) = gone.due(now).unwrap();
        gone.again(node, tries, now, 0.0);
        assert_eq!(gone.next(), Some(now + AGAIN_AT_MOST / 2));
        // Another one goes, which may have been the one to take it over.
        gone.note("b", now);
        assert_eq!(gone.next(), Some(now + GONE));
        assert_eq!(gone.due(now + GONE).unwrap().1, 0);
        assert_eq!(gone.due(now + GONE).unwrap().1, 0);
        assert_eq!(gone.next(), None);
    }

    #[test]
    fn no_more_are_kept_than_boards_are_known() {
        let (mut gone, now) = (Gone::default(), Instant::now());
        for number in 0..1000 {
            gone.note(&number.to_string(), now);
        }
        assert_eq!(gone.known.len(), MOST);
        gone.forget();
        assert_eq!(gone.next(), None);
    }
}
