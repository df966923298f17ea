//! What the broker's access rules refuse promptd: told in the log and in the status, tried again, and forgotten as soon as it is
//! allowed. A broker says so in its answers to SUBSCRIBE and, in MQTT 5, to PUBLISH; one that accepts a subscription and delivers
//! nothing (mosquitto's `acl_file`), or drops a message without a word (MQTT 3.1.1), shows in nothing that could be told here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::client::{Purpose, Subscribed};
use super::door::Door;
use super::seldom::Seldom;
use crate::wire::Denied;

/// What a client may choose (the Response Topic) must not fill the status. More topics than promptd itself has.
const MOST: usize = 24;
/// An answer's topic may never be written to again; then nobody wants to read of it for ever.
const REMEMBERED: Duration = Duration::from_mins(10);
/// The first try is soon, for whoever is just writing the rules; then twice as long each time, up to a minute.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(1);

#[derive(Debug)]
struct Entry {
    /// What the subscription is for; `None`: promptd wanted to publish there.
    purpose: Option<Purpose>,
    reason: String,
    last: Instant,
}

/// The topics that are refused.
#[derive(Debug)]
pub(super) struct Denials {
    entries: BTreeMap<String, Entry>,
    said: Seldom,
    wait: Duration,
    again: Option<Instant>,
}

impl Default for Denials {
    fn default() -> Self {
        Denials { entries: BTreeMap::new(), said: Seldom::default(), wait: FIRST, again: None }
    }
}

impl Denials {
    /// How long until the next try, where that takes a new connection.
    pub(super) fn next_wait(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        wait
    }

    /// When something is tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.again
    }

    /// Notes a refusal; says whether it is news.
    fn note(&mut self, purpose: Option<Purpose>, topic: &str, reason: &str, now: Instant) -> bool {
        self.again.get_or_insert(now + self.wait);
        let entry = Entry { purpose, reason: reason.to_owned(), last: now };
        if self.entries.len() >= MOST && !self.entries.contains_key(topic) {
            return false;
        }
        self.entries.insert(topic.to_owned(), entry).is_none()
    }

    /// Notes that a topic is allowed; says whether it was not.
    fn allowed(&mut self, topic: &str) -> bool {
        let was = self.entries.remove(topic).is_some();
        if self.entries.is_empty() {
            (self.wait, self.again) = (FIRST, None);
        }
        was
    }

    /// Whether it is time to try again; the next time is later.
    fn is_due(&mut self, now: Instant) -> bool {
        if self.again.is_none_or(|at| now < at) {
            return false;
        }
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.last) < REMEMBERED);
        self.wait = (self.wait * 2).min(LONGEST);
        self.again = (!self.entries.is_empty()).then(|| now + self.wait);
        true
    }

    fn has(&self, purpose: Option<Purpose>) -> bool {
        self.entries.values().any(|entry| entry.purpose == purpose)
    }

    fn told(&self) -> Vec<Denied> {
        let tell = |(topic, entry): (&String, &Entry)| Denied {
            action: if entry.purpose.is_some() { "subscribe" } else { "publish" },
            topic: topic.clone(),
            reason: entry.reason.clone(),
        };
        self.entries.iter().map(tell).collect()
    }
}

impl Door {
    /// The broker answered a subscription.
    pub(super) fn heard_of(&mut self, answer: &Subscribed, now: Instant) {
        let (mut new, mut why) = (Vec::new(), "");
        for (topic, refused) in &answer.topics {
            let Some(reason) = refused else {
                self.allow(topic);
                continue;
            };
            self.followed.remove(topic);
            if self.denials.note(Some(answer.purpose), topic, reason, now) {
                new.push(topic.as_str());
                why = reason;
            }
        }
        if !new.is_empty() {
            warn!(
                topics = new.join(", "),
                reason = why,
                "the broker does not let promptd listen; its access rules have to allow this user to read these topics"
            );
        }
        self.tell_denials();
    }

    /// The broker took a message, or says why not.
    pub(super) fn heard_back(&mut self, topic: &str, refused: Option<String>, now: Instant) {
        let topic = self.rule(topic);
        let Some(reason) = refused else {
            self.allow(&topic);
            return self.tell_denials();
        };
        self.denials.note(None, &topic, &reason, now);
        if let Some(others) = self.denials.said.now(now) {
            warn!(
                others,
                topic,
                reason,
                "the broker did not take a message; its access rules have to allow this user to write to this topic"
            );
        }
        self.tell_denials();
    }

    /// Tries again what was refused, where that does not happen by itself.
    pub(super) fn try_denied_again(&mut self, now: Instant) {
        if !self.is_listening() || !self.denials.is_due(now) {
            return;
        }
        self.tell_denials();
        if self.denials.has(Some(Purpose::Besides)) {
            self.listen_again();
        }
        // What a fleet listens to is spread over two connections.
        if self.denials.has(Some(Purpose::Fleet)) {
            self.listen_to_fleet();
        }
        if [Purpose::Fleet, Purpose::Hops].into_iter().any(|of| self.denials.has(Some(of))) {
            self.share_anew();
        }
        if self.denials.has(None) {
            // The states; an answer is not given twice.
            self.tell_states_anew(now);
        }
    }

    fn allow(&mut self, topic: &str) {
        if self.denials.allowed(topic) {
            info!(topic, "the broker allows promptd this topic now");
        }
    }

    fn tell_denials(&self) {
        let told = self.denials.told();
        self.facts.broker.send_if_modified(|broker| {
            let is_new = broker.denied != told;
            if is_new {
                broker.denied = told;
            }
            is_new
        });
    }

    /// What a rule would be written for: the answers of all ids are one.
    fn rule(&self, topic: &str) -> String {
        let answers = self.topics.answer(None);
        let is_one = topic.strip_prefix(&answers).is_some_and(|rest| rest.starts_with('/'));
        if is_one { format!("{answers}/#") } else { topic.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_kept_until_they_end_or_nobody_asks_any_more() {
        let (mut denials, start) = (Denials::default(), Instant::now());
        assert!(denials.note(Some(Purpose::Besides), "a", "not authorized", start));
        assert!(!denials.note(Some(Purpose::Besides), "a", "not authorized", start));
        assert!(denials.note(None, "b", "quota exceeded", start));
        assert_eq!(denials.told().len(), 2);
        assert!(!denials.is_due(start + FIRST / 2) && denials.is_due(start + FIRST));
        assert_eq!(denials.due(), Some(start + FIRST * 3), "twice as long");
        assert!(denials.allowed("a") && !denials.allowed("a"));
        assert!(denials.is_due(start + REMEMBERED));
        assert_eq!((denials.told(), denials.due()), (Vec::new(), None));
        for number in 0..2 * MOST {
            denials.note(None, &number.to_string(), "not authorized", start);
        }
        assert_eq!(denials.told().len(), MOST);
    }
}
