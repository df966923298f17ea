//! Keeps a connection to the broker: one task that only polls the library and never waits for a publish, a new
//! library state for each connection, a watch over its silence, and back-off.
//!
//! What the library does not do by itself, each measured against a real broker: it notices no broker that stops
//! reading, it reconnects thousands of times a second on a packet it cannot read, and its state can come out of a lost
//! session unable to send. Hence the deadline on every poll, the back-off, and a state that lives as long as one
//! connection and no longer.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::{ConnectionError, Event as Polled, EventLoop, Incoming};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::client::{self, CONNECT_TIMEOUT, Client, Options, Trouble, Welcome};
use super::message::Message;

/// Connections in a row that ended with a packet that cannot be read, after which the broker is asked to forget our
/// session: a message it keeps for us is the likely cause, and it would send it for ever.
const UNDECODABLE: u32 = 3;

/// What the connection tells the door, in the order in which it happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection is up, the `epoch`-th.
    Up { epoch: u64, client: Client, welcome: Welcome },
    /// The broker answered the subscription.
    Subscribed(Result<(), String>),
    /// A message came.
    Message(Message),
    /// A message came that nobody can use; it only has to be acknowledged.
    Useless { packet: u16 },
    /// The oldest message handed to this connection got this packet number.
    Sent { packet: u16 },
    /// The broker took the message, or says why not.
    Acknowledged { packet: u16, refused: Option<String> },
    /// The connection is gone.
    Down,
}

/// How a connection ended.
enum End {
    Trouble(Trouble),
    /// We said goodbye, or nobody listens any more.
    Goodbye,
}

/// Connects for ever, and tells `events` about it. Ends after a goodbye or when nobody listens. `chance` gives numbers
/// from 0 to 1.
pub(crate) async fn run(
    options: Options,
    events: mpsc::Sender<Event>,
    mut chance: impl FnMut() -> f64,
) {
    let broker = format!("{}:{}", options.host, options.port);
    let mut backoff = Backoff::default();
    let mut last_good = Instant::now();
    let mut said: Option<String> = None;
    let mut undecodable = 0;
    for epoch in 1.. {
        let clean_start = undecodable >= UNDECODABLE;
        if clean_start {
            warn!(
                broker,
                "the broker keeps sending a packet that cannot be read; asking it to forget what it keeps for promptd"
            );
        }
        let connection =
            Connection { epoch, events: events.clone(), broker: broker.clone(), up: None };
        // A task of its own, so that a panic in the library costs one connection and not the door.
        let task = tokio::spawn(connection.run(options.clone(), clean_start));
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
        }
        let wait = backoff.after(trouble.kind, held, last_good.elapsed(), chance());
        // Once for each state and reason: a broker that is away for a night is one line in the log, not thousands.
        if said.as_deref() == Some(trouble.reason.as_str()) {
            debug!(broker, reason = trouble.reason, ?wait, "still no connection to the broker");
        } else if up.is_some() {
            warn!(
                broker,
                reason = trouble.reason,
                "the connection to the broker is lost; trying again"
            );
        } else {
            warn!(broker, reason = trouble.reason, "no connection to the broker; trying for ever");
        }
        said = Some(trouble.reason);
        tokio::select! {
            () = sleep(wait) => {}
            () = events.closed() => return,
        }
    }
}

struct Connection {
    epoch: u64,
    events: mpsc::Sender<Event>,
    broker: String,
    up: Option<Instant>,
}

impl Connection {
    /// Connects and polls until the end; tells how it ended and since when it was up, if it was.
    async fn run(mut self, options: Options, clean_start: bool) -> (End, Option<Instant>) {
        let end = self.poll(&options, clean_start).await;
        (end, self.up)
    }

    async fn poll(&mut self, options: &Options, clean_start: bool) -> End {
        let (sender, mut event_loop) = options.event_loop(clean_start);
        let abandoned = Arc::new(Notify::new());
        let client = Client::new(sender, Arc::clone(&abandoned));
        // The library's own time limit covers the connection; this one covers the library.
        let mut deadline = Instant::now() + CONNECT_TIMEOUT + Duration::from_secs(1);
        loop {
            let polled = tokio::select! {
                polled = timeout_at(deadline, event_loop.poll()) => polled,
                () = abandoned.notified() => return End::Trouble(Trouble::away("promptd began the connection anew")),
                () = self.events.closed() => return End::Goodbye,
            };
            let event = match polled {
                Err(_) => {
                    return End::Trouble(Trouble::away(
                        "it has been silent for 1.5 keep-alive intervals",
                    ));
                }
                Ok(Err(ConnectionError::RequestsDone)) => return End::Goodbye,
                Ok(Err(error)) => return End::Trouble(Trouble::new(error)),
                Ok(Ok(event)) => event,
            };
            let heard = matches!(event, Polled::Incoming(_));
            match self.tell(event, &client, &mut event_loop, options).await {
                Ok(()) => {}
                Err(end) => return end,
            }
            if heard {
                // The library pings once in an interval, whatever else happens, so that a healthy broker is heard.
                // Only what comes from the broker counts: bytes we send vanish silently into a dead connection.
                deadline = Instant::now() + event_loop.options.keep_alive().mul_f64(1.5);
            }
        }
    }

    async fn tell(
        &mut self,
        event: Polled,
        client: &Client,
        event_loop: &mut EventLoop,
        options: &Options,
    ) -> Result<(), End> {
        let event = match event {
            Polled::Incoming(Incoming::ConnAck(connack)) => {
                // A broker may set the interval; 0 means that it wants no pings, and the library would ping without pause.
                if event_loop.options.keep_alive() < Duration::from_secs(1) {
                    event_loop.options.set_keep_alive(options.keep_alive);
                }
                self.up = Some(Instant::now());
                let welcome = Welcome::new(&connack);
                info!(broker = self.broker, session = welcome.session, "connected to the broker");
                Event::Up { epoch: self.epoch, client: client.clone(), welcome }
            }
            Polled::Incoming(Incoming::Publish(publish)) => {
                let packet = publish.pkid;
                match client::message(publish, self.epoch) {
                    Some(message) => Event::Message(message),
                    None => Event::Useless { packet },
                }
            }
            Polled::Incoming(Incoming::PubAck(ack)) => {
                Event::Acknowledged { packet: ack.pkid, refused: client::refusal_of(&ack) }
            }
            Polled::Incoming(Incoming::SubAck(ack)) => Event::Subscribed(client::subscribed(&ack)),
            // 0 is a message that nobody acknowledges.
            Polled::Outgoing(Outgoing::Publish(packet)) if packet > 0 => Event::Sent { packet },
            Polled::Outgoing(Outgoing::Disconnect) => return Err(End::Goodbye),
            // The library stops sending until the broker acknowledges an older message of the same number. The sliding
            // window of the outbox keeps this from happening; if it does, only a new state helps.
            Polled::Outgoing(Outgoing::AwaitAck(_)) => {
                return Err(End::Trouble(Trouble::away(
                    "two messages have the same packet number",
                )));
            }
            Polled::Incoming(_) | Polled::Outgoing(_) => return Ok(()),
        };
        self.events.send(event).await.map_err(|_| End::Goodbye)
    }
}
