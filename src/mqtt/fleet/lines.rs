//! The connections of a fleet besides the door's own: the one that holds the shared subscription, and the one that takes over
//! what the broker has for a board that is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info};

use super::{EVENTS, Fleet};
use crate::mqtt::client::{Client, Options, Purpose, SESSION_EXPIRY_SECONDS};
use crate::mqtt::door::{Door, chance};
use crate::mqtt::link::{self, Event};
use crate::mqtt::message::Delivery;
use crate::mqtt::packet::Version;
use crate::wire::Broker;

/// Connections of the door's own line are counted from 1; these have numbers that it never reaches.
const FIRST_OF_SIDE: u64 = 1 << 40;
/// A session that was taken over has nothing more when nothing came for this long.
const QUIET: Duration = Duration::from_secs(2);
/// A session is not held longer than this.
const HELD: Duration = Duration::from_secs(60);
/// How long the broker keeps a session that was taken over and given back: what is left in it is fetched again within this
/// time, and the board itself may be back. It goes to nobody else.
pub(super) const KEPT_AFTER: Duration = Duration::from_mins(1);
/// How long the goodbye may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum Line {
    /// The one of the shared subscription.
    Shared,
    /// The one to the session of a board that is gone, by its number.
    Estate(u64),
}

/// The connection of the shared subscription, whether it is up or not.
#[derive(Debug)]
pub(super) struct Side {
    task: JoinHandle<()>,
    up: Option<(u64, Client)>,
    /// What the broker was asked for last on this connection.
    joined: Option<bool>,
    /// Whether what others hand on comes here.
    hears: bool,
    /// Whether it is MQTT 5, in which others can be told that what they handed on is safe here.
    confirms: bool,
}

impl Side {
    pub(super) fn hears(&self) -> bool {
        self.hears
    }

    pub(super) fn confirms(&self) -> bool {
        self.confirms
    }
}

/// The session of a board that is gone.
#[derive(Debug)]
pub(super) struct Estate {
    pub(super) node: String,
    /// How often it was tried before.
    pub(super) tries: u32,
    number: u64,
    task: Option<JoinHandle<()>>,
    up: Option<(u64, Client)>,
    /// Messages of it that are not acknowledged yet.
    owed: BTreeSet<u16>,
    last: Instant,
    until: Instant,
    /// The connection is gone, or there was nothing.
    over: bool,
    /// The broker had nothing.
    empty: bool,
}

impl Estate {
    pub(super) fn due(&self) -> Instant {
        (self.last + QUIET).min(self.until)
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.over
            || now >= self.until
            || (self.up.is_some() && self.owed.is_empty() && now >= self.last + QUIET)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Estate {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

impl Fleet {
    /// Begins to connect for the shared subscription.
    pub(super) fn join(&mut self, node: &str) {
        let options = self.line(node, FIRST_OF_SIDE);
        let task = self.connect(Line::Shared, options);
        self.side = Some(Side { task, up: None, joined: None, hears: false, confirms: false });
    }

    /// Takes over what the broker has for a board.
    pub(super) fn inherit(&mut self, node: &str, tries: u32, now: Instant) {
        self.estates += 1;
        let number = self.estates;
        let options = Options {
            session_seconds: u32::try_from(KEPT_AFTER.as_secs()).unwrap_or(SESSION_EXPIRY_SECONDS),
            ..self.line(node, FIRST_OF_SIDE * (number + 1))
        };
        let task = self.connect(Line::Estate(number), options);
        self.estate = Some(Estate {
            node: node.to_owned(),
            tries,
            number,
            task: Some(task),
            up: None,
            owed: BTreeSet::new(),
            last: now,
            until: now + HELD,
            over: false,
            empty: false,
        });
    }

    fn line(&self, node: &str, first_epoch: u64) -> Options {
        // How this connection stands is told in the log; `promptd status` tells of the door's own.
        let (state, _) = watch::channel(Broker::default());
        Options {
            // The other boards have to know it, so it does not follow `mqtt.client_id`.
            client_id: format!("{}-{node}-any", self.base_topic.replace('/', "-")),
            will_topic: None,
            session_seconds: SESSION_EXPIRY_SECONDS,
            first_epoch,
            state,
            ..self.options.clone()
        }
    }

    fn connect(&self, line: Line, options: Options) -> JoinHandle<()> {
        let (sender, mut events) = mpsc::channel(EVENTS);
        let tell = self.events.0.clone();
        tokio::spawn(async move {
            let forward = async {
                while let Some(event) = events.recv().await {
                    if tell.send((line, event)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(link::run(options, sender, chance), forward);
        })
    }

    /// Whether the board belongs to the shared subscription.
    pub(super) fn settle(&mut self, filter: &str, wanted: bool) {
        let Some(Side { up: Some((_, client)), joined, .. }) = &mut self.side else { return };
        if *joined == Some(wanted) {
            return;
        }
        let asked = if wanted {
            client.subscribe(&[filter.to_owned()], Purpose::Fleet)
        } else {
            client.unsubscribe(filter.to_owned())
        };
        if asked.is_ok() {
            *joined = Some(wanted);
        }
    }

    /// Gives the session back: its board may come again. Returns whether nothing was left in it.
    pub(super) fn close_estate(&mut self) -> bool {
        let Some(mut estate) = self.estate.take() else { return true };
        let node = &estate.node;
        if let Some((_, client)) = estate.up.take() {
            info!(node, left = estate.owed.len(), "what the broker had for it is taken over");
            // Where it has no room for it, the end of the task is the goodbye.
            let _ = client.disconnect();
            estate.empty |= estate.owed.is_empty();
        }
        // It ends by itself after the goodbye, unless the broker does not read it.
        if let Some(mut task) = estate.task.take() {
            tokio::spawn(async move {
                if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
                    task.abort();
                }
            });
        }
        estate.empty
    }

    /// The connection with this number.
    pub(in crate::mqtt) fn client(&self, epoch: u64) -> Option<&Client> {
        let side = self.side.as_ref().and_then(|side| side.up.as_ref());
        let estate = self.estate.as_ref().and_then(|estate| estate.up.as_ref());
        side.into_iter().chain(estate).find(|(known, _)| *known == epoch).map(|(_, client)| client)
    }

    /// A message of the connection with this number was acknowledged.
    pub(in crate::mqtt) fn acknowledged(&mut self, ack: Delivery) {
        if let Some(estate) = &mut self.estate
            && estate.up.as_ref().is_some_and(|(epoch, _)| *epoch == ack.epoch)
        {
            estate.owed.remove(&ack.packet);
        }
    }

    /// Leaves: what comes from now on stays in the session.
    pub(in crate::mqtt) fn leave(&mut self) {
        if let Some(Side { up: Some((_, client)), .. }) = &self.side {
            // Where it has no room for it, the end of the process is the goodbye.
            let _ = client.disconnect();
        }
    }

    fn up(&mut self, line: Line) -> Option<&mut Option<(u64, Client)>> {
        match line {
            Line::Shared => self.side.as_mut().map(|side| &mut side.up),
            Line::Estate(number) => {
                let estate = self.estate.as_mut().filter(|estate| estate.number == number);
                estate.map(|estate| &mut estate.up)
            }
        }
    }
}

impl Door {
    /// Asks for the shared subscription and for what is handed on again, over a new connection.
    pub(in crate::mqtt) fn share_anew(&self) {
        let side = self.fleet.as_ref().and_then(|fleet| fleet.side.as_ref());
        if let Some((_, client)) = side.and_then(|side| side.up.as_ref()) {
            client.abandon();
        }
    }

    /// Something happened on one of the fleet's connections.
    pub(in crate::mqtt) fn fleet_event(&mut self, line: Line, event: Event, now: Instant) {
        let shared = self.fleet.as_ref().map(|fleet| self.topics.shared(&fleet.config.group));
        let topics = self.topics.clone();
        let hops = |node: &str| topics.hops(node);
        let (Some(fleet), Some(shared)) = (&mut self.fleet, shared) else { return };
        match event {
            Event::Up { epoch, client, welcome } => {
                if let Line::Estate(_) = line
                    && let Some(estate) = &mut fleet.estate
                {
                    estate.last = now;
                    (estate.over, estate.empty) = (!welcome.session, !welcome.session);
                    // In MQTT 5 whoever hands something on to this board learns then that nobody is there. 3.1.1 does not
                    // tell, so there it has to lie in the session until the board is back.
                    let hops = Some(hops(&estate.node)).filter(|_| welcome.version == Version::V5);
                    let ended = [Some(shared), hops].into_iter().flatten();
                    if ended.map(|filter| client.unsubscribe(filter)).any(|ended| ended.is_err()) {
                        error!("a new connection took no end of a subscription; this is a bug");
                    }
                } else if let Some(side) = &mut fleet.side {
                    (side.joined, side.hears) = (None, false);
                    side.confirms = welcome.version == Version::V5 && welcome.acknowledges;
                    if client.subscribe(&[hops(&self.node)], Purpose::Hops).is_err() {
                        error!("a new connection took no subscription; this is a bug");
                    }
                }
                if let Some(up) = fleet.up(line) {
                    *up = Some((epoch, client));
                }
            }
            Event::Message(message) => {
                if let (Line::Estate(_), Some(estate)) = (line, &mut fleet.estate) {
                    estate.last = now;
                    estate.owed.extend(message.delivery.map(|delivery| delivery.packet));
                }
                if topics.is_hop(&message.topic) {
                    fleet.owe(&message);
                }
                self.message(&message, now);
            }
            Event::Useless { packet } => {
                let epoch = fleet.up(line).and_then(|up| up.as_ref()).map(|(epoch, _)| *epoch);
                self.acknowledge(epoch.map(|epoch| Delivery { epoch, packet }));
            }
            Event::Subscribed(answer) => {
                match (answer.purpose, answer.result()) {
                    (Purpose::Hops, Ok(())) => {
                        fleet.side.iter_mut().for_each(|side| side.hears = true);
                        fleet.be_patient(now);
                    }
                    (_, Ok(())) => info!(topic = shared, "prompts are shared with the fleet"),
                    // Told with all else that is refused.
                    (_, Err(_)) => {}
                }
                self.heard_of(&answer, now);
            }
            Event::Sent { .. } | Event::Acknowledged { .. } => {}
            Event::Down => {
                if let Some(up) = fleet.up(line)
                    && let Some((epoch, _)) = up.take()
                {
                    self.forget_acks(epoch);
                }
                if let (Line::Shared, Some(side)) =
                    (line, self.fleet.as_mut().and_then(|fleet| fleet.side.as_mut()))
                {
                    side.hears = false;
                }
                if let (Line::Estate(_), Some(estate)) =
                    (line, self.fleet.as_mut().and_then(|fleet| fleet.estate.as_mut()))
                {
                    estate.over = true;
                }
            }
        }
    }
}
