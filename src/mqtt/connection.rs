//! One connection to a broker, from the first byte to the last: one task that reads, writes and watches the clock, and
//! never waits for the one while the other could go on.
//!
//! Nothing of it outlives it: packet numbers, what is on its way, what was half read. Whatever has to survive is the
//! outbox's and the ledger's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::client::{
    self, Adapt, CONNECT_TIMEOUT, Client, Command, OFFLINE, Options, Purpose, RECEIVE_MAXIMUM,
    Subscribed, Trouble, Welcome,
};
use super::link::{End, Event};
use super::message::{Delivery, Message, Publication, Word};
use super::packet::{
    self, Broken, Connack, Connect, Decoder, Packet, Received, Subscription, Unwritable, Version,
    Will,
};
use super::stream::{self, Stream};
use super::tls;
use super::url::BrokerUrl;

/// No message is taken from the door while more bytes than this wait to be written.
const OUT_BYTES: usize = 256 << 10;
/// Room for reading; longer packets make it larger for as long as they last.
const IN_BYTES: usize = 8 << 10;
/// A broker that acknowledges nothing for this many keep-alive intervals, alive as it looks, gets a new connection.
const UNACKNOWLEDGED: u32 = 2;
/// How long the end of a connection may take: TLS says goodbye too.
const FAREWELL: Duration = Duration::from_millis(500);

/// The broker took a message that nobody is subscribed to (3.4.2.1).
const NO_SUBSCRIBERS: u8 = 0x10;

/// What is said of a broker that closes the connection instead of an answer.
pub(super) const HUNG_UP: &str = "it hung up before it let us in";

/// How the next connection is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Which MQTT is spoken.
    pub(super) version: Version,
    /// Whether the broker is asked to forget what it keeps for us.
    pub(super) clean_start: bool,
    /// Whether the last will is to be kept by the broker.
    pub(super) retained_will: bool,
    /// Whether the last will is of `QoS` 1.
    pub(super) acknowledged_will: bool,
}

/// Connects and goes on until the end; tells how it ended and since when it was up, if it was.
pub(super) async fn run(
    options: Options,
    broker: BrokerUrl,
    manner: Manner,
    epoch: u64,
    events: mpsc::Sender<Event>,
) -> (End, Option<Instant>) {
    let entering = timeout(CONNECT_TIMEOUT, enter(&options, &broker, manner));
    let entered = tokio::select! {
        entered = entering => entered,
        () = events.closed() => return (End::Goodbye, None),
    };
    let entered = match entered {
        Ok(Ok(entered)) => entered,
        Ok(Err(trouble)) => return (End::Trouble(trouble), None),
        Err(_) => {
            let reason = format!("it did not let us in within {} s", CONNECT_TIMEOUT.as_secs());
            return (End::Trouble(Trouble::away(reason)), None);
        }
    };
    let up = Instant::now();
    let Entered { stream, decoder, inbox, connack } = entered;
    let welcome = Welcome::new(&connack, manner.version);
    let version = manner.version.as_str();
    info!(%broker, mqtt = version, session = welcome.session, "connected to the broker");
    options.state.send_modify(|state| {
        state.url = broker.to_string();
        state.connected = Some(version);
        state.trouble = None;
    });
    // 0 means that the broker wants no signs of life; we still want its.
    let keep_alive = connack.keep_alive.filter(|seconds| *seconds > 0);
    let keep_alive =
        keep_alive.map_or(options.keep_alive, |seconds| Duration::from_secs(seconds.into()));
    let (client, commands, abandoned) = Client::pair();
    let (reader, writer) = split(stream);
    let mut connection = Connection {
        version: manner.version,
        events,
        epoch,
        keep_alive,
        acknowledges: welcome.acknowledges,
        retains: welcome.retains,
        out: BytesMut::new(),
        last_number: 0,
        numbers: BTreeMap::new(),
        said_unreadable: false,
        untold: VecDeque::from([Event::Up { epoch, client, welcome }]),
    };
    let ends = Ends { reader, writer, decoder, inbox, commands, abandoned };
    (connection.go(ends).await, Some(up))
}

/// A broker that let us in.
struct Entered {
    stream: Box<dyn Stream>,
    decoder: Decoder,
    inbox: BytesMut,
    connack: Connack,
}

/// Opens the way and introduces promptd.
async fn enter(options: &Options, broker: &BrokerUrl, manner: Manner) -> Result<Entered, Trouble> {
    let login = options.login(broker)?;
    let mut stream = stream::open(broker, &options.credentials.tls).await?;
    let most = options.max_packet();
    let hello = packet::connect(&Connect {
        version: manner.version,
        client_id: &options.client_id,
        keep_alive: options.keep_alive,
        clean_start: manner.clean_start,
        session_expiry: options.session_seconds,
        receive_maximum: RECEIVE_MAXIMUM,
        maximum_packet: u32::try_from(most).unwrap_or(u32::MAX),
        login: login.as_ref().map(|(user, password)| (user.as_str(), password.as_bytes())),
        will: options.will_topic.as_deref().map(|topic| Will {
            topic,
            text: OFFLINE,
            retain: manner.retained_will,
            acknowledged: manner.acknowledged_will,
        }),
    });
    let hello = hello.map_err(|Unwritable(why)| {
        Trouble::refused(format!("promptd cannot introduce itself with this name and login: {why}"))
    })?;
    let wrote = async {
        stream.write_all(&hello).await?;
        stream.flush().await
    };
    wrote.await.map_err(|error| tls::trouble(&error))?;
    let mut decoder = Decoder::new(manner.version, most);
    let mut inbox = BytesMut::with_capacity(IN_BYTES);
    loop {
        match decoder.next(&mut inbox).map_err(|Broken(why)| Trouble::undecodable(&why))? {
            Some(Packet::Connack(connack)) if connack.code != 0 => {
                return Err(Trouble::not_let_in(&connack, manner.version));
            }
            Some(Packet::Connack(connack)) if connack.version != manner.version => {
                return Err(if manner.version == Version::V5 {
                    Trouble::adapt("it answers in MQTT 3.1.1", Adapt::Version)
                } else {
                    Trouble::undecodable("an answer of MQTT 5 to a client of 3.1.1")
                });
            }
            Some(Packet::Connack(connack)) => {
                return Ok(Entered { stream, decoder, inbox, connack });
            }
            Some(Packet::Disconnect { code, reason }) => {
                return Err(Trouble::goodbye(code, reason.as_deref()));
            }
            Some(_) => return Err(Trouble::undecodable("a packet before CONNACK")),
            None => {}
        }
        let read = stream.read_buf(&mut inbox).await.map_err(|error| tls::trouble(&error))?;
        if read == 0 {
            // Brokers from before MQTT 5 hang up on it without a word; so do brokers that are just being stopped.
            return Err(Trouble {
                adapt: (manner.version == Version::V5).then_some(Adapt::Version),
                ..Trouble::away(HUNG_UP)
            });
        }
    }
}

/// What a connection moves bytes and messages between.
struct Ends {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    decoder: Decoder,
    inbox: BytesMut,
    commands: mpsc::Receiver<Command>,
    abandoned: Arc<Notify>,
}

/// What a subscription is for, and its topics.
type Wanted = (Purpose, Vec<String>);

struct Connection {
    version: Version,
    events: mpsc::Sender<Event>,
    epoch: u64,
    keep_alive: Duration,
    acknowledges: bool,
    retains: bool,
    /// What is to be written.
    out: BytesMut,
    last_number: u16,
    /// Packet numbers that the broker has not given back, since when, and what a subscription is for and asks for.
    numbers: BTreeMap<u16, (Instant, Option<Wanted>)>,
    said_unreadable: bool,
    /// What the door has not taken yet. Nothing more is read meanwhile, so that a door that has no room stops the broker;
    /// but the door's messages are written, which is what makes room. Bounded by the window of the outbox.
    untold: VecDeque<Event>,
}

impl Connection {
    async fn go(&mut self, ends: Ends) -> End {
        let Ends { mut reader, mut writer, mut decoder, mut inbox, mut commands, abandoned } = ends;
        let events = self.events.clone();
        let mut ping = Instant::now() + self.keep_alive;
        let mut silent = Instant::now() + self.keep_alive.mul_f64(1.5);
        let (mut leaving, mut unflushed) = (false, false);
        loop {
            if let Err(end) = self.read(&mut decoder, &mut inbox) {
                return end;
            }
            if leaving && self.out.is_empty() && !unflushed {
                let _ = timeout(FAREWELL, writer.shutdown()).await;
                return End::Goodbye;
            }
            inbox.reserve(IN_BYTES);
            let overdue = self.overdue().unwrap_or(silent).min(silent);
            tokio::select! {
                room = events.reserve(), if !self.untold.is_empty() => match (room, self.untold.pop_front()) {
                    (Ok(room), Some(event)) => {
                        room.send(event);
                        // While nothing is read nobody can be heard.
                        silent = Instant::now() + self.keep_alive.mul_f64(1.5);
                    }
                    _ => return End::Goodbye,
                },
                read = reader.read_buf(&mut inbox), if self.untold.is_empty() => match read {
                    Ok(0) => return End::Trouble(Trouble::away("it closed the connection")),
                    Ok(_) => silent = Instant::now() + self.keep_alive.mul_f64(1.5),
                    Err(error) => return End::Trouble(tls::trouble(&error)),
                },
                wrote = write(&mut writer, &mut self.out), if unflushed || !self.out.is_empty() => match wrote {
                    Ok(more) => unflushed = more,
                    Err(error) => return End::Trouble(tls::trouble(&error)),
                },
                command = commands.recv(), if !leaving && self.out.len() < OUT_BYTES => {
                    // The door let go of this connection.
                    let Some(command) = command else {
                        return End::Trouble(Trouble::away("promptd began the connection anew"));
                    };
                    let mut next = Some(command);
                    // What waits behind it goes with it: each write costs both sides more than the bytes in it.
                    while let Some(command) = next {
                        leaving = matches!(command, Command::Disconnect);
                        if let Err(end) = self.command(command) {
                            return end;
                        }
                        let more = !leaving && self.out.len() < OUT_BYTES;
                        next = if more { commands.try_recv().ok() } else { None };
                    }
                }
                // Whatever else happens, so that a healthy broker is heard once in an interval.
                () = sleep_until(ping) => {
                    let _ = packet::ping(&mut self.out);
                    ping = Instant::now() + self.keep_alive;
                }
                // Only what comes from the broker counts: bytes we send vanish silently into a dead connection.
                () = sleep_until(overdue) => return End::Trouble(Trouble::away(if overdue == silent {
                    "it has been silent for 1.5 keep-alive intervals"
                } else {
                    "it does not acknowledge what it is sent"
                })),
                () = abandoned.notified() => {
                    return End::Trouble(Trouble::away("promptd began the connection anew"));
                }
                () = events.closed() => return End::Goodbye,
            }
        }
    }

    /// When the oldest number should have come back.
    fn overdue(&self) -> Option<Instant> {
        let oldest = self.numbers.values().map(|(since, _)| *since).min();
        client::overdue(oldest, self.keep_alive * UNACKNOWLEDGED)
    }

    /// Takes apart what was read, up to the next thing that the door has to know.
    fn read(&mut self, decoder: &mut Decoder, inbox: &mut BytesMut) -> Result<(), End> {
        while self.untold.is_empty() {
            let next = decoder.next(inbox);
            let next = next.map_err(|Broken(why)| End::Trouble(Trouble::undecodable(&why)))?;
            let Some(packet) = next else { return Ok(()) };
            self.packet(packet)?;
        }
        Ok(())
    }

    fn packet(&mut self, packet: Packet) -> Result<(), End> {
        let event = match packet {
            Packet::Publish(received) => Event::Message(message(*received, self.epoch)),
            Packet::Unreadable { packet, why } => {
                // Once for each connection: somebody may send thousands.
                if !std::mem::replace(&mut self.said_unreadable, true) {
                    warn!(why, "the broker sent a message that cannot be read; it is passed over");
                }
                let Some(packet) = packet else { return Ok(()) };
                Event::Useless { packet }
            }
            Packet::Puback { packet, code } => {
                if self.numbers.remove(&packet).is_none() {
                    return Ok(());
                }
                Event::Acknowledged {
                    packet,
                    refused: client::refusal_of(code),
                    unheard: code == NO_SUBSCRIBERS,
                }
            }
            Packet::Suback { packet, codes } => {
                let Some((_, Some(wanted))) = self.numbers.remove(&packet) else { return Ok(()) };
                Event::Subscribed(Subscribed::new(wanted.0, wanted.1, &codes))
            }
            Packet::Unsuback { packet } => {
                self.numbers.remove(&packet);
                return Ok(());
            }
            Packet::Pong => return Ok(()),
            Packet::Disconnect { code, reason } => {
                return Err(End::Trouble(Trouble::goodbye(code, reason.as_deref())));
            }
            Packet::Connack(_) => {
                return Err(End::Trouble(Trouble::undecodable("a second CONNACK")));
            }
        };
        self.untold.push_back(event);
        Ok(())
    }

    /// Puts into bytes what the door wants.
    fn command(&mut self, command: Command) -> Result<(), End> {
        match command {
            Command::Publish { publication, acknowledged, expiry } => {
                self.publish(publication, acknowledged, expiry)
            }
            Command::Acknowledge { packet } => {
                packet::puback(&mut self.out, self.version, packet).map_err(own_fault)
            }
            Command::Subscribe { filters, acknowledged, retained_once, purpose } => {
                let number = self.number(Some((purpose, filters.clone())))?;
                let topic = |filter| Subscription { filter, acknowledged, retained_once };
                let topics: Vec<_> = filters.iter().map(|filter| topic(filter)).collect();
                packet::subscribe(&mut self.out, self.version, number, &topics).map_err(own_fault)
            }
            Command::Unsubscribe { filter } => {
                let number = self.number(None)?;
                packet::unsubscribe(&mut self.out, self.version, number, &filter).map_err(own_fault)
            }
            // Two bytes that are always the same.
            Command::Disconnect => packet::disconnect(&mut self.out).map_err(own_fault),
        }
    }

    fn publish(
        &mut self,
        publication: Publication,
        acknowledged: bool,
        expiry: Option<Duration>,
    ) -> Result<(), End> {
        let number = if acknowledged { Some(self.number(None)?) } else { None };
        let Publication {
            topic,
            payload,
            retain,
            correlation,
            response_topic,
            content_type,
            properties,
        } = publication;
        let publish = packet::Publish {
            topic: &topic,
            payload,
            // A broker without retained messages throws out whoever wants one.
            retain: retain && self.retains,
            packet: number.filter(|_| self.acknowledges),
            content_type,
            text: content_type.is_some_and(|kind| kind != "application/cbor"),
            correlation,
            response_topic,
            expiry,
            user: &properties,
        };
        let wrote = packet::publish(&mut self.out, self.version, publish);
        let Some(packet) = number else { return Ok(()) };
        self.untold.push_back(Event::Sent { packet });
        // What cannot be written is never acknowledged; nor does a broker without acknowledgements.
        if wrote.is_err() || !self.acknowledges {
            self.numbers.remove(&packet);
            let refused = wrote.err().map(|Unwritable(why)| why);
            self.untold.push_back(Event::Acknowledged { packet, refused, unheard: false });
        }
        Ok(())
    }

    /// A packet number that is not in use (2.2.1).
    fn number(&mut self, wanted: Option<Wanted>) -> Result<u16, End> {
        for _ in 0..=u16::MAX {
            self.last_number = self.last_number.checked_add(1).unwrap_or(1);
            if let std::collections::btree_map::Entry::Vacant(entry) =
                self.numbers.entry(self.last_number)
            {
                entry.insert((Instant::now(), wanted));
                return Ok(self.last_number);
            }
        }
        // The window of the outbox is a thousandth of this.
        Err(End::Trouble(Trouble::away("all packet numbers are in use")))
    }
}

/// What promptd itself wanted to say is no MQTT: a mistake of its own, which a new connection may not make again.
fn own_fault(Unwritable(why): Unwritable) -> End {
    End::Trouble(Trouble::refused(format!("promptd wanted to send what is no MQTT: {why}")))
}

/// Writes what there is, or flushes what was written; tells whether a flush is due. Cut off in the middle it has lost nothing.
async fn write(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    out: &mut BytesMut,
) -> std::io::Result<bool> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(false);
    }
    writer.write_buf(out).await.map(|_| true)
}

/// A message in the door's words.
fn message(received: Received, epoch: u64) -> Message {
    let properties = received.properties;
    let mut user = properties.user;
    // The first of a name counts.
    let mut value = |name: &str| {
        let at = user.iter().position(|(other, _)| other == name)?;
        Some(user.remove(at).1)
    };
    Message {
        topic: received.topic,
        payload: received.payload,
        retained: received.retained,
        again: received.again,
        delivery: received.packet.map(|packet| Delivery { epoch, packet }),
        response_topic: properties.response_topic,
        correlation: properties.correlation,
        content_type: properties.content_type,
        expiry: properties.expiry,
        client: value("client").map(String::into_boxed_str),
        word: value("took").map(Word::Took).or_else(|| value("hop").map(Word::Hop)).map(Box::new),
    }
}
