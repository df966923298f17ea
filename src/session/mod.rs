//! Conversations that promptd keeps for clients that cannot resend them. Bounded in number, turns and tokens; time is a
//! parameter; where they last is behind [`Store`].

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::request::{Identity, Input, Message, Role};

/// What the operator decides about sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions of everybody together. Each is as large as a context at most.
    pub count: usize,
    /// Sessions of one client.
    pub per_client: usize,
    /// Turns (a question and its answer) that are kept.
    pub turns: usize,
    /// Tokens that a prompt may have with all its turns; 0: as many as the context has room for.
    pub tokens: u32,
    /// A session that was not used for this long is forgotten.
    pub expires: Duration,
    /// What happens to a conversation that has become too long.
    pub overflow: Overflow,
}

impl Default for Limits {
    /// A board has a few dozen devices; a person comes back to a conversation within the hour, or begins another.
    fn default() -> Self {
        Limits {
            count: 64,
            per_client: 8,
            turns: 32,
            tokens: 0,
            expires: Duration::from_hours(1),
            overflow: Overflow::Drop,
        }
    }
}

/// What happens to a conversation that has become too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// Its oldest turns are dropped, and the answer says how many.
    #[default]
    Drop,
    /// The prompt is refused.
    Refuse,
}

/// Whose conversation, by which name. Two clients with the same name for theirs never see each other's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Whose.
    pub client: String,
    /// The client's name for it.
    pub name: String,
}

impl Key {
    /// The key of a client's session.
    pub fn new(client: &Identity, name: &str) -> Self {
        Key { client: client.0.clone(), name: name.to_owned() }
    }
}

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What was asked.
    pub question: String,
    /// What was answered.
    pub answer: String,
    /// The record's number of the prompt, where it has one: a prompt that is run again after a crash does not continue its
    /// own answer.
    pub prompt: Option<u64>,
}

impl Turn {
    fn bytes(&self) -> usize {
        self.question.len() + self.answer.len()
    }
}

/// Where sessions last. Called after every change, with the whole session: a store that forgets loses conversations, but
/// none is ever mixed with another.
pub trait Store: Send {
    /// The sessions that were kept, each with the time since it was last used.
    fn load(&mut self) -> Vec<(Key, Vec<Turn>, Duration)>;
    /// A session has changed.
    fn save(&mut self, key: &Key, turns: &[Turn]);
    /// A session is over.
    fn remove(&mut self, key: &Key);
}

/// Keeps sessions as long as the service runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct InMemory;

impl Store for InMemory {
    fn load(&mut self) -> Vec<(Key, Vec<Turn>, Duration)> {
        Vec::new()
    }
    fn save(&mut self, _: &Key, _: &[Turn]) {}
    fn remove(&mut self, _: &Key) {}
}

/// All sessions.
pub struct Sessions {
    sessions: HashMap<Key, Session>,
    store: Box<dyn Store>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("count", &self.sessions.len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Session {
    turns: Vec<Turn>,
    used: Instant,
}

impl Sessions {
    /// What the store has kept; sessions that have expired meanwhile go with the next look.
    pub fn new(mut store: Box<dyn Store>, now: Instant) -> Self {
        let kept = store.load().into_iter().map(|(key, turns, idle)| {
            (key, Session { turns, used: now.checked_sub(idle).unwrap_or(now) })
        });
        Sessions { sessions: kept.collect(), store }
    }

    /// The turns of a session so far; none where it is new or has expired.
    pub fn turns(&mut self, key: &Key, limits: &Limits, now: Instant) -> Vec<Turn> {
        self.expire(limits, now);
        self.sessions.get(key).map_or_else(Vec::new, |session| session.turns.clone())
    }

    /// A prompt of the session was answered: these turns are what is kept now.
    pub fn keep(&mut self, key: Key, mut turns: Vec<Turn>, limits: &Limits, now: Instant) {
        self.expire(limits, now);
        let excess = turns.len().saturating_sub(limits.turns.max(1));
        turns.drain(..excess);
        self.store.save(&key, &turns);
        let client = key.client.clone();
        self.sessions.insert(key, Session { turns, used: now });
        while self.of(&client) > limits.per_client.max(1) {
            self.forget_oldest_of(&client);
        }
        while self.sessions.len() > limits.count.max(1) {
            let Some(client) = self.fullest() else { return };
            self.forget_oldest_of(&client);
        }
    }

    /// Ends a session. Says whether there was one.
    pub fn end(&mut self, key: &Key) -> bool {
        let known = self.sessions.remove(key).is_some();
        if known {
            self.store.remove(key);
        }
        known
    }

    fn expire(&mut self, limits: &Limits, now: Instant) {
        let store = &mut self.store;
        self.sessions.retain(|key, session| {
            let lives = now.saturating_duration_since(session.used) < limits.expires;
            if !lives {
                store.remove(key);
            }
            lives
        });
    }

    fn of(&self, client: &str) -> usize {
        self.sessions.keys().filter(|key| key.client == client).count()
    }

    /// Whoever has the most; among several, whose session was used the longest ago. So somebody who invents sessions
    /// pushes out his own first.
    fn fullest(&self) -> Option<String> {
        let mut each: BTreeMap<&str, (usize, Instant)> = BTreeMap::new();
        for (key, session) in &self.sessions {
            let (count, oldest) = each.entry(&key.client).or_insert((0, session.used));
            *count += 1;
            *oldest = session.used.min(*oldest);
        }
        let fullest = each
            .into_iter()
            .max_by_key(|(_, (count, oldest))| (*count, std::cmp::Reverse(*oldest)));
        fullest.map(|(client, _)| client.to_owned())
    }

    fn forget_oldest_of(&mut self, client: &str) {
        let own = self.sessions.iter().filter(|(key, _)| key.client == client);
        if let Some(key) = own.min_by_key(|(_, session)| session.used).map(|(key, _)| key.clone()) {
            self.end(&key);
        }
    }
}

/// Puts the turns between the system message and the question. `None` where the input is no single question: then there is
/// nothing that a session could continue.
pub fn continued(input: &Input, turns: &[Turn]) -> Option<(Input, String)> {
    let (system, question) = match input {
        Input::Ask { system, text } => (system.as_deref(), text.as_str()),
        Input::Chat(messages) => match messages.as_slice() {
            [user] if user.role == Role::User => (None, user.content.as_str()),
            [system, user] if system.role == Role::System && user.role == Role::User => {
                (Some(system.content.as_str()), user.content.as_str())
            }
            _ => return None,
        },
        Input::Completion(_) | Input::Embed(_) => return None,
    };
    let message = |role, content: &str| Message::new(role, content);
    let mut messages: Vec<Message> =
        system.map(|system| message(Role::System, system)).into_iter().collect();
    for turn in turns {
        messages.push(message(Role::User, &turn.question));
        messages.push(message(Role::Assistant, &turn.answer));
    }
    messages.push(message(Role::User, question));
    Some((Input::Chat(messages), question.to_owned()))
}

/// How many of the oldest turns to drop so that a prompt of `have` tokens comes down to `limit`: at least one, and by their
/// share of the text as many as will do. The engine counts again afterwards.
pub fn to_drop(turns: &[Turn], have: u64, limit: u64) -> usize {
    let all: usize = turns.iter().map(Turn::bytes).sum();
    let excess = u128::from(have.saturating_sub(limit));
    // Of all the text, so much is too much; the system message and the question count as if they were turns, so that
    // rather one more recount is needed than one turn too many is lost.
    let wanted = usize::try_from(excess * all as u128 / u128::from(have.max(1))).unwrap_or(all);
    let mut bytes = 0;
    let enough = turns.iter().position(|turn| {
        bytes += turn.bytes();
        bytes >= wanted
    });
    enough.map_or(turns.len(), |last| last + 1).clamp(1, turns.len().max(1))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn key(client: &str, name: &str) -> Key {
        Key::new(&Identity(client.to_owned()), name)
    }

    fn turn(n: usize) -> Turn {
        Turn { question: format!("q{n}"), answer: format!("a{n}"), prompt: None }
    }

    fn sessions() -> (Sessions, Instant) {
        let now = Instant::now();
        (Sessions::new(Box::new(InMemory), now), now)
    }

    #[test]
    fn a_session_is_its_clients_own_and_expires() {
        let ((mut sessions, now), limits) = (sessions(), Limits::default());
        sessions.keep(key("a", "s"), vec![turn(1)], &limits, now);
        assert_eq!(sessions.turns(&key("a", "s"), &limits, now), [turn(1)]);
        assert!(sessions.turns(&key("b", "s"), &limits, now).is_empty());
        let late = now + limits.expires;
        assert!(sessions.turns(&key("a", "s"), &limits, late).is_empty());
        sessions.keep(key("a", "s"), vec![turn(1)], &limits, late);
        assert!(sessions.end(&key("a", "s")) && !sessions.end(&key("a", "s")));
    }

    #[test]
    fn number_and_turns_are_bounded() {
        let ((mut sessions, now), limits) =
            (sessions(), Limits { count: 6, per_client: 4, turns: 3, ..Limits::default() });
        let at = |n: u64| now + Duration::from_secs(n);
        sessions.keep(key("a", "s"), (0..9).map(turn).collect(), &limits, now);
        assert_eq!(sessions.turns(&key("a", "s"), &limits, now), [turn(6), turn(7), turn(8)]);
        for n in 1..=9 {
            sessions.keep(key("flood", &n.to_string()), vec![turn(0)], &limits, at(n));
        }
        let has = |sessions: &mut Sessions, client, name: &str| {
            !sessions.turns(&key(client, name), &limits, at(9)).is_empty()
        };
        assert!(has(&mut sessions, "a", "s") && !has(&mut sessions, "flood", "5"));
        assert!(has(&mut sessions, "flood", "6"));
        // Six in all: the next two push out the flood's own.
        sessions.keep(key("b", "s"), vec![turn(0)], &limits, at(10));
        sessions.keep(key("c", "s"), vec![turn(0)], &limits, at(10));
        assert!(has(&mut sessions, "a", "s") && !has(&mut sessions, "flood", "6"));
        assert_eq!(sessions.sessions.len(), 6);
    }

    #[test]
    fn a_store_sees_every_change_and_brings_it_back() {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<String>>>);
        impl Store for Log {
            fn load(&mut self) -> Vec<(Key, Vec<Turn>, Duration)> {
                vec![(key("a", "old"), vec![turn(1)], Duration::from_secs(3000))]
            }
            fn save(&mut self, key: &Key, turns: &[Turn]) {
                self.0.lock().unwrap().push(format!("save {} {}", key.name, turns.len()));
            }
            fn remove(&mut self, key: &Key) {
                self.0.lock().unwrap().push(format!("remove {}", key.name));
            }
        }
        let (log, limits, now) = (Log::default(), Limits::default(), Instant::now());
        let mut sessions = Sessions::new(Box::new(log.clone()), now);
        assert_eq!(sessions.turns(&key("a", "old"), &limits, now), [turn(1)]);
        sessions.keep(key("a", "new"), vec![turn(1), turn(2)], &limits, now);
        assert!(
            sessions.turns(&key("a", "old"), &limits, now + Duration::from_secs(601)).is_empty()
        );
        sessions.end(&key("a", "new"));
        assert_eq!(*log.0.lock().unwrap(), ["save new 2", "remove old", "remove new"]);
    }

    #[test]
    fn turns_stand_between_system_message_and_question() {
        let message = |role, content: &str| Message::new(role, content);
        let ask = |system: Option<&str>| Input::Ask {
            system: system.map(str::to_owned),
            text: "now".to_owned(),
        };
        let expected = vec![
            message(Role::System, "be"),
            message(Role::User, "q1"),
            message(Role::Assistant, "a1"),
            message(Role::User, "now"),
        ];
        let chat = Input::Chat(vec![expected[0].clone(), expected[3].clone()]);
        for input in [ask(Some("be")), chat] {
            let (continued, question) = continued(&input, &[turn(1)]).unwrap();
            assert_eq!((continued, question.as_str()), (Input::Chat(expected.clone()), "now"));
        }
        let (first, _) = continued(&ask(None), &[]).unwrap();
        assert_eq!(first, Input::Chat(vec![message(Role::User, "now")]));
        for input in [Input::Chat(expected), Input::Chat(Vec::new()), Input::Completion("x".into())]
        {
            assert!(continued(&input, &[]).is_none(), "{input:?}");
        }
    }

    #[test]
    fn as_many_turns_are_dropped_as_are_too_many() {
        let turns: Vec<Turn> = (0..8).map(turn).collect();
        for (have, limit, dropped) in
            [(101, 100, 1), (200, 100, 4), (800, 100, 7), (1000, 0, 8), (100, 100, 1)]
        {
            assert_eq!(to_drop(&turns, have, limit), dropped, "{have} of {limit}");
        }
        assert_eq!(to_drop(&turns[..1], 900, 1), 1);
    }
}
