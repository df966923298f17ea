//! Who asks, and what they may: the operator's `[clients]`, matched against what a door knows of the other end.
//!
//! A Unix socket knows the user and group of its peer from the kernel, and perhaps an API key. MQTT tells nobody who
//! published: there a client is who it says it is (user property `client`, or the first level of its reply topic), and
//! the broker's access rules decide who may say it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::request::{Code, Identity, Priority, Quota, Refusal};

/// The rules for everybody who is in no other.
pub const DEFAULT: &str = "default";

/// What a door knows of who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Who<'a> {
    /// The user at the other end of a Unix socket.
    pub uid: Option<u32>,
    /// That user's group.
    pub gid: Option<u32>,
    /// The other groups that user is in.
    pub groups: &'a [u32],
    /// The name an MQTT client goes by.
    pub mqtt: Option<&'a str>,
    /// The API key that came along.
    pub key: Option<&'a str>,
}

/// One entry of `[clients]`: who it is, and what they may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// Users by number.
    pub uids: Vec<u32>,
    /// Groups by number.
    pub gids: Vec<u32>,
    /// Names of MQTT clients; one that ends in `*` is every name that begins so.
    pub mqtt: Vec<String>,
    /// A file whose first line is the API key, or `sha256:` and the SHA-256 of it in hexadecimal digits.
    pub api_key_file: Option<PathBuf>,
    /// The highest priority they may ask for. Absent: any.
    #[serde(deserialize_with = "priority")]
    #[schemars(with = "Option<PriorityName>")]
    pub priority: Option<Priority>,
    /// Whether they may load, unload and reload.
    pub admin: bool,
    /// Whether they may ask nothing at all.
    pub deny: bool,
    /// Prompts in any minute.
    pub prompts_per_minute: Option<u32>,
    /// Prompts at a time, waiting or running.
    pub concurrent_prompts: Option<u32>,
    /// Tokens in 24 hours, of prompts and answers together.
    pub tokens_per_day: Option<u64>,
}

/// A priority as the configuration writes it; [`Priority`] itself knows no file.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "Priority", rename_all = "lowercase")]
pub enum PriorityName {
    /// Only when nothing else waits.
    Low,
    /// The usual.
    Normal,
    /// Before the others.
    High,
}

/// What somebody may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The name under which the queue, the quotas and the sessions know them.
    pub identity: Identity,
    /// The highest priority they may ask for.
    pub priority: Priority,
    /// Whether they may load, unload and reload.
    pub admin: bool,
    /// Whether they may ask nothing at all.
    pub denied: bool,
    /// How much they may ask.
    pub quota: Quota,
}

impl Grant {
    /// Everything, under this name.
    pub fn all(identity: Identity) -> Self {
        Grant {
            identity,
            priority: Priority::High,
            admin: false,
            denied: false,
            quota: Quota::default(),
        }
    }

    /// Whether they may ask at all.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn check_allowed(&self) -> Result<(), Refusal> {
        if !self.denied {
            return Ok(());
        }
        let message = format!("`{}` may not ask here; `[clients]` says who may", self.identity.0);
        Err(Refusal::new(Code::Forbidden, message))
    }

    /// Whether they may ask for this priority.
    ///
    /// # Errors
    /// `forbidden` for `priority`.
    pub fn check_priority(&self, asked: Priority) -> Result<(), Refusal> {
        if asked <= self.priority {
            return Ok(());
        }
        let message = format!(
            "`{}` may not ask for priority {}; the highest is {}",
            self.identity.0,
            word(asked),
            word(self.priority)
        );
        Err(Refusal::new(Code::Forbidden, message).with_param("priority"))
    }
}

/// A key as it is kept: never itself, so that nothing that reads this memory has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// What a file's first line says: a key, or the digest of one.
    fn of_line(line: &str) -> Result<KeyDigest, String> {
        let Some(digits) = line.strip_prefix("sha256:") else {
            let long = line.len() >= 16;
            return long.then(|| digest(line)).ok_or("a key needs at least 16 bytes".to_owned());
        };
        let wrong = || "`sha256:` needs 64 hexadecimal digits behind it".to_owned();
        let mut bytes = [0; 32];
        let digits = digits.trim().as_bytes();
        if digits.len() != 2 * bytes.len() {
            return Err(wrong());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.contains('+'));
            *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(wrong)?;
        }
        Ok(KeyDigest(bytes))
    }

    /// Whether they are the same, in the same time wherever they differ.
    fn is(&self, other: &KeyDigest) -> bool {
        let differ = self.0.iter().zip(&other.0).fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(differ) == 0
    }
}

/// All clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    clients: BTreeMap<String, Client>,
    keys: Vec<(KeyDigest, String)>,
}

impl Access {
    /// Checks the entries and reads their keys with `first_line`.
    ///
    /// # Errors
    /// The key of the configuration that is wrong, and what is wrong with it.
    pub fn new(
        clients: BTreeMap<String, Client>,
        first_line: impl Fn(&Path) -> Result<String, String>,
    ) -> Result<Self, (String, String)> {
        let mut taken: BTreeMap<String, &str> = BTreeMap::new();
        let mut keys: Vec<(KeyDigest, String)> = Vec::new();
        for (name, client) in &clients {
            let wrong = |key: &str, what: String| Err((format!("clients.{name}.{key}"), what));
            let marks = client.marks();
            if name == DEFAULT && !(marks.is_empty() && client.api_key_file.is_none()) {
                return wrong(
                    "",
                    "`default` is everybody who is in no other entry; it names nobody".into(),
                );
            }
            if name != DEFAULT && marks.is_empty() && client.api_key_file.is_none() {
                return wrong(
                    "",
                    "it names nobody: set `uids`, `gids`, `mqtt` or `api_key_file`".into(),
                );
            }
            for mark in marks {
                if let Some(other) = taken.insert(mark.clone(), name) {
                    return wrong("", format!("{mark} is in `clients.{other}` already"));
                }
            }
            if client.prompts_per_minute == Some(0) || client.concurrent_prompts == Some(0) {
                return wrong(
                    "",
                    "a limit of 0 lets nobody in; leave the limit out, or set at least 1".into(),
                );
            }
            let Some(file) = &client.api_key_file else { continue };
            let key = match first_line(file).and_then(|line| KeyDigest::of_line(&line)) {
                Ok(key) => key,
                Err(error) => return wrong("api_key_file", error),
            };
            if let Some((_, other)) = keys.iter().find(|(known, _)| known.is(&key)) {
                return wrong(
                    "api_key_file",
                    format!("the key is that of `clients.{other}` already"),
                );
            }
            keys.push((key, name.clone()));
        }
        Ok(Access { clients, keys })
    }

    /// What this one may. The most certain mark decides: the key, then the user, the user's own group, one of the user's other
    /// groups (where several have an entry, the first entry by name), the name on MQTT. A key that nobody has counts as none:
    /// on a Unix socket the kernel vouches for the user, and OpenAI's clients always send one.
    pub fn grant(&self, who: Who<'_>) -> Grant {
        let by = |is: &dyn Fn(&Client) -> bool| {
            self.clients.iter().find(|(_, client)| is(client)).map(|(name, _)| name)
        };
        let name = who
            .key
            .and_then(|key| self.of_key(key))
            .or_else(|| who.uid.and_then(|uid| by(&|client| client.uids.contains(&uid))))
            .or_else(|| who.gid.and_then(|gid| by(&|client| client.gids.contains(&gid))))
            .or_else(|| by(&|client| client.gids.iter().any(|gid| who.groups.contains(gid))))
            .or_else(|| who.mqtt.and_then(|name| self.by_mqtt(name)));
        let own = match who {
            Who { uid: Some(uid), .. } => format!("uid:{uid}"),
            Who { mqtt: Some(""), .. } => "mqtt".to_owned(),
            Who { mqtt: Some(name), .. } => format!("mqtt:{name}"),
            _ => "unknown".to_owned(),
        };
        let identity = Identity(name.cloned().unwrap_or(own));
        let rules = self.clients.get(name.map_or(DEFAULT, String::as_str));
        let Some(client) = rules else { return Grant::all(identity) };
        Grant {
            identity,
            priority: client.priority.unwrap_or(Priority::High),
            admin: client.admin,
            denied: client.deny,
            quota: Quota {
                per_minute: client.prompts_per_minute,
                concurrent: client.concurrent_prompts,
                tokens_per_day: client.tokens_per_day,
            },
        }
    }

    /// The entry that has this API key.
    pub fn name_of_key(&self, key: &str) -> Option<&str> {
        self.of_key(key).map(String::as_str)
    }

    /// Every key is looked at, so that the time does not tell which one was nearly right.
    fn of_key(&self, key: &str) -> Option<&String> {
        let key = digest(key);
        self.keys.iter().fold(
            None,
            |found, (known, name)| {
                if known.is(&key) { Some(name) } else { found }
            },
        )
    }

    /// Whether any entry has an API key.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The entry that names this MQTT client: itself before a beginning, a longer beginning before a shorter one.
    fn by_mqtt(&self, name: &str) -> Option<&String> {
        let matched = self.clients.iter().flat_map(|(entry, client)| {
            client.mqtt.iter().filter_map(move |pattern| match pattern.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning).then_some((beginning.len(), entry)),
                None => (pattern == name).then_some((usize::MAX, entry)),
            })
        });
        matched.max_by_key(|(length, _)| *length).map(|(_, entry)| entry)
    }
}

impl Client {
    /// What it is known by, in words.
    fn marks(&self) -> Vec<String> {
        let uids = self.uids.iter().map(|uid| format!("user {uid}"));
        let gids = self.gids.iter().map(|gid| format!("group {gid}"));
        let names = self.mqtt.iter().map(|name| format!("MQTT client `{name}`"));
        uids.chain(gids).chain(names).collect()
    }
}

fn digest(key: &str) -> KeyDigest {
    KeyDigest(Sha256::digest(key.as_bytes()).into())
}

fn word(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
    }
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Priority>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None => Ok(None),
        Some("low") => Ok(Some(Priority::Low)),
        Some("normal") => Ok(Some(Priority::Normal)),
        Some("high") => Ok(Some(Priority::High)),
        Some(other) => Err(serde::de::Error::unknown_variant(other, &["low", "normal", "high"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENTS: &str = "[kitchen]\nuids = [7]\nmqtt = [\"esp32-*\", \"lamp\"]\npriority = \"normal\"\n\
         concurrent_prompts = 2\n[boiler]\nmqtt = [\"esp32-7\"]\n[operator]\ngids = [100]\nadmin = true\n\
         [phone]\napi_key_file = \"/k\"\n[default]\npriority = \"low\"\nprompts_per_minute = 6\n";

    fn read(text: &str) -> Result<Access, (String, String)> {
        Access::new(toml::from_str(text).unwrap(), |path| {
            Ok(if path == Path::new("/short") { "short" } else { "0123456789abcdef" }.to_owned())
        })
    }

    #[test]
    fn the_most_certain_mark_decides() {
        let access = read(CLIENTS).unwrap();
        let key = Some("0123456789abcdef");
        for (who, identity) in [
            (Who { uid: Some(7), gid: Some(100), ..Who::default() }, "kitchen"),
            (Who { uid: Some(8), gid: Some(100), ..Who::default() }, "operator"),
            (Who { uid: Some(8), gid: Some(8), groups: &[9, 100], ..Who::default() }, "operator"),
            (Who { uid: Some(7), gid: Some(8), groups: &[100], ..Who::default() }, "kitchen"),
            (Who { uid: Some(7), key, ..Who::default() }, "phone"),
            (Who { uid: Some(8), gid: Some(8), key: Some("none"), ..Who::default() }, "uid:8"),
            (Who { mqtt: Some("esp32-7"), ..Who::default() }, "boiler"),
            (Who { mqtt: Some("esp32-70"), ..Who::default() }, "kitchen"),
            (Who { mqtt: Some("lamp"), ..Who::default() }, "kitchen"),
            (Who { mqtt: Some("lamp2"), ..Who::default() }, "mqtt:lamp2"),
            (Who::default(), "unknown"),
        ] {
            assert_eq!(access.grant(who).identity.0, identity, "{who:?}");
        }
    }

    #[test]
    fn rights_are_those_of_the_entry() {
        let access = read(CLIENTS).unwrap();
        let kitchen = access.grant(Who { uid: Some(7), ..Who::default() });
        assert_eq!((kitchen.admin, kitchen.quota.concurrent), (false, Some(2)));
        kitchen.check_priority(Priority::Normal).unwrap();
        let refusal = kitchen.check_priority(Priority::High).unwrap_err();
        assert_eq!((refusal.code, refusal.param.as_deref()), (Code::Forbidden, Some("priority")));
        assert!(access.grant(Who { gid: Some(100), ..Who::default() }).admin);
        let stranger = access.grant(Who { uid: Some(9), ..Who::default() });
        assert_eq!((stranger.priority, stranger.quota.per_minute), (Priority::Low, Some(6)));
        stranger.check_allowed().unwrap();
        let closed = read("[a]\nuids = [1]\n[default]\ndeny = true").unwrap();
        closed.grant(Who { uid: Some(1), ..Who::default() }).check_allowed().unwrap();
        let refusal = closed.grant(Who { uid: Some(9), ..Who::default() }).check_allowed();
        assert_eq!(refusal.unwrap_err().code, Code::Forbidden);
        let anybody = Access::default().grant(Who { uid: Some(9), ..Who::default() });
        assert_eq!(anybody, Grant::all(Identity("uid:9".to_owned())));
    }

    #[test]
    fn a_key_may_stand_in_its_file_as_a_digest() {
        // printf 0123456789abcdef | sha256sum
        let line = "sha256:9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";
        let clients = "[phone]\napi_key_file = \"/k\"\n";
        let access =
            Access::new(toml::from_str(clients).unwrap(), |_| Ok(line.to_owned())).unwrap();
        assert_eq!(access.name_of_key("0123456789abcdef"), Some("phone"));
        assert_eq!(access.name_of_key(line), None);
        for wrong in ["sha256:", "sha256:12", &line.replace('f', "g"), &line.replace("9f", "+f")] {
            let read = Access::new(toml::from_str(clients).unwrap(), |_| Ok(wrong.to_owned()));
            assert!(read.unwrap_err().1.contains("64 hexadecimal digits"), "{wrong}");
        }
    }

    #[test]
    fn wrong_entries() {
        for (text, key, what) in [
            ("[a]\nuids = [1]\n[b]\nuids = [1]", "clients.b.", "user 1 is in `clients.a` already"),
            ("[a]\nadmin = true", "clients.a.", "names nobody"),
            ("[default]\nuids = [1]", "clients.default.", "in no other entry"),
            ("[a]\nuids = [1]\nprompts_per_minute = 0", "clients.a.", "lets nobody in"),
            ("[a]\napi_key_file = \"/short\"", "clients.a.api_key_file", "at least 16 bytes"),
            (
                "[a]\napi_key_file = \"/k\"\n[b]\napi_key_file = \"/l\"",
                "clients.b.api_key_file",
                "that of `clients.a`",
            ),
        ] {
            let (at, why) = read(text).unwrap_err();
            assert!(at == key && why.contains(what), "{text}: {at}: {why}");
        }
        assert!(toml::from_str::<Client>("priority = \"urgent\"").is_err());
    }
}
