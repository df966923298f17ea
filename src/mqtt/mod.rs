//! The MQTT door: takes prompts from topics, gives answers to topics, and tells how promptd is. Knows no model.
//!
//! | file | what it is |
//! |---|---|
//! | `url`, `topic` | the broker's address, the names of topics |
//! | `message`, `reply` | a message, an address and the messages of an answer |
//! | `outbox`, `ledger`, `backoff` | what must still be sent, what is in work or was answered, when to connect again |
//! | `packet` | MQTT on the wire |
//! | `stream`, `tls` | the way to a broker |
//! | `client`, `connection`, `link` | a connection as the door sees it, one connection from beginning to end, and which is next |
//! | `prompt` | a prompt's way through the scheduler |
//! | `denied` | what the broker's access rules refuse: told, and tried again |
//! | `seldom` | which lines of the log are held back |
//! | `door` | the one task that owns all of this |
//! | `inbound`, `outcome`, `states`, `goodbye` | what it does with messages, with what happens to a prompt, what it tells about promptd, how it leaves |
//! | `fleet` | sharing prompts with other boards |
//! | `values`, `admin` | the topics whose values profiles put into prompts, and what an operator asks |
//!
//! A prompt that the broker wants acknowledged (`QoS` 1) is acknowledged when it is safe in the record, or after the broker
//! took its answer, whichever comes first: if promptd dies before, the broker sends the prompt again; if it dies after,
//! the record has it. Acknowledgements go out in this order, not in that of the prompts; a quick refusal is not held up
//! by a slow answer. Brokers do not insist on the order.

mod admin;
mod backoff;
mod client;
mod connection;
mod denied;
mod door;
mod fleet;
mod goodbye;
mod health;
mod home_assistant;
mod inbound;
mod ledger;
#[cfg(test)]
mod ledger_properties;
mod link;
mod message;
mod outbox;
mod outcome;
mod packet;
mod prompt;
mod reply;
mod restore;
mod seldom;
mod shelf;
mod states;
mod stream;
mod tls;
mod topic;
mod url;
mod values;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

pub use self::fleet::FleetConfig;
pub use self::tls::TlsFiles;
pub use self::url::{BrokerUrl, UrlError};
use crate::board::Board;
use crate::control::Control;
use crate::record::Record;
use crate::scheduler::Scheduler;
use crate::wire::{Broker, Limits, ModelVersions, Policies};

/// The most bytes of the name of a shared subscription: as many as a node's.
const MAX_GROUP_BYTES: usize = 64;

/// How the door reaches its broker and which topics it has.
#[derive(Clone)]
pub struct Config {
    /// The brokers: one, or several of one cluster, tried in turn.
    pub brokers: Vec<BrokerUrl>,
    /// The user name; goes before the one in the address.
    pub username: Option<String>,
    /// The password; goes before the one in the address.
    pub password: Option<String>,
    /// A file whose first line is the password, read for every connection.
    pub password_file: Option<PathBuf>,
    /// What TLS is done with, for brokers that want it.
    pub tls: TlsFiles,
    /// Where other credentials come from while the door is open, if they can.
    pub renewals: Option<watch::Receiver<Credentials>>,
    /// The first level or levels of every topic.
    pub base_topic: String,
    /// The board's level in every topic; no other board on the broker may have the same.
    pub node: String,
    /// The name the broker knows the connection by; `None` is `<base>-<node>`. It has to stay the same from start to
    /// start, because the broker keeps prompts for it.
    pub client_id: Option<String>,
    /// How often the broker is pinged; a silent one is given up after one and a half times this. 1 s to 18 h.
    pub keep_alive: Duration,
    /// Topics under which requests may have their answers put with `reply_to`. Empty: only under `<node>/answer`.
    pub reply_prefixes: Vec<String>,
    /// Whether MQTT 5's Response Topic is held to these prefixes as well. promptd writes wherever the Response Topic
    /// says, with its own rights; where not every client may be trusted with those, this is the switch.
    pub restrict_response_topics: bool,
    /// The topic under which Home Assistant discovers devices; `None`: it is told nothing.
    pub discovery_prefix: Option<String>,
    /// How the board shares the prompts of `any/ask` with others; `None`: not at all.
    pub fleet: Option<FleetConfig>,
}

/// Who promptd is to its brokers, and how it knows them.
#[derive(Clone)]
pub struct Credentials {
    /// The user name; goes before the one in the address.
    pub(crate) username: Option<String>,
    /// The password; goes before the one in the address.
    pub(crate) password: Option<String>,
    /// Read for every connection, so that a new password needs no restart.
    pub(crate) password_file: Option<PathBuf>,
    /// What TLS is done with.
    pub(crate) tls: TlsFiles,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Config {
    /// Those of this configuration.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            username: self.username.clone(),
            password: self.password.clone(),
            password_file: self.password_file.clone(),
            tls: self.tls.clone(),
        }
    }

    /// A door to this broker, all else as usual.
    pub fn new(broker: BrokerUrl, node: impl Into<String>) -> Config {
        Config {
            brokers: vec![broker],
            username: None,
            password: None,
            password_file: None,
            tls: TlsFiles::default(),
            renewals: None,
            base_topic: "promptd".to_owned(),
            node: node.into(),
            client_id: None,
            keep_alive: Duration::from_secs(30),
            reply_prefixes: Vec::new(),
            restrict_response_topics: false,
            discovery_prefix: None,
            fleet: None,
        }
    }

    /// Checks the names and ranges.
    ///
    /// # Errors
    /// Which value cannot be used, and why.
    pub fn check(&self) -> Result<(), ConfigError> {
        let topics = topic::Topics::new(&self.base_topic, &self.node)?;
        // MQTT has 16 bits for the seconds, and 0 would be none at all.
        let seconds = self.keep_alive.as_secs();
        if !(1..=u64::from(u16::MAX)).contains(&seconds) {
            return Err(ConfigError::KeepAlive(seconds));
        }
        let wrong =
            |what, value: &str, why| Err(ConfigError::Name { what, value: value.to_owned(), why });
        let client_id = self.client_id();
        if client_id.is_empty() || client_id.len() > 256 || client_id.chars().any(char::is_control)
        {
            return wrong(
                "the client id",
                &client_id,
                "has to have 1 to 256 bytes without control characters",
            );
        }
        if let Some(prefix) = &self.discovery_prefix
            && let Err(why) = topics.check_reply(prefix)
        {
            return wrong("the discovery prefix", prefix, why);
        }
        if let Some(fleet) = &self.fleet
            && !topic::is_level(&fleet.group, MAX_GROUP_BYTES)
        {
            let why = "has to have 1 to 64 bytes without `+`, `#`, `/` or control characters";
            return wrong("the fleet's group", &fleet.group, why);
        }
        for prefix in &self.reply_prefixes {
            if let Err(why) = topics.check_reply(prefix) {
                return wrong("the reply prefix", prefix, why);
            }
        }
        if self.brokers.is_empty() {
            return Err(ConfigError::NoBroker);
        }
        let has_password = self.password.is_some() || self.password_file.is_some();
        let has_name = |broker: &BrokerUrl| self.username.is_some() || broker.username.is_some();
        if has_password && !self.brokers.iter().all(has_name) {
            return Err(ConfigError::PasswordAlone);
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return Err(ConfigError::HalfACertificate);
        }
        Ok(())
    }

    fn client_id(&self) -> String {
        self.client_id
            .clone()
            .unwrap_or_else(|| format!("{}-{}", self.base_topic.replace('/', "-"), self.node))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut form = f.debug_struct("Config");
        form.field("brokers", &self.brokers).field("username", &self.username);
        form.field("password", &self.password.as_ref().map(|_| "…"))
            .field("password_file", &self.password_file)
            .field("tls", &self.tls)
            .field("base_topic", &self.base_topic);
        form.field("node", &self.node)
            .field("client_id", &self.client_id)
            .field("keep_alive", &self.keep_alive);
        form.field("reply_prefixes", &self.reply_prefixes);
        form.field("restrict_response_topics", &self.restrict_response_topics)
            .field("discovery_prefix", &self.discovery_prefix)
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}

/// What in a [`Config`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A name that cannot stand in a topic.
    #[error("{what} `{}` {why}", value.escape_debug())]
    Name {
        /// Which name.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The ping interval is out of range.
    #[error("a keep-alive of {0} s is out of range: 1 to 65535 s are possible")]
    KeepAlive(u64),
    /// A password without a user name.
    #[error("there is a password for the broker but no user name; set mqtt.username")]
    PasswordAlone,
    /// A certificate without its key, or the other way round.
    #[error(
        "a client certificate needs mqtt.tls.certificate_file and mqtt.tls.key_file, both or neither"
    )]
    HalfACertificate,
    /// No address.
    #[error("there is no broker; set mqtt.url")]
    NoBroker,
}

/// What the door tells about promptd and reads requests against.
#[derive(Clone, Debug)]
pub struct Facts {
    /// promptd's version.
    pub version: String,
    /// The profiles the operator wrote, and who may what.
    pub policies: Policies,
    /// Who does what `request/…` asks; `None`: nobody may ask.
    pub control: Option<Control>,
    /// How large requests may be.
    pub limits: Limits,
    /// Who is told how the door stands with its broker.
    pub broker: watch::Sender<Broker>,
    /// Where accepted prompts outlast the service; `None`: nowhere.
    pub record: Option<Record>,
    /// What the health is read from.
    pub board: Board,
    /// Which of the kept models is in use and which came last; `None`: the configuration names another.
    pub versions: watch::Receiver<Option<ModelVersions>>,
}

/// Serves prompts from the broker until `shutdown` is true or its sender is gone, then says goodbye and returns, within
/// a few seconds.
///
/// A broker that cannot be reached is tried for ever; that is logged and disturbs nothing else. To end well, drain the
/// scheduler first, wait until it is idle, and then set `shutdown`: a prompt that is still in work then is left
/// unacknowledged, so that the broker sends it again at the next start.
///
/// # Errors
/// [`Config::check`]'s, before anything else happens.
pub async fn serve(
    config: Config,
    scheduler: Scheduler,
    facts: Facts,
    shutdown: watch::Receiver<bool>,
) -> Result<(), ConfigError> {
    config.check()?;
    door::run(&config, scheduler, facts, shutdown).await
}

#[cfg(test)]
mod fuzz_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(BrokerUrl::parse("mqtt://me:hunter2@localhost").unwrap(), "n")
    }

    #[test]
    fn usual() {
        config().check().unwrap();
        assert_eq!(config().client_id(), "promptd-n");
        assert!(
            !format!("{:?}", Config { password: Some("hunter2".into()), ..config() })
                .contains("hunter2")
        );
    }

    #[test]
    fn wrong() {
        let broker = BrokerUrl::parse("mqtt://localhost").unwrap();
        let table = [
            (Config { keep_alive: Duration::from_millis(400), ..config() }, "1 to 65535"),
            (Config { keep_alive: Duration::from_hours(24), ..config() }, "1 to 65535"),
            (Config { node: "a/b".into(), ..config() }, "the node `a/b`"),
            (Config { base_topic: "#".into(), ..config() }, "the base topic `#`"),
            (Config { client_id: Some(String::new()), ..config() }, "the client id"),
            (
                Config { reply_prefixes: vec!["promptd/n/ask".into()], ..config() },
                "the reply prefix",
            ),
            (
                Config { brokers: vec![broker], password: Some("x".into()), ..config() },
                "no user name",
            ),
            (Config { brokers: Vec::new(), ..config() }, "no broker"),
            (
                Config {
                    tls: TlsFiles { key: Some("k".into()), ..TlsFiles::default() },
                    ..config()
                },
                "both or neither",
            ),
        ];
        for (config, text) in table {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
