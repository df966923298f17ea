//! What a board knows of the other boards of its fleet: whether they are there, and how much they can take. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

/// The most boards that are kept in mind. Each tells its status twice a second at most; beyond some hundred that is more
/// traffic than the prompts.
const MAX_PEERS: usize = 256;
/// A status that came sooner than this after a prompt was handed on does not know of it yet.
const KNOWS_AFTER: Duration = Duration::from_millis(150);
/// A prompt that was handed on is counted for this long at most; by then the board has told its status again, or it has
/// answered the prompt already.
const COUNTED: Duration = Duration::from_secs(2);

/// How much a board can take, as it stands in its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
pub(in crate::mqtt) struct Load {
    /// Slots that are free.
    pub(in crate::mqtt) idle: usize,
    /// Prompts that it takes before it is at its high-water mark.
    pub(in crate::mqtt) room: usize,
    /// Prompts that it takes before it refuses.
    pub(in crate::mqtt) places: usize,
    /// Prompts that wait there and may be handed on.
    #[serde(default)]
    pub(in crate::mqtt) waiting: usize,
}

#[derive(Deserialize)]
struct Told {
    state: String,
    fleet: Option<ToldFleet>,
}

#[derive(Deserialize)]
struct ToldFleet {
    group: String,
    #[serde(default)]
    confirms: bool,
    #[serde(flatten)]
    load: Load,
}

#[derive(Debug, Default)]
struct Peer {
    /// Whether it says when what was handed to it is safe there.
    confirms: bool,
    /// What it told of itself; `None`: it is in no fleet, or in another.
    load: Option<Load>,
    /// Whether it answers prompts at present.
    ready: bool,
    online: bool,
    /// When prompts were handed to it that it may not know of.
    handed: Vec<Instant>,
}

impl Peer {
    fn left(&self, of: usize) -> usize {
        of.saturating_sub(self.handed.len())
    }

    fn usable(&self) -> Option<Load> {
        self.load.filter(|_| self.online && self.ready)
    }
}

/// What is asked of the board that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum Wanted {
    /// A slot is free.
    Idle,
    /// It is below its high-water mark.
    Room,
    /// It would not refuse.
    Place,
}

/// The other boards.
#[derive(Debug)]
pub(in crate::mqtt) struct Peers {
    group: String,
    known: BTreeMap<String, Peer>,
}

/// What a word of another board means for this one.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum News {
    /// Nothing that has to be acted on.
    None,
    /// It may take something.
    Changed,
    /// It is gone, and it was one of this fleet.
    Gone,
}

impl Peers {
    /// Nobody is known of this group yet.
    pub(in crate::mqtt) fn new(group: &str) -> Peers {
        Peers { group: group.to_owned(), known: BTreeMap::new() }
    }

    /// Another board said how it stands, or whether it is there.
    pub(in crate::mqtt) fn note(
        &mut self,
        node: &str,
        what: &str,
        payload: &[u8],
        now: Instant,
    ) -> News {
        if !self.known.contains_key(node) && self.known.len() >= MAX_PEERS {
            return News::None;
        }
        let peer = self.known.entry(node.to_owned()).or_default();
        if what == "availability" {
            peer.online = payload == b"online";
            let gone = !peer.online && peer.load.is_some();
            return if gone { News::Gone } else { News::Changed };
        }
        // A status that cannot be read is that of a board that cannot be relied on.
        let told = serde_json::from_slice::<Told>(payload).ok();
        peer.ready = told
            .as_ref()
            .is_some_and(|told| matches!(told.state.as_str(), "ready" | "degraded" | "unloaded"));
        let fleet = told.and_then(|told| told.fleet).filter(|fleet| fleet.group == self.group);
        peer.confirms = fleet.as_ref().is_some_and(|fleet| fleet.confirms);
        let late = peer.load.is_none() && fleet.is_some() && !peer.online;
        let before = std::mem::replace(&mut peer.load, fleet.map(|fleet| fleet.load));
        // Whatever came there since: it may be what was handed there.
        if let (Some(before), Some(load)) = (before, peer.load) {
            let came = before.room.saturating_sub(load.room).min(peer.handed.len());
            peer.handed.drain(..came);
        }
        peer.handed.retain(|at| now < *at + KNOWS_AFTER);
        // Of a board that was gone before this one came, the status is known after its absence or before it.
        if late { News::Gone } else { News::Changed }
    }

    /// Whether this board says when what was handed to it is safe there.
    pub(in crate::mqtt) fn confirms(&self, node: &str) -> bool {
        self.known.get(node).is_some_and(|peer| peer.confirms)
    }

    /// A prompt is handed to this board.
    pub(in crate::mqtt) fn handed(&mut self, node: &str, now: Instant) {
        if let Some(peer) = self.known.get_mut(node) {
            peer.handed.push(now);
        }
    }

    /// A prompt that was handed to this board is not with it.
    pub(in crate::mqtt) fn deaf(&mut self, node: &str) {
        if let Some(peer) = self.known.get_mut(node) {
            peer.ready = false;
            peer.handed.clear();
        }
    }

    /// The board that has most of what is wanted.
    pub(in crate::mqtt) fn best(&mut self, wanted: Wanted, now: Instant) -> Option<String> {
        let mut best: Option<(usize, &String)> = None;
        for (node, peer) in &mut self.known {
            peer.handed.retain(|at| now < *at + COUNTED);
            let Some(load) = peer.usable() else { continue };
            let left = peer.left(match wanted {
                Wanted::Idle => load.idle,
                Wanted::Room => load.room,
                Wanted::Place => load.places,
            });
            if left > best.map_or(0, |(most, _)| most) {
                best = Some((left, node));
            }
        }
        best.map(|(_, node)| node.clone())
    }

    /// Whether another board has more prompts that wait, or as many and a name before this one: of several that could give,
    /// one gives, so that a free slot does not get two.
    pub(in crate::mqtt) fn any_fuller(&self, waiting: usize, own: &str) -> bool {
        let fuller = |(node, peer): (&String, &Peer)| {
            peer.usable().is_some_and(|load| {
                load.waiting > waiting || (load.waiting == waiting && node.as_str() < own)
            })
        };
        self.known.iter().any(fuller)
    }

    /// Whether any other board of the fleet answers prompts.
    pub(in crate::mqtt) fn any(&self) -> bool {
        self.known.values().any(|peer| peer.usable().is_some())
    }

    /// How many do.
    pub(in crate::mqtt) fn count(&self) -> usize {
        self.known.values().filter(|peer| peer.usable().is_some()).count()
    }

    /// Whether this board is there.
    pub(in crate::mqtt) fn is_online(&self, node: &str) -> bool {
        self.known.get(node).is_some_and(|peer| peer.online)
    }

    /// Whether no other board of the fleet that is there has a name before this one: of several that could do something once,
    /// the first does.
    pub(in crate::mqtt) fn is_first(&self, own: &str) -> bool {
        !self.known.iter().any(|(node, peer)| node.as_str() < own && peer.usable().is_some())
    }

    /// The connection is gone: what was known may be old.
    pub(in crate::mqtt) fn forget(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(idle: usize, room: usize) -> Vec<u8> {
        format!(r#"{{"state":"ready","fleet":{{"group":"g","idle":{idle},"room":{room},"places":9,"handed":0}}}}"#)
            .into_bytes()
    }

    #[test]
    fn the_board_with_most_room_is_taken_and_what_was_handed_counts() {
        let (mut peers, start) = (Peers::new("g"), Instant::now());
        for (node, idle) in [("a", 1), ("b", 2)] {
            assert_eq!(peers.note(node, "availability", b"online", start), News::Changed);
            peers.note(node, "status", &status(idle, idle), start);
        }
        let mut took = Vec::new();
        while let Some(node) = peers.best(Wanted::Idle, start) {
            peers.handed(&node, start);
            took.push(node);
        }
        took.sort();
        assert_eq!(took, ["a", "b", "b"]);
        assert_eq!(peers.best(Wanted::Place, start).as_deref(), Some("a"));
        // A status that cannot know of it changes nothing, a later one does.
        peers.note("b", "status", &status(2, 2), start + KNOWS_AFTER / 2);
        assert_eq!(peers.best(Wanted::Idle, start + KNOWS_AFTER / 2), None);
        peers.note("b", "status", &status(1, 1), start + KNOWS_AFTER);
        assert_eq!(peers.best(Wanted::Idle, start + KNOWS_AFTER).as_deref(), Some("b"));
        // Without a word it is forgotten after a while.
        assert_eq!(peers.best(Wanted::Idle, start + COUNTED).as_deref(), Some("a"));
    }

    #[test]
    fn the_board_with_most_that_waits_gives() {
        let (mut peers, now) = (Peers::new("g"), Instant::now());
        peers.note("b", "availability", b"online", now);
        let text =
            br#"{"state":"ready","fleet":{"group":"g","idle":0,"room":0,"places":9,"waiting":3}}"#;
        peers.note("b", "status", text, now);
        assert!(peers.any_fuller(2, "a") && !peers.any_fuller(3, "a"));
        assert!(peers.any_fuller(3, "c") && !peers.any_fuller(4, "c"));
    }

    #[test]
    fn who_is_away_or_of_another_fleet_is_not_asked() {
        let (mut peers, now) = (Peers::new("g"), Instant::now());
        peers.note("a", "status", &status(1, 1), now);
        assert_eq!(peers.best(Wanted::Idle, now), None, "nobody said that it is there");
        peers.note("a", "availability", b"online", now);
        assert_eq!(peers.best(Wanted::Idle, now).as_deref(), Some("a"));
        assert!(peers.is_first("A") && !peers.is_first("b"));
        assert_eq!(peers.note("a", "availability", b"offline", now), News::Gone);
        assert_eq!(peers.best(Wanted::Place, now), None);
        assert!(peers.is_first("b"));
        peers.note(
            "c",
            "status",
            br#"{"state":"ready","fleet":{"group":"other","idle":1,"room":1,"places":1}}"#,
            now,
        );
        assert_eq!(peers.note("c", "availability", b"offline", now), News::Changed);
        for text in [
            &b"{"[..],
            br#"{"state":"draining","fleet":{"group":"g","idle":1,"room":1,"places":1}}"#,
        ] {
            peers.note("d", "availability", b"online", now);
            peers.note("d", "status", text, now);
            assert_eq!(peers.best(Wanted::Place, now), None);
        }
    }

    #[test]
    fn a_board_that_was_gone_before_is_gone_in_either_order() {
        let (mut peers, now) = (Peers::new("g"), Instant::now());
        assert_eq!(peers.note("a", "availability", b"offline", now), News::Changed);
        assert_eq!(peers.note("a", "status", &status(1, 1), now), News::Gone);
    }
}
