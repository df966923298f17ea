//! The MQTT door: takes prompts from topics, gives answers to topics, and tells how promptd is. Knows no model.
//!
//! | file | what it is |
//! |---|---|
//! | `url`, `topic` | the broker's address, the names of topics |
//! | `message`, `reply` | a message, an address and the messages of an answer |
//! | `outbox`, `ledger`, `backoff` | what must still be sent, what is in work or was answered, when to connect again |
//! | `client`, `link` | the library, and the task that keeps a connection |
//! | `prompt` | a prompt's way through the scheduler |
//! | `seldom` | which lines of the log are held back |
//! | `door` | the one task that owns all of this |
//! | `inbound`, `outcome`, `states`, `goodbye` | what it does with messages, with what happens to a prompt, what it tells about promptd, how it leaves |
//! | `values`, `admin` | the topics whose values profiles put into prompts, and what an operator asks |
//!
//! A prompt that the broker wants acknowledged (`QoS` 1) is acknowledged when it is safe in the record, or after the broker
//! took its answer, whichever comes first: if promptd dies before, the broker sends the prompt again; if it dies after,
//! the record has it. Acknowledgements go out in this order, not in that of the prompts; a quick refusal is not held up
//! by a slow answer. Brokers do not insist on the order.

mod admin;
mod backoff;
mod client;
mod door;
mod goodbye;
mod inbound;
mod ledger;
mod link;
mod message;
mod outbox;
mod outcome;
mod prompt;
mod reply;
mod restore;
mod seldom;
mod shelf;
mod states;
mod topic;
mod url;
mod values;

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;

pub use self::url::{BrokerUrl, UrlError};
use crate::control::Control;
use crate::record::Record;
use crate::scheduler::Scheduler;
use crate::wire::{Limits, Policies};

/// How the door reaches its broker and which topics it has.
#[derive(Clone)]
pub struct Config {
    /// The broker.
    pub broker: BrokerUrl,
    /// The user name; goes before the one in the address.
    pub username: Option<String>,
    /// The password; goes before the one in the address.
    pub password: Option<String>,
    /// The first level or levels of every topic.
    pub base_topic: String,
    /// The board's level in every topic; no other board on the broker may have the same.
    pub node: String,
    /// The name the broker knows the connection by; `None` is `<base>-<node>`. It has to stay the same from start to
    /// start, because the broker keeps prompts for it.
    pub client_id: Option<String>,
    /// How often the broker is pinged; a silent one is given up after one and a half times this. 5 s to 18 h.
    pub keep_alive: Duration,
    /// Topics under which requests may have their answers put with `reply_to`. Empty: only under `<node>/answer`.
    pub reply_prefixes: Vec<String>,
    /// Whether MQTT 5's Response Topic is held to these prefixes as well. promptd writes wherever the Response Topic
    /// says, with its own rights; where not every client may be trusted with those, this is the switch.
    pub restrict_response_topics: bool,
}

impl Config {
    /// A door to this broker, all else as usual.
    pub fn new(broker: BrokerUrl, node: impl Into<String>) -> Config {
        Config {
            broker,
            username: None,
            password: None,
            base_topic: "promptd".to_owned(),
            node: node.into(),
            client_id: None,
            keep_alive: Duration::from_secs(30),
            reply_prefixes: Vec::new(),
            restrict_response_topics: false,
        }
    }

    /// Checks the names and ranges.
    ///
    /// # Errors
    /// Which value cannot be used, and why.
    pub fn check(&self) -> Result<(), ConfigError> {
        let topics = topic::Topics::new(&self.base_topic, &self.node)?;
        // The library takes 5 s at least; MQTT has 16 bits for the seconds.
        let seconds = self.keep_alive.as_secs();
        if !(5..=u64::from(u16::MAX)).contains(&seconds) {
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
        for prefix in &self.reply_prefixes {
            if let Err(why) = topics.check_reply(prefix) {
                return wrong("the reply prefix", prefix, why);
            }
        }
        if self.password.is_some() && self.username.is_none() && self.broker.username.is_none() {
            return Err(ConfigError::PasswordAlone);
        }
        Ok(())
    }

    fn client_id(&self) -> String {
        self.client_id
            .clone()
            .unwrap_or_else(|| format!("{}-{}", self.base_topic.replace('/', "-"), self.node))
    }

    fn login(&self) -> Option<(String, String)> {
        let user = self.username.clone().or_else(|| self.broker.username.clone())?;
        Some((
            user,
            self.password.clone().or_else(|| self.broker.password.clone()).unwrap_or_default(),
        ))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut form = f.debug_struct("Config");
        form.field("broker", &self.broker).field("username", &self.username);
        form.field("password", &self.password.as_ref().map(|_| "…"))
            .field("base_topic", &self.base_topic);
        form.field("node", &self.node)
            .field("client_id", &self.client_id)
            .field("keep_alive", &self.keep_alive);
        form.field("reply_prefixes", &self.reply_prefixes);
        form.field("restrict_response_topics", &self.restrict_response_topics).finish()
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
    #[error("a keep-alive of {0} s is out of range: 5 to 65535 s are possible")]
    KeepAlive(u64),
    /// A password without a user name.
    #[error("there is a password for the broker but no user name; set mqtt.username")]
    PasswordAlone,
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
    /// Where accepted prompts outlast the service; `None`: nowhere.
    pub record: Option<Record>,
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
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(BrokerUrl::parse("mqtt://me:hunter2@localhost").unwrap(), "n")
    }

    #[test]
    fn usual() {
        config().check().unwrap();
        assert_eq!(config().client_id(), "promptd-n");
        assert_eq!(config().login(), Some(("me".into(), "hunter2".into())));
        let own =
            Config { username: Some("you".into()), password: Some("other".into()), ..config() };
        assert_eq!(own.login(), Some(("you".into(), "other".into())));
        assert!(
            !format!("{:?}", Config { password: Some("hunter2".into()), ..config() })
                .contains("hunter2")
        );
    }

    #[test]
    fn wrong() {
        let broker = BrokerUrl::parse("mqtt://localhost").unwrap();
        let table = [
            (Config { keep_alive: Duration::from_secs(4), ..config() }, "5 to 65535"),
            (Config { keep_alive: Duration::from_hours(24), ..config() }, "5 to 65535"),
            (Config { node: "a/b".into(), ..config() }, "the node `a/b`"),
            (Config { base_topic: "#".into(), ..config() }, "the base topic `#`"),
            (Config { client_id: Some(String::new()), ..config() }, "the client id"),
            (
                Config { reply_prefixes: vec!["promptd/n/ask".into()], ..config() },
                "the reply prefix",
            ),
            (Config { broker, password: Some("x".into()), ..config() }, "no user name"),
        ];
        for (config, text) in table {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
