//! The names of promptd's topics, and which topics it may answer to. Pure text, no broker.

use super::ConfigError;
use crate::wire::payload::InfoEndpoints;

/// The most bytes of a topic that promptd answers to. MQTT's own limit is 65,535; an honest topic is a few levels
/// long, and each answer in the outbox carries its own.
pub(crate) const MAX_REPLY_TOPIC_BYTES: usize = 1024;
/// The most bytes of the base topic: it stands in front of every topic.
const MAX_BASE_BYTES: usize = 128;
/// The most bytes of a node's name: a DNS label has 63, and it is part of the client id.
const MAX_NODE_BYTES: usize = 64;
/// The most bytes of an id that becomes a topic level.
pub(crate) const MAX_ID_BYTES: usize = 128;
/// The node name that means whichever board is free; no board may have it.
const ANY: &str = "any";

/// The topics of one node: `<base>/<node>/…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topics {
    base: String,
    root: String,
}

/// What a message on one of promptd's own topics is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Inbound<'a> {
    /// A prompt, for a profile where the topic names one.
    Ask(Option<&'a str>),
    /// A prompt for whichever board of the fleet is free.
    Shared(Option<&'a str>),
    /// Such a prompt, handed on by another board.
    Handed(Option<&'a str>),
    /// A request to stop a prompt.
    Cancel,
    /// An operator's request: `load`, `unload`, …
    Request(&'a str),
}

impl Topics {
    /// Checks the two names and puts them together.
    pub(crate) fn new(base: &str, node: &str) -> Result<Topics, ConfigError> {
        let wrong =
            |what, value: &str, why| Err(ConfigError::Name { what, value: value.to_owned(), why });
        if base.is_empty() || base.len() > MAX_BASE_BYTES {
            return wrong("the base topic", base, "has to have 1 to 128 bytes");
        }
        if base.starts_with('$') {
            return wrong(
                "the base topic",
                base,
                "may not begin with `$`: such topics belong to the broker",
            );
        }
        if base.split('/').any(|level| !is_level(level, MAX_BASE_BYTES)) {
            return wrong(
                "the base topic",
                base,
                "may have no empty level, no `+`, no `#` and no control character",
            );
        }
        if !is_level(node, MAX_NODE_BYTES) {
            return wrong(
                "the node",
                node,
                "has to have 1 to 64 bytes without `+`, `#`, `/` or control characters",
            );
        }
        if node == ANY {
            return wrong("the node", node, "may not be `any`: that means whichever board is free");
        }
        Ok(Topics { base: base.to_owned(), root: format!("{base}/{node}") })
    }

    fn node(&self) -> &str {
        self.root.get(self.base.len() + 1..).unwrap_or_default()
    }

    /// What promptd subscribes to. `ask/#` matches `ask` itself too (MQTT 5, 4.7.1.2).
    pub(crate) fn subscriptions(&self) -> [String; 2] {
        [format!("{}/ask/#", self.root), self.cancel()]
    }

    /// Where prompts are stopped on whichever board has them.
    pub(crate) fn cancel_any(&self) -> String {
        format!("{}/{ANY}/cancel", self.base)
    }

    /// What a board of a fleet subscribes to for what others hand on to it. `hop/#` matches `hop` itself too.
    pub(crate) fn hops(&self, node: &str) -> String {
        format!("{}/{node}/hop/#", self.base)
    }

    /// The shared subscription of a fleet (MQTT 5, 4.8.2; mosquitto and others have it in 3.1.1 as well).
    pub(crate) fn shared(&self, group: &str) -> String {
        format!("$share/{group}/{}/{ANY}/ask/#", self.base)
    }

    /// Where the boards of a fleet tell each other how they stand.
    pub(crate) fn peers(&self) -> [String; 2] {
        [format!("{}/+/status", self.base), format!("{}/+/availability", self.base)]
    }

    /// Which board says something of itself on this topic, and what: `status` or `availability`.
    pub(crate) fn peer<'a>(&self, topic: &'a str) -> Option<(&'a str, &'a str)> {
        let rest = topic.strip_prefix(self.base.as_str())?.strip_prefix('/')?;
        let (node, what) = rest.split_once('/')?;
        (node != self.node() && matches!(what, "status" | "availability")).then_some((node, what))
    }

    /// Where a prompt is handed on to another board.
    pub(crate) fn hop(&self, node: &str, profile: Option<&str>) -> String {
        match profile {
            Some(profile) => format!("{}/{node}/hop/{profile}", self.base),
            None => format!("{}/{node}/hop", self.base),
        }
    }

    /// Whether it is a topic on which boards hand each other prompts.
    pub(crate) fn is_hop(&self, topic: &str) -> bool {
        let beneath =
            topic.strip_prefix(self.base.as_str()).and_then(|rest| rest.strip_prefix('/'));
        let rest = beneath.and_then(|beneath| beneath.split_once('/')).map(|(_, rest)| rest);
        rest.is_some_and(|rest| behind(rest, "hop").is_some())
    }

    /// What a message on this topic is; `None` where promptd has nothing to do with it.
    pub(crate) fn parse<'a>(&self, topic: &'a str) -> Option<Inbound<'a>> {
        let beneath = topic.strip_prefix(self.base.as_str())?.strip_prefix('/')?;
        if let Some(rest) = beneath.strip_prefix(ANY).and_then(|rest| rest.strip_prefix('/')) {
            return match rest {
                "cancel" => Some(Inbound::Cancel),
                rest => behind(rest, "ask").map(|behind| Inbound::Shared(profile(behind))),
            };
        }
        let (node, rest) = beneath.split_once('/')?;
        if node != self.node() {
            // Nobody else's topics are subscribed to; this lay in the session of a board that is gone, and whoever has taken
            // that over may hand it on again.
            return behind(rest, "hop").map(|behind| Inbound::Shared(profile(behind)));
        }
        if rest == "cancel" {
            return Some(Inbound::Cancel);
        }
        behind(rest, "ask")
            .map(|behind| Inbound::Ask(profile(behind)))
            .or_else(|| behind(rest, "hop").map(|behind| Inbound::Handed(profile(behind))))
            .or_else(|| rest.strip_prefix("request/").map(Inbound::Request))
    }

    /// What clients have to do with; boards that share prompts and operators that may ask have more.
    pub(crate) fn endpoints(&self, shares: bool, admin: bool) -> InfoEndpoints {
        let own = |verb: &str| format!("{}/{verb}", self.root);
        InfoEndpoints {
            ask: self.ask(),
            ask_any: shares.then(|| format!("{}/{ANY}/ask", self.base)),
            cancel: self.cancel(),
            request: admin.then(|| own("request")),
            answer: self.answer(None),
            stream: own("stream"),
            progress: own("progress"),
        }
    }

    /// Where an operator asks, if that is allowed.
    pub(crate) fn requests(&self) -> String {
        format!("{}/request/+", self.root)
    }

    /// Where an operator asks for this.
    pub(crate) fn request(&self, operation: &str) -> String {
        format!("{}/request/{operation}", self.root)
    }

    /// Where prompts come.
    pub(crate) fn ask(&self) -> String {
        format!("{}/ask", self.root)
    }

    /// Where an operator is answered who named no topic.
    pub(crate) fn response(&self, operation: &str) -> String {
        format!("{}/response/{operation}", self.root)
    }

    /// Where prompts are stopped.
    pub(crate) fn cancel(&self) -> String {
        format!("{}/cancel", self.root)
    }

    /// Where an answer goes whose asker named no topic.
    pub(crate) fn answer(&self, id: Option<&str>) -> String {
        match id {
            Some(id) if is_id(id) => format!("{}/answer/{id}", self.root),
            _ => format!("{}/answer", self.root),
        }
    }

    /// Where the pieces of an answer go.
    pub(crate) fn stream(&self, id: &str) -> String {
        format!("{}/stream/{id}", self.root)
    }

    /// Where a prompt's way through the queue and the model is told.
    pub(crate) fn progress(&self, id: &str) -> String {
        format!("{}/progress/{id}", self.root)
    }

    /// Where `online` and `offline` stand.
    pub(crate) fn availability(&self) -> String {
        format!("{}/availability", self.root)
    }

    /// Where the state stands.
    pub(crate) fn status(&self) -> String {
        format!("{}/status", self.root)
    }

    /// Where it is told every minute how promptd is.
    pub(crate) fn health(&self) -> String {
        format!("{}/health", self.root)
    }

    /// Where version, model and limits stand.
    pub(crate) fn info(&self) -> String {
        format!("{}/info", self.root)
    }

    /// Whether promptd may publish an answer to a topic that an asker named.
    ///
    /// # Errors
    /// What is wrong with the topic, in words that stand behind its name.
    pub(crate) fn check_reply(&self, topic: &str) -> Result<(), &'static str> {
        if topic.is_empty() {
            return Err("is empty");
        }
        if topic.len() > MAX_REPLY_TOPIC_BYTES {
            return Err("is longer than 1024 bytes");
        }
        if topic.contains(['+', '#']) {
            return Err("holds a wildcard (`+` or `#`); answers go to one topic");
        }
        if topic.starts_with('$') {
            return Err("begins with `$`; such topics belong to the broker");
        }
        // A broker throws out whoever publishes to such a topic, again and again.
        if topic.chars().any(is_not_for_topics) {
            return Err("holds a character that MQTT forbids in topics");
        }
        if topic.len() > self.base.len() {
            let beneath =
                topic.strip_prefix(self.base.as_str()).and_then(|rest| rest.strip_prefix('/'));
            // Under the base topic live prompts and states of every board: an answer there would be read as a prompt
            // (a loop) or as a state. Answers belong under `<node>/answer`.
            let verb = beneath.map(|beneath| beneath.split('/').nth(1).unwrap_or_default());
            if verb.is_some_and(|verb| verb != "answer") {
                return Err(
                    "is one of promptd's own topics; under them answers go only to `…/answer/…`",
                );
            }
        } else if topic == self.base {
            return Err("is promptd's own base topic");
        }
        Ok(())
    }

    /// Whether `topic` lies under this node's `answer`, where every asker may have its answers put.
    pub(crate) fn is_own_answer(&self, topic: &str) -> bool {
        is_under(topic, &format!("{}/answer", self.root))
    }
}

/// What stands behind a verb, with the slash before it: nothing behind `ask`, `/lights` behind `ask/lights`.
fn behind<'a>(rest: &'a str, verb: &str) -> Option<&'a str> {
    rest.strip_prefix(verb).filter(|behind| behind.is_empty() || behind.starts_with('/'))
}

/// The profile, where there is one.
fn profile(behind: &str) -> Option<&str> {
    behind.strip_prefix('/')
}

/// Whether `topic` is `prefix` or lies beneath it, level by level: `a/bc` is not under `a/b`. A `/` at the prefix's
/// end changes nothing.
pub(crate) fn is_under(topic: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    topic.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        && !prefix.is_empty()
}

/// Whether an id can be a topic level.
pub(crate) fn is_id(id: &str) -> bool {
    is_level(id, MAX_ID_BYTES)
}

pub(super) fn is_level(text: &str, most: usize) -> bool {
    !text.is_empty()
        && text.len() <= most
        && !text.chars().any(|c| matches!(c, '+' | '#' | '/') || is_not_for_topics(c))
}

/// Control characters and Unicode non-characters: MQTT 5 (1.5.4) lets the receiver close the connection for them,
/// and mosquitto does.
fn is_not_for_topics(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("promptd", "n").unwrap()
    }

    #[test]
    fn names_that_cannot_be_used() {
        for (base, node) in [
            ("", "n"),
            ("$SYS", "n"),
            ("/promptd", "n"),
            ("promptd/", "n"),
            ("a//b", "n"),
            ("a/+/b", "n"),
            ("a#", "n"),
            ("a\0", "n"),
            ("promptd", ""),
            ("promptd", "a/b"),
            ("promptd", "a+"),
            ("promptd", "any"),
            ("promptd", "\u{1}"),
        ] {
            assert!(Topics::new(base, node).is_err(), "{base:?} {node:?}");
        }
        assert!(Topics::new("promptd", &"n".repeat(65)).is_err());
        assert!(Topics::new(&"b".repeat(129), "n").is_err());
        assert!(Topics::new("home/ground floor/promptd", "küche").is_ok());
    }

    #[test]
    fn what_a_topic_means() {
        let table = [
            ("promptd/n/ask", Some(Inbound::Ask(None))),
            ("promptd/n/ask/lights", Some(Inbound::Ask(Some("lights")))),
            ("promptd/n/ask/a/b", Some(Inbound::Ask(Some("a/b")))),
            ("promptd/n/ask/", Some(Inbound::Ask(Some("")))),
            ("promptd/n/cancel", Some(Inbound::Cancel)),
            ("promptd/n/asked", None),
            ("promptd/n", None),
            ("promptd/nn/ask", None),
            ("promptd/m/ask", None),
            ("promptd/any/ask", Some(Inbound::Shared(None))),
            ("promptd/any/ask/lights", Some(Inbound::Shared(Some("lights")))),
            ("promptd/any/cancel", Some(Inbound::Cancel)),
            ("promptd/n/hop", Some(Inbound::Handed(None))),
            ("promptd/n/hop/lights", Some(Inbound::Handed(Some("lights")))),
            ("promptd/m/hop", Some(Inbound::Shared(None))),
            ("promptd/m/hop/lights", Some(Inbound::Shared(Some("lights")))),
            ("promptd/m/hops", None),
            ("promptd/m/cancel", None),
            ("promptd/m/request/unload", None),
            ("other/n/ask", None),
            ("", None),
        ];
        for (topic, want) in table {
            assert_eq!(topics().parse(topic), want, "{topic}");
            assert_eq!(topics().is_hop(topic), topic.contains("/hop") && !topic.contains("/hops"));
        }
    }

    #[test]
    fn where_answers_may_go() {
        let long = "x".repeat(MAX_REPLY_TOPIC_BYTES + 1);
        for bad in [
            "",
            "a/#",
            "a/+/b",
            "$SYS/x",
            "$share/g/t",
            "a\0b",
            "a\u{1}b",
            "a\u{FFFE}",
            "a\u{FDD0}",
            long.as_str(),
            "promptd/n/ask",
            "promptd/n/ask/lights",
            "promptd/n/cancel",
            "promptd/n/availability",
            "promptd/n/status",
            "promptd/m/ask",
            "promptd/any/ask",
            "promptd/n/request/load",
            "promptd",
            "promptd/n",
            "promptd/",
        ] {
            assert!(topics().check_reply(bad).is_err(), "{bad:?}");
        }
        for good in [
            "me/r",
            "promptd/n/answer",
            "promptd/n/answer/x/y",
            "promptdx/n/ask",
            "/",
            "a b",
            "ä",
            "prompt",
        ] {
            assert_eq!(topics().check_reply(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn prefixes_end_at_levels() {
        for (topic, prefix, want) in [
            ("a/b/c", "a/b", true),
            ("a/b", "a/b", true),
            ("a/b/", "a/b/", true),
            ("a/bc", "a/b", false),
            ("a", "a/b", false),
            ("a", "", false),
            ("/a", "/", false),
        ] {
            assert_eq!(is_under(topic, prefix), want, "{topic} under {prefix}");
        }
    }

    #[test]
    fn an_id_that_is_no_level_gets_no_topic_of_its_own() {
        assert_eq!(topics().answer(Some("esp32-7:42")), "promptd/n/answer/esp32-7:42");
        for id in ["a/b", "#", "", "a+b", "\0"] {
            assert_eq!(topics().answer(Some(id)), "promptd/n/answer", "{id:?}");
        }
        assert_eq!(topics().answer(None), "promptd/n/answer");
    }

    #[test]
    fn promptd_never_answers_to_what_it_listens_to() {
        for filter in topics().subscriptions() {
            let topic = filter.trim_end_matches("/#");
            assert!(topics().check_reply(topic).is_err(), "{topic}");
            assert!(topics().parse(topic).is_some(), "{topic}");
        }
    }
}
