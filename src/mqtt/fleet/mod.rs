//! A board among others that share the prompts of `any/ask`: who takes which prompt, and what becomes of the prompts of a
//! board that is gone.
//!
//! | file | what it is |
//! |---|---|
//! | `peers` | what the others tell of themselves |
//! | `hand` | handing a prompt on |
//! | `gone` | boards that are gone, and when what they had is taken over |
//! | `lines` | the connections besides the door's own: that of the shared subscription, and that of a board that is gone |
//!
//! A broker deals the prompts of a shared subscription out in turn, whether a board is busy or not. So a board that has no
//! free slot hands a prompt on to one that has, once, and one that waits here goes as soon as another board has a free
//! slot. No board ever leaves the subscription because it is busy: where all were, the broker would drop the prompts.
//!
//! The shared subscription has a connection, and with it a session at the broker, of its own, and what others hand on comes to
//! it as well. Brokers go on dealing to the session of a board that is gone, and mosquitto drops what a session has that ends;
//! so another board takes this session over, ends its subscriptions, and answers or hands on what is in it.

mod gone;
mod hand;
mod lines;
mod peers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::info;

use self::gone::Gone;
use self::hand::Handing;
pub(super) use self::hand::{Passable, Via};
pub(super) use self::lines::Line;
use self::lines::{Estate, Side};
use self::peers::{Load, News, Peers, Wanted};
use super::client::{Options, Purpose};
use super::door::{Door, chance};
use super::ledger::MAX_OPEN;
use super::link::Event;
use super::message::{Delivery, Message};
use super::seldom::Seldom;
use crate::scheduler::State;

/// Events of the connections besides the door's own.
const EVENTS: usize = 16;
/// A status that says that a slot became free, or that none is, goes out this much later than the one before it. Others
/// wait for it.
pub(super) const LOAD_EVERY: Duration = Duration::from_millis(20);
/// A prompt waits here for this long at least before it is handed on. By then the boards have told each other what came to
/// them together with it: one that was free is busy, and does not get what each of the others has too much.
const SETTLES: Duration = Duration::from_millis(60);
/// How soon it is looked again for a board with a free slot, while prompts wait and none says that it has one.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How a board takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// The name of the shared subscription. Boards of the same base topic and group share their prompts.
    pub group: String,
    /// How many prompts may wait here for a slot before a board that is less busy is asked to take them.
    pub high_water: usize,
}

/// What happened on which connection.
type Happened = (Line, Event);

/// The door's part in a fleet.
pub(super) struct Fleet {
    config: FleetConfig,
    base_topic: String,
    peers: Peers,
    /// Answers of the broker that say that what others tell is heard.
    heard: u8,
    /// What was told last of this board.
    told: Load,
    told_peers: usize,
    /// Prompts on their way to other boards, by the ledger's number.
    handing: BTreeMap<u64, Handing>,
    /// What was handed to this board and is not acknowledged: who is told when it is safe here, and by which word.
    words: BTreeMap<Delivery, (String, String)>,
    /// Prompts that other boards have now.
    handed: u64,
    options: Options,
    events: (mpsc::Sender<Happened>, mpsc::Receiver<Happened>),
    /// The connection of the shared subscription.
    side: Option<Side>,
    /// The session of a board that is gone.
    estate: Option<Estate>,
    estates: u64,
    /// When what waits here is looked at again.
    relieve_at: Option<Instant>,
    gone: Gone,
    said_full: Seldom,
}

impl Fleet {
    /// Begins to connect, as this node. `options` are those of the door's own connection.
    pub(super) fn new(
        config: FleetConfig,
        base_topic: &str,
        node: &str,
        options: Options,
    ) -> Fleet {
        let mut fleet = Fleet {
            peers: Peers::new(&config.group),
            config,
            base_topic: base_topic.to_owned(),
            heard: 0,
            told: Load::default(),
            told_peers: 0,
            handing: BTreeMap::new(),
            words: BTreeMap::new(),
            handed: 0,
            options,
            events: mpsc::channel(EVENTS),
            side: None,
            estate: None,
            estates: 0,
            relieve_at: None,
            gone: Gone::default(),
            said_full: Seldom::default(),
        };
        fleet.join(node);
        fleet
    }

    /// What happens next on one of its connections.
    pub(super) async fn next(fleet: &mut Option<Fleet>) -> Option<Happened> {
        match fleet {
            Some(fleet) => fleet.events.1.recv().await,
            None => std::future::pending().await,
        }
    }

    fn hears(&self) -> bool {
        self.heard >= 2 && self.side.as_ref().is_some_and(Side::hears)
    }

    /// What stands in the status.
    pub(super) fn object(&self) -> serde_json::Value {
        let Load { idle, room, places, waiting } = self.told;
        serde_json::json!({
            "group": self.config.group, "idle": idle, "room": room, "places": places, "waiting": waiting,
            "peers": self.told_peers, "handed": self.handed, "confirms": self.side.as_ref().is_some_and(Side::confirms),
        })
    }

    /// When something has to be done that nothing else brings about.
    pub(super) fn wake(&self) -> Option<Instant> {
        let estate = self.estate.as_ref().map(Estate::due);
        let gone = self.gone.next().filter(|_| self.estate.is_none());
        // While nothing is heard, nothing is overdue.
        let overdue = self.overdue().filter(|_| self.hears());
        [estate, gone, overdue, self.relieve_at].into_iter().flatten().min()
    }
}

impl Door {
    /// The connection is up and prompts come: listens to the other boards.
    pub(super) fn listen_to_fleet(&mut self) {
        let (Some(fleet), Some(connection)) = (&mut self.fleet, &self.connection) else { return };
        fleet.heard = 0;
        let hears = connection.client.subscribe(&[self.topics.cancel_any()], Purpose::Fleet);
        let told = connection.client.follow(&self.topics.peers(), Purpose::Fleet);
        if hears.is_err() || told.is_err() {
            tracing::error!("a new connection took no subscription; this is a bug");
        }
    }

    /// The broker answered one of these subscriptions.
    pub(super) fn hears_fleet(&mut self, hears: bool) {
        if let Some(fleet) = self.fleet.as_mut().filter(|_| hears) {
            fleet.heard += 1;
        }
    }

    /// The door's own connection is gone.
    pub(super) fn fleet_down(&mut self) {
        if let Some(fleet) = &mut self.fleet {
            fleet.heard = 0;
            fleet.peers.forget();
            // Who is gone is told anew; until then, one of them may be back.
            fleet.gone.forget();
        }
    }

    /// Another board says something of itself. Returns whether the message was that.
    pub(super) fn peer(&mut self, message: &Message, now: Instant) -> bool {
        let Some(fleet) = &mut self.fleet else { return false };
        let topics = self.topics.clone();
        let Some((node, what)) = topics.peer(&message.topic) else { return false };
        match fleet.peers.note(node, what, &message.payload, now) {
            News::None => {}
            News::Changed => self.relieve(now),
            News::Gone => fleet.gone.note(node, now),
        }
        true
    }

    /// How much this board can take.
    pub(super) fn load(&self) -> Load {
        let Some(fleet) = &self.fleet else { return Load::default() };
        let status = self.status.borrow();
        let takes = matches!(status.state, State::Ready | State::Unloaded);
        if !takes || self.leaving || !fleet.hears() {
            return Load::default();
        }
        let slots = status.model.as_ref().map_or(1, |model| usize::from(model.slots).max(1));
        // Those that have just come are not in the status yet.
        let here = self.prompts.values().filter(|prompt| prompt.handing.is_none()).count();
        let busy = here.max(status.running + status.waiting);
        let queue = status.queue_limit.saturating_sub(status.waiting);
        Load {
            idle: slots.saturating_sub(busy),
            room: (slots + fleet.config.high_water).saturating_sub(busy),
            places: MAX_OPEN.saturating_sub(self.ledger.working()).min(queue),
            waiting: self.passable().count(),
        }
    }

    /// Whether the load is other than what was told.
    pub(super) fn load_changed(&self) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| {
            let (told, load) = (fleet.told, self.load());
            // How many places there are is told with the next status; whether a slot is free is news.
            let news = |load: &Load| (load.idle, load.room, load.places == 0, load.waiting);
            news(&told) != news(&load)
        })
    }

    /// The status is being told: what it says of the fleet.
    pub(super) fn fleet_object(&mut self) -> Option<serde_json::Value> {
        let load = self.load();
        let fleet = self.fleet.as_mut()?;
        (fleet.told, fleet.told_peers) = (load, fleet.peers.count());
        Some(fleet.object())
    }

    /// The board that a prompt of the shared subscription goes to because this one cannot take it; `None`: it can, or no
    /// other can either.
    pub(super) fn elsewhere(&mut self, now: Instant) -> Option<String> {
        let load = self.load();
        let fleet = self.fleet.as_mut()?;
        if load.places > 0 {
            fleet.relieve_at.get_or_insert(now + SETTLES);
            return None;
        }
        let room = fleet.peers.best(Wanted::Room, now);
        room.or_else(|| fleet.peers.best(Wanted::Place, now))
    }

    /// The prompts that wait here and may go elsewhere, and when they came.
    fn passable(&self) -> impl Iterator<Item = (u64, Instant)> {
        let free = self.prompts.iter().filter(|(_, prompt)| prompt.handing.is_none());
        free.filter_map(|(number, prompt)| Some((*number, prompt.shared.as_ref()?.came)))
    }

    /// A prompt is on its way to this board.
    pub(super) fn expect(&mut self, node: &str, now: Instant) {
        self.fleet.iter_mut().for_each(|fleet| fleet.peers.handed(node, now));
    }

    /// Hands on what waits here while another board has a free slot.
    pub(super) fn relieve(&mut self, now: Instant) {
        let load = self.load();
        let waiting: Vec<_> = self.passable().collect();
        let Some(fleet) = &mut self.fleet else { return };
        fleet.relieve_at = None;
        // A prompt that came just now and is not begun may be about to.
        let (mut left, gives) = (waiting.len(), load.idle == 0);
        for (number, came) in waiting {
            let Some(fleet) = &mut self.fleet else { return };
            let wanted = if left > fleet.config.high_water { Wanted::Room } else { Wanted::Idle };
            if came + SETTLES > now || !gives || fleet.peers.any_fuller(left, &self.node) {
                // Whether somebody else gave, or one is free again, is seen a little later.
                fleet.relieve_at = Some(now + SETTLES);
                return;
            }
            let Some(node) = fleet.peers.best(wanted, now) else {
                // What is free there may be meant for what is on its way; the status that says otherwise may be here already.
                fleet.relieve_at = Some(now + LOOK_AGAIN);
                return;
            };
            fleet.peers.handed(&node, now);
            left -= 1;
            self.withdraw(number, node);
        }
    }

    /// What is done after everything that happened.
    pub(super) fn fleet_upkeep(&mut self, now: Instant) {
        if self.load_changed() {
            self.status_dirty = true;
        }
        if self.fleet.as_ref().is_some_and(|fleet| fleet.relieve_at.is_some_and(|at| at <= now)) {
            self.relieve(now);
        }
        self.take_back(now);
        let state = self.status.borrow().state.clone();
        let Some(fleet) = &mut self.fleet else { return };
        self.status_dirty |= fleet.told_peers != fleet.peers.count();
        // Who goes, or has no model, leaves the prompts to the others, if there are any.
        let unable = self.leaving || matches!(state, State::Draining | State::ModelFailed(_));
        let wanted = !(unable && fleet.peers.any());
        fleet.settle(&self.topics.shared(&fleet.config.group), wanted);
        if self.leaving || self.connection.is_none() {
            return;
        }
        if let Some(estate) = &fleet.estate
            && estate.is_over(now)
        {
            let (node, tries) = (estate.node.clone(), estate.tries);
            if !fleet.close_estate() {
                fleet.gone.again(node, tries, now, chance());
            }
        }
        while fleet.estate.is_none()
            && let Some((node, tries)) = fleet.gone.due(now)
        {
            if fleet.peers.is_online(&node) {
                continue;
            }
            // Who answers no prompts does not fetch any, unless there is nobody else.
            if wanted && fleet.peers.is_first(&self.node) {
                info!(node, "a board is gone; what the broker has for it is taken over");
                fleet.inherit(&node, tries, now);
            } else {
                fleet.gone.again(node, tries, now, chance());
            }
        }
    }
}
