//! A connection to the broker as the door sees it: what it is made with, how messages are handed to it, what the broker
//! said when it let us in, and why a connection ended. Opens nothing itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::Credentials;
use super::backoff::Kind;
use super::message::Publication;
use super::packet::{Connack, MAX_PACKET, Version};
use super::url::BrokerUrl;
use crate::wire::Broker;

/// The most messages the broker may leave unacknowledged with us.
pub(crate) const RECEIVE_MAXIMUM: u16 = 64;
/// The most messages we leave unacknowledged with the broker.
const INFLIGHT: u16 = 64;
/// Messages on their way into the connection: all unacknowledged ones of both directions, and pieces of streams.
const QUEUE: usize = 256;
/// A refusal and the acknowledgement behind it.
const PAIR: usize = 2;
/// How long a broker may take to let us in, name look-up and TLS included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the broker keeps what comes for us while we are away.
pub(crate) const SESSION_EXPIRY_SECONDS: u32 = 3600;
/// Topic and properties of a message, beside its payload: the broker is told to send us somewhat more than we accept,
/// so that we can answer `payload_too_large`; a broker drops what is over its limit without a word.
const HEADROOM: usize = 64 << 10;

/// What a connection is made with.
#[derive(Clone)]
pub(crate) struct Options {
    /// The brokers, tried in turn.
    pub(crate) brokers: Vec<BrokerUrl>,
    pub(crate) credentials: Credentials,
    /// Where others come from.
    pub(crate) renewals: Option<watch::Receiver<Credentials>>,
    pub(crate) client_id: String,
    pub(crate) keep_alive: Duration,
    /// The most bytes of a payload that promptd reads.
    pub(crate) payload_bytes: usize,
    /// Where the broker says `offline` when we vanish, if anywhere.
    pub(crate) will_topic: Option<String>,
    /// How long the broker keeps what comes for us while we are away.
    pub(crate) session_seconds: u32,
    /// The number of the first connection. Packet numbers are told apart by it, so no two lines to the broker may have the
    /// same ones.
    pub(crate) first_epoch: u64,
    /// Who is told how it stands.
    pub(crate) state: watch::Sender<Broker>,
}

/// What is said when we vanish, and when we leave.
pub(crate) const OFFLINE: &str = "offline";

impl Options {
    /// The largest packet that we take from the broker.
    pub(super) fn max_packet(&self) -> usize {
        self.payload_bytes.saturating_add(HEADROOM).min(MAX_PACKET)
    }

    /// Takes over the newest credentials.
    pub(super) fn renew(&mut self) {
        if let Some(renewals) = &mut self.renewals {
            self.credentials = renewals.borrow_and_update().clone();
        }
    }

    /// Waits for others than those that were taken over last; where there can be none, for ever.
    pub(super) async fn renewed(&mut self) {
        let told = match &mut self.renewals {
            Some(renewals) => renewals.changed().await,
            None => std::future::pending().await,
        };
        // Whoever could tell is gone.
        if told.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// User name and password for this broker, or why there are none.
    pub(super) fn login(&self, broker: &BrokerUrl) -> Result<Option<(String, String)>, Trouble> {
        let credentials = &self.credentials;
        let Some(user) = credentials.username.clone().or_else(|| broker.username.clone()) else {
            return Ok(None);
        };
        let password = match (&credentials.password, &credentials.password_file) {
            (Some(password), _) => password.clone(),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file).map_err(|error| {
                    Trouble::refused(format!("mqtt.password_file `{}`: {error}", file.display()))
                })?;
                text.lines().next().unwrap_or_default().to_owned()
            }
            (None, None) => broker.password.clone().unwrap_or_default(),
        };
        Ok(Some((user, password)))
    }
}

/// What a subscription is for; the broker's answer goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Prompts and cancels: without them promptd is deaf.
    Prompts,
    /// Values of profiles, operators' requests, births of others.
    Besides,
    /// What the boards of a fleet tell each other, or the subscription that they share.
    Fleet,
    /// What other boards hand on.
    Hops,
}

/// What the door wants of a connection.
#[derive(Debug)]
pub(super) enum Command {
    /// A message; `acknowledged` is `QoS` 1.
    Publish { publication: Publication, acknowledged: bool, expiry: Option<Duration> },
    /// A message of this connection is done with.
    Acknowledge { packet: u16 },
    /// These topics are wanted. Of prompts the broker sends what it kept once, so that its owner can be told in the log.
    Subscribe { filters: Vec<String>, acknowledged: bool, retained_once: bool, purpose: Purpose },
    /// This topic is wanted no more.
    Unsubscribe { filter: String },
    /// Goodbye, after what was handed over before.
    Disconnect,
}

/// The sending half of one connection. Nothing here waits.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    commands: mpsc::Sender<Command>,
    drop: Arc<Notify>,
}

/// The connection takes nothing more at the moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Client {
    /// The two ends of one, and what tells that it is abandoned.
    pub(super) fn pair() -> (Client, mpsc::Receiver<Command>, Arc<Notify>) {
        let (commands, receiver) = mpsc::channel(QUEUE);
        let drop = Arc::new(Notify::new());
        (Client { commands, drop: Arc::clone(&drop) }, receiver, drop)
    }

    fn command(&self, command: Command) -> Result<(), Full> {
        self.commands.try_send(command).map_err(|_| Full)
    }

    /// Sends a message that the broker acknowledges (`QoS` 1).
    pub(crate) fn publish(
        &self,
        publication: &Publication,
        expiry: Option<Duration>,
    ) -> Result<(), Full> {
        let publication = publication.clone();
        self.command(Command::Publish { publication, acknowledged: true, expiry })
    }

    /// Sends a message that may be lost (`QoS` 0).
    pub(crate) fn tell(&self, publication: &Publication) -> Result<(), Full> {
        let publication = publication.clone();
        self.command(Command::Publish { publication, acknowledged: false, expiry: None })
    }

    /// Acknowledges a message of this connection.
    pub(crate) fn acknowledge(&self, packet: u16) -> Result<(), Full> {
        self.command(Command::Acknowledge { packet })
    }

    /// Whether a refusal and the acknowledgement behind it have room. Where nobody listens any more they have.
    pub(crate) fn has_room(&self) -> bool {
        self.commands.is_closed() || self.commands.capacity() >= PAIR
    }

    /// Waits until they have, or nobody listens any more.
    pub(crate) async fn room(&self) {
        let _ = self.commands.reserve_many(PAIR).await;
    }

    /// Says no and acknowledges what was asked, in this order on one stream of bytes: a broker that has the acknowledgement
    /// has the refusal as well, so that neither waits for anything of the broker's.
    pub(crate) fn refuse(
        &self,
        publication: &Publication,
        packet: Option<u16>,
    ) -> Result<(), Full> {
        let mut room = self.commands.try_reserve_many(PAIR).map_err(|_| Full)?;
        let publication = publication.clone();
        let refusal = Command::Publish { publication, acknowledged: false, expiry: None };
        let acknowledgement = packet.map(|packet| Command::Acknowledge { packet });
        for (command, room) in [refusal].into_iter().chain(acknowledgement).zip(&mut room) {
            room.send(command);
        }
        Ok(())
    }

    /// Asks for the messages on these topics.
    pub(crate) fn subscribe(&self, topics: &[String], purpose: Purpose) -> Result<(), Full> {
        let filters = topics.to_vec();
        self.command(Command::Subscribe {
            filters,
            acknowledged: true,
            retained_once: true,
            purpose,
        })
    }

    /// Asks for no more messages on this topic.
    pub(crate) fn unsubscribe(&self, filter: String) -> Result<(), Full> {
        self.command(Command::Unsubscribe { filter })
    }

    /// Listens to topics whose newest values are wanted: what the broker keeps comes at once, and a lost one is followed by
    /// the next.
    pub(crate) fn follow(&self, topics: &[String], purpose: Purpose) -> Result<(), Full> {
        let filters = topics.to_vec();
        self.command(Command::Subscribe {
            filters,
            acknowledged: false,
            retained_once: false,
            purpose,
        })
    }

    /// Says goodbye; the connection ends after what was sent before.
    pub(crate) fn disconnect(&self) -> Result<(), Full> {
        self.command(Command::Disconnect)
    }

    /// Drops the connection, so that the next one begins.
    pub(crate) fn abandon(&self) {
        self.drop.notify_one();
    }
}

/// What the broker said when it let us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// Whether it kept our session.
    pub(crate) session: bool,
    /// Which MQTT it speaks with us.
    pub(crate) version: Version,
    /// The most messages we may leave unacknowledged.
    pub(crate) window: usize,
    /// The largest packet it takes.
    pub(crate) max_packet: usize,
    /// Whether it acknowledges messages at all (Maximum `QoS` 1 or 2).
    pub(crate) acknowledges: bool,
    /// Whether it keeps messages for whoever subscribes later.
    pub(crate) retains: bool,
}

impl Welcome {
    pub(super) fn new(connack: &Connack, version: Version) -> Welcome {
        let window = usize::from(connack.receive_maximum.unwrap_or(u16::MAX).clamp(1, INFLIGHT));
        let packet = connack.maximum_packet.and_then(|size| usize::try_from(size).ok());
        Welcome {
            session: connack.session,
            version,
            window,
            max_packet: packet.unwrap_or(MAX_PACKET).min(MAX_PACKET),
            acknowledges: connack.maximum_qos.is_none_or(|most| most > 0),
            retains: !connack.retain_unavailable,
        }
    }
}

/// What promptd has to do otherwise on its next try with this broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adapt {
    /// Speak 3.1.1.
    Version,
    /// Ask for no retained will.
    NoRetain,
    /// Ask for a will of `QoS` 0.
    NoQos,
}

/// Why a connection ended or did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// How soon it is worth trying again.
    pub(crate) kind: Kind,
    /// In words, for the log.
    pub(crate) reason: String,
    /// Whether the broker sent bytes that are no MQTT: a message it keeps for us may be the cause.
    pub(crate) undecodable: bool,
    /// What may help.
    pub(crate) adapt: Option<Adapt>,
}

impl Trouble {
    pub(super) fn away(reason: impl Into<String>) -> Trouble {
        Trouble { kind: Kind::Away, reason: reason.into(), undecodable: false, adapt: None }
    }

    pub(super) fn refused(reason: impl Into<String>) -> Trouble {
        Trouble { kind: Kind::Refused, ..Trouble::away(reason) }
    }

    pub(super) fn adapt(reason: impl Into<String>, adapt: Adapt) -> Trouble {
        Trouble { adapt: Some(adapt), ..Trouble::refused(reason) }
    }

    pub(super) fn undecodable(why: &str) -> Trouble {
        Trouble {
            undecodable: true,
            ..Trouble::refused(format!("it sent what is no MQTT ({why})"))
        }
    }

    /// A fault of our own; the next connection begins with nothing of this one.
    pub(super) fn panicked() -> Trouble {
        Trouble::refused("promptd made a mistake with the connection; please report this")
    }

    /// The broker did not let us in (3.2.2.2; the return codes of 3.1.1 are 1 to 5).
    pub(super) fn not_let_in(connack: &Connack, version: Version) -> Trouble {
        let said = said(connack.reason.as_deref());
        let login = "check mqtt.username and the password";
        match (connack.code, version) {
            (0x01, _) | (0x84, Version::V5) if version == Version::V5 => {
                Trouble::adapt("it does not speak MQTT 5", Adapt::Version)
            }
            (0x01, _) => Trouble::refused("it speaks neither MQTT 5 nor 3.1.1"),
            (0x04 | 0x86, _) => {
                Trouble::refused(format!("wrong user name or password{said}; {login}"))
            }
            (0x05 | 0x87, _) => {
                Trouble::refused(format!("it does not authorize this login{said}; {login}"))
            }
            (0x8a, _) => Trouble::refused(format!("it has banned this client{said}")),
            (0x02 | 0x85, _) => {
                Trouble::refused("it does not accept the client id; set mqtt.client_id")
            }
            (0x9a, _) => Trouble::adapt("it keeps no retained messages", Adapt::NoRetain),
            (0x9b, _) => Trouble::adapt("it has no QoS 1", Adapt::NoQos),
            (0x03 | 0x88 | 0x89 | 0x97 | 0x9f, _) => Trouble::away(format!(
                "it is there but lets nobody in ({}){said}",
                code_name(connack.code)
            )),
            (code, _) => {
                Trouble::refused(format!("it refuses the connection ({}){said}", code_name(code)))
            }
        }
    }

    /// The broker said goodbye (3.14.2.1).
    pub(super) fn goodbye(code: u8, reason: Option<&str>) -> Trouble {
        let text = format!("it said goodbye ({}){}", code_name(code), said(reason));
        match code {
            0x8e => Trouble::refused(
                "another client connected with the same client id; each board needs its own mqtt.node or mqtt.client_id",
            ),
            // Normal, shutting down, busy, keep-alive, maximum connect time, another server.
            0x00 | 0x89 | 0x8b | 0x8d | 0x9c | 0x9d | 0xa0 => Trouble::away(text),
            // It objects to what promptd did, and promptd will do it again.
            _ => Trouble::refused(text),
        }
    }
}

/// What a broker says in words, fit for one line of a log.
fn said(reason: Option<&str>) -> String {
    /// A sentence; whoever has more to say says it in its own log.
    const MOST: usize = 200;
    reason
        .filter(|reason| !reason.is_empty())
        .map(|reason| format!(": {}", reason.chars().take(MOST).collect::<String>().escape_debug()))
        .unwrap_or_default()
}

/// A reason code by its name in the standard (2.4).
pub(super) fn code_name(code: u8) -> String {
    let name = match code {
        0x00 => "normal disconnection",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8b => "server shutting down",
        0x8d => "keep alive timeout",
        0x8f => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9a => "retain not supported",
        0x9b => "QoS not supported",
        0x9c => "use another server",
        0x9d => "server moved",
        0x9e => "shared subscriptions not supported",
        0x9f => "connection rate exceeded",
        0xa0 => "maximum connect time",
        0xa1 => "subscription identifiers not supported",
        0xa2 => "wildcard subscriptions not supported",
        _ => return format!("code {code:#04x}"),
    };
    name.to_owned()
}

/// Why the broker did not take a message, where it did not. `0x10` is "nobody listens", which is no refusal.
pub(super) fn refusal_of(code: u8) -> Option<String> {
    (code >= 0x80).then(|| code_name(code))
}

/// The broker's answer to a subscription, topic by topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subscribed {
    pub(crate) purpose: Purpose,
    /// What was asked for, and why it was refused, where it was.
    pub(crate) topics: Vec<(String, Option<String>)>,
}

impl Subscribed {
    /// The codes stand in the order of the topics (3.9.3).
    pub(super) fn new(purpose: Purpose, filters: Vec<String>, codes: &[u8]) -> Subscribed {
        let codes = codes.iter().map(|code| refusal_of(*code)).chain(std::iter::repeat(None));
        Subscribed { purpose, topics: filters.into_iter().zip(codes).collect() }
    }

    /// Why promptd does not hear all of it, where it does not.
    pub(crate) fn result(&self) -> Result<(), String> {
        self.topics.iter().find_map(|(_, refused)| refused.clone()).map_or(Ok(()), Err)
    }
}

/// When the oldest of what was sent should have been acknowledged.
pub(super) fn overdue(sent: Option<Instant>, patience: Duration) -> Option<Instant> {
    sent.map(|sent| sent + patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connack(code: u8) -> Connack {
        Connack { code, ..Connack::default() }
    }

    #[test]
    fn what_a_broker_says_at_its_door() {
        let table = [
            (0x01, Version::V5, Kind::Refused, Some(Adapt::Version), "MQTT 5"),
            (0x84, Version::V5, Kind::Refused, Some(Adapt::Version), "MQTT 5"),
            (0x01, Version::V311, Kind::Refused, None, "neither"),
            (0x04, Version::V311, Kind::Refused, None, "mqtt.username"),
            (0x86, Version::V5, Kind::Refused, None, "wrong user name or password"),
            (0x87, Version::V5, Kind::Refused, None, "does not authorize"),
            (0x05, Version::V311, Kind::Refused, None, "does not authorize"),
            (0x9a, Version::V5, Kind::Refused, Some(Adapt::NoRetain), "retained"),
            (0x9b, Version::V5, Kind::Refused, Some(Adapt::NoQos), "QoS"),
            (0x88, Version::V5, Kind::Away, None, "server unavailable"),
            (0xff, Version::V5, Kind::Refused, None, "0xff"),
        ];
        for (code, version, kind, adapt, text) in table {
            let trouble = Trouble::not_let_in(&connack(code), version);
            assert_eq!((trouble.kind, trouble.adapt), (kind, adapt), "{code:#x}");
            assert!(trouble.reason.contains(text), "{}", trouble.reason);
        }
    }

    #[test]
    fn a_brokers_words_make_one_short_line() {
        let reason = Some(format!("a\nb\u{1b}[31m{}", "x".repeat(10_000)));
        let trouble = Trouble::not_let_in(&Connack { reason, ..connack(0x80) }, Version::V5);
        assert!(trouble.reason.len() < 400 && !trouble.reason.contains(['\n', '\u{1b}']));
        assert_eq!(Trouble::goodbye(0x8e, None).kind, Kind::Refused);
        assert_eq!(
            Trouble::goodbye(0x8b, Some("bye")).reason,
            "it said goodbye (server shutting down): bye"
        );
    }

    #[test]
    fn limits() {
        let of = |receive, qos| {
            let connack = Connack {
                receive_maximum: receive,
                maximum_qos: qos,
                maximum_packet: Some(512),
                ..Connack::default()
            };
            let welcome = Welcome::new(&connack, Version::V5);
            (welcome.window, welcome.acknowledges, welcome.max_packet)
        };
        assert_eq!(of(None, None), (64, true, 512));
        assert_eq!(of(Some(20), Some(1)), (20, true, 512));
        assert_eq!(of(Some(1), Some(0)), (1, false, 512));
        assert_eq!(of(Some(0), None), (1, true, 512));
    }

    #[test]
    fn acknowledgements_with_a_complaint() {
        assert_eq!(refusal_of(0x10), None);
        assert_eq!(refusal_of(0x87).as_deref(), Some("not authorized"));
        let of = |codes: &[u8]| {
            Subscribed::new(Purpose::Prompts, vec!["a".to_owned(), "b".to_owned()], codes)
        };
        assert_eq!(of(&[1, 0]).result(), Ok(()));
        assert_eq!(of(&[1, 0x80]).result(), Err("unspecified error".to_owned()));
        assert_eq!(of(&[0x87, 1]).topics[0], ("a".to_owned(), Some("not authorized".to_owned())));
        assert_eq!(of(&[1]).topics.len(), 2, "a broker that says too little");
    }
}
