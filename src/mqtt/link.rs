//! Keeps a connection to the broker for ever: which broker is next, which MQTT is spoken with it, and when.
//!
//! Every connection begins with nothing of the one before: no packet number, no half-read packet, no subscription. What
//! the broker forgot is therefore never assumed, and what it kept is only a convenience.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::backoff::{Backoff, Kind};
use super::client::{Adapt, Client, Options, Subscribed, Trouble, Welcome};
use super::connection::{self, Manner};
use super::message::Message;
use super::packet::Version;

/// Connections in a row that ended with a packet that cannot be read, after which the broker is asked to forget our
/// session: a message it keeps for us is the likely cause, and it would send it for ever.
const UNDECODABLE: u32 = 3;
/// A broker that hangs up this often in a row on the greeting of MQTT 5, without a word, is greeted in 3.1.1 next.
const HANG_UPS: u32 = 2;

/// What the connection tells the door, in the order in which it happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection is up, the `epoch`-th.
    Up { epoch: u64, client: Client, welcome: Welcome },
    /// The broker answered a subscription.
    Subscribed(Subscribed),
    /// A message came.
    Message(Message),
    /// A message came that nobody can use; it only has to be acknowledged.
    Useless { packet: u16 },
    /// The oldest message handed to this connection got this packet number.
    Sent { packet: u16 },
    /// The broker took the message, or says why not. `unheard`: nobody is there who listens to it (3.4.2.1).
    Acknowledged { packet: u16, refused: Option<String>, unheard: bool },
    /// The connection is gone.
    Down,
}

/// How a connection ended.
pub(super) enum End {
    Trouble(Trouble),
    /// We said goodbye, or nobody listens any more.
    Goodbye,
}

/// Connects for ever, and tells `events` about it. Ends after a goodbye or when nobody listens. `chance` gives numbers
/// from 0 to 1.
pub(crate) async fn run(
    mut options: Options,
    events: mpsc::Sender<Event>,
    mut chance: impl FnMut() -> f64,
) {
    let mut backoff = Backoff::default();
    let mut last_good = Instant::now();
    let mut said: Option<String> = None;
    let mut undecodable = 0;
    let mut ways: Vec<Way> = options.brokers.iter().map(|_| Way::default()).collect();
    let mut at = 0;
    for epoch in options.first_epoch.. {
        let (Some(broker), Some(way)) = (options.brokers.get(at).cloned(), ways.get_mut(at)) else {
            return;
        };
        options.renew();
        let clean_start = undecodable >= UNDECODABLE;
        if clean_start {
            warn!(
                %broker,
                "the broker keeps sending a packet that cannot be read; asking it to forget what it keeps for promptd"
            );
        }
        let manner = way.manner(clean_start);
        let connection =
            connection::run(options.clone(), broker.clone(), manner, epoch, events.clone());
        // A task of its own, so that a mistake costs one connection and not the door.
        let task = tokio::spawn(connection);
        let (end, up) = task.await.unwrap_or_else(|_| (End::Trouble(Trouble::panicked()), None));
        // After a panic it is not known whether the door was told of a connection; to be told twice that there is none is
        // no harm.
        if events.send(Event::Down).await.is_err() {
            return;
        }
        let End::Trouble(trouble) = end else { return };
        undecodable = if trouble.undecodable { undecodable + 1 } else { 0 };
        let held = up.map_or(Duration::ZERO, |up| up.elapsed());
        if up.is_some() {
            last_good = Instant::now();
            said = None;
            way.worked();
        }
        if way.adapts(&trouble) {
            info!(%broker, reason = trouble.reason, mqtt = way.version.as_str(), "adapting to the broker");
            // There is something new to try, and it is tried once.
            continue;
        }
        if up.is_none() && options.brokers.len() > 1 {
            at = (at + 1) % options.brokers.len();
        }
        let wait = backoff.after(trouble.kind, held, last_good.elapsed(), chance());
        // Once for each state and reason: a broker that is away for a night is one line in the log, not thousands.
        if said.as_deref() == Some(trouble.reason.as_str()) {
            debug!(%broker, reason = trouble.reason, ?wait, "still no connection to the broker");
        } else if up.is_some() {
            warn!(%broker, reason = trouble.reason, "the connection to the broker is lost; trying again");
        } else {
            warn!(%broker, reason = trouble.reason, "no connection to the broker; trying for ever");
        }
        options.state.send_modify(|state| {
            state.url = broker.to_string();
            state.connected = None;
            state.trouble = Some(trouble.reason.clone());
        });
        said = Some(trouble.reason);
        tokio::select! {
            () = sleep(wait) => {}
            () = options.renewed() => {
                // Whatever was wrong may be mended, and where it is not, its operator looks now.
                (backoff, said) = (Backoff::default(), None);
            }
            () = events.closed() => return,
        }
    }
}

/// How one broker is best spoken to, as far as it has shown.
#[derive(Debug)]
struct Way {
    version: Version,
    retained_will: bool,
    acknowledged_will: bool,
    /// Hang-ups in a row on the greeting.
    hang_ups: u32,
}

impl Default for Way {
    fn default() -> Way {
        Way { version: Version::V5, retained_will: true, acknowledged_will: true, hang_ups: 0 }
    }
}

impl Way {
    fn manner(&self, clean_start: bool) -> Manner {
        Manner {
            version: self.version,
            clean_start,
            retained_will: self.retained_will,
            acknowledged_will: self.acknowledged_will,
        }
    }

    fn worked(&mut self) {
        self.hang_ups = 0;
    }

    /// Whether there is something new to try at once. Each of them is tried once in the life of the process, so this ends.
    fn adapts(&mut self, trouble: &Trouble) -> bool {
        match trouble.adapt {
            Some(Adapt::Version) if self.version == Version::V5 => {
                if trouble.kind == Kind::Away {
                    self.hang_ups += 1;
                    if self.hang_ups < HANG_UPS {
                        return false;
                    }
                    // It was no sign of an old broker, or it was: the next hang-up decides.
                    self.hang_ups = 0;
                    self.version = Version::V311;
                    return false;
                }
                self.version = Version::V311;
                true
            }
            Some(Adapt::NoRetain) => std::mem::replace(&mut self.retained_will, false),
            Some(Adapt::NoQos) => std::mem::replace(&mut self.acknowledged_will, false),
            _ => {
                // 3.1.1 was a guess; it helped no more than 5 did.
                if self.version == Version::V311 && trouble.reason == super::connection::HUNG_UP {
                    self.version = Version::V5;
                }
                false
            }
        }
    }
}
