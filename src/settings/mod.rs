//! What the operator wrote: the keys of promptd.toml, their defaults and the reasons for them, checked as far as a file can be.
//!
//! Only this room names the `config` crate. Order, the first that has a value wins: environment variable
//! `PROMPTD__SECTION__KEY`, `conf.d/*.toml` beside the file from the last name to the first, the file, the default written
//! here. A section that is absent switches its door off.

mod layers;
mod library;
mod load;
mod mistakes;
mod schema;
mod show;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::identity::Client;
use crate::session::Overflow;
use crate::wire::Profile;

pub use layers::Origin;
pub use library::{Located, expected_library, find_library};
pub use load::{Environment, load};
pub use mistakes::{Mistake, SettingsError};
pub use schema::schema;
pub use show::{Shown, as_toml, effective};

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The model to answer with.
    pub model: Model,
    /// ONNX Runtime.
    #[serde(default)]
    pub runtime: Runtime,
    /// The MQTT door; absent: no MQTT.
    pub mqtt: Option<Mqtt>,
    /// The Unix sockets; absent: none.
    pub socket: Option<Socket>,
    /// Where promptd keeps what must outlast it.
    #[serde(default)]
    pub state: State,
    /// The queue between the doors and the engine.
    #[serde(default)]
    pub queue: Queue,
    /// Conversations that are kept for clients that cannot resend them.
    #[serde(default)]
    pub sessions: Sessions,
    /// What a client may send.
    #[serde(default)]
    pub limits: Limits,
    /// How promptd stops.
    #[serde(default)]
    pub shutdown: Shutdown,
    /// What promptd logs.
    #[serde(default)]
    pub log: Log,
    /// Named prompts-in-waiting: a system message, a schema and defaults, chosen by `ask/<profile>` or `"profile"`.
    #[serde(default, skip_serializing)]
    pub profiles: BTreeMap<String, Profile>,
    /// Who may what. `default` is everybody who is in no other entry.
    #[serde(default, skip_serializing)]
    pub clients: BTreeMap<String, Client>,
}

/// `[model]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The model folder.
    pub path: PathBuf,
    /// Prompts that run at once. Each has its own KV cache, so memory grows with it; four keep a small board's memory
    /// bandwidth busy (docs/architecture.md).
    #[serde(default = "default_slots")]
    pub slots: u16,
    /// Tokens of context of each slot. 0: what the model was trained for.
    #[serde(default)]
    pub context: u32,
    /// The model leaves the memory when nothing was asked for so many seconds; the next prompt loads it again. Absent: it
    /// stays.
    pub keep_loaded_seconds: Option<u32>,
}

/// `[runtime]`
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// libonnxruntime.so. Absent: `ORT_DYLIB_PATH`, then the search path of [`find_library`].
    pub library: Option<PathBuf>,
    /// Threads for one step of the model. 0: one for each physical core.
    pub threads: u16,
}

/// `[mqtt]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    /// `mqtt://[user[:password]@]host[:port]`
    pub url: String,
    /// This board's name in topics. Absent: the host name.
    pub node: Option<String>,
    /// The first level of every topic.
    #[serde(default = "default_base_topic")]
    pub base_topic: String,
    /// User name, where it does not stand in the URL.
    pub username: Option<String>,
    /// A file whose first line is the password: a password in this file would be in every backup of it.
    pub password_file: Option<PathBuf>,
    /// The name the broker knows promptd by. Absent: made of base topic and node. It has to stay the same, because the
    /// broker keeps prompts for it.
    pub client_id: Option<String>,
    /// Seconds between signs of life to the broker. MQTT's usual 30 notices a dead link within 45.
    #[serde(default = "default_keep_alive_seconds")]
    pub keep_alive_seconds: u16,
    /// Topic prefixes that `reply_to` in a request may name, besides this node's own answer topics.
    #[serde(default)]
    pub reply_prefixes: Vec<String>,
    /// Whether MQTT 5's Response Topic is held to these prefixes too. promptd publishes with its own rights; where not
    /// every client may be trusted with those, set this.
    #[serde(default)]
    pub restrict_response_topics: bool,
    /// Whether `request/load`, `request/unload` and `request/reload` are listened to. Off, because MQTT does not tell who
    /// publishes: only the broker's access rules can keep others from these topics.
    #[serde(default)]
    pub admin: bool,
}

/// `[socket]`
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Socket {
    /// The HTTP socket (OpenAI's API). Absent: none.
    pub path: Option<PathBuf>,
    /// The line socket (one JSON request a line). Absent: none.
    pub lines_path: Option<PathBuf>,
}

/// `[state]`
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// A directory of promptd's own. One promptd at a time may use it. Absent: nothing is kept.
    pub dir: Option<PathBuf>,
    /// Where an accepted prompt lies until its answer is delivered. Absent: on the disk where there is a `dir`, else in
    /// memory.
    pub durability: Option<Durability>,
}

/// Where what was accepted lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// In `state.dir`: a prompt is acknowledged when it is safe there, and outlasts a crash and a power cut.
    Disk,
    /// Nowhere but in memory: a prompt is acknowledged after its answer, and the broker sends it again after a crash.
    Memory,
}

impl State {
    /// The directory of the record, where there is to be one.
    pub fn record_dir(&self) -> Option<&std::path::Path> {
        self.dir.as_deref().filter(|_| self.durability != Some(Durability::Memory))
    }
}

/// `[queue]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// The most prompts that may wait, however quick the board is. One asker alone gets half of the places.
    pub limit: u16,
    /// Seconds that a prompt may have to wait for its turn, by the measured speed of the board: who would wait longer is
    /// told to come back. Two minutes are as long as anybody waits for a device.
    pub max_wait_seconds: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Queue { limit: 256, max_wait_seconds: 120 }
    }
}

/// `[sessions]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Conversations that are kept, of everybody together.
    pub count: u16,
    /// Conversations of one client.
    pub per_client: u16,
    /// Turns of one conversation.
    pub turns: u16,
    /// Tokens that a prompt may have with all its turns. 0: as many as the context has room for.
    pub tokens: u32,
    /// Seconds after which a conversation that nobody goes on with is forgotten.
    pub expire_seconds: u32,
    /// What happens to one that has become too long.
    pub overflow: Overflow,
}

impl Default for Sessions {
    /// A board has a few dozen devices; a person comes back to a conversation within the hour, or begins another.
    fn default() -> Self {
        Sessions {
            count: 64,
            per_client: 8,
            turns: 32,
            tokens: 0,
            expire_seconds: 3600,
            overflow: Overflow::Drop,
        }
    }
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest request in bytes, at either door. A context of 128k tokens is about 0.5 MiB of English text.
    pub payload_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { payload_bytes: 1 << 20 }
    }
}

/// `[shutdown]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// Seconds that accepted prompts have to end after SIGTERM. systemd's usual patience is 90; an answer of a small
    /// board that takes longer than this is cut off with an error.
    pub grace_seconds: u16,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { grace_seconds: 25 }
    }
}

/// `[log]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or tracing's directives (`promptd::mqtt=debug,info`).
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and the journal.
    Text,
    /// One JSON object a line.
    Json,
}

fn default_slots() -> u16 {
    4
}

fn default_base_topic() -> String {
    "promptd".to_owned()
}

fn default_keep_alive_seconds() -> u16 {
    30
}

impl Settings {
    /// What no single key can say: that there is a door, and that numbers make sense together. Each mistake is a key and a
    /// sentence that names it.
    fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let mut say = |key: &str, message: String| wrong.push((key.to_owned(), message));
        let sockets = self.socket.as_ref();
        let has_socket = sockets.is_some_and(|s| s.path.is_some() || s.lines_path.is_some());
        if self.mqtt.is_none() && !has_socket {
            let message = "no door is open: set `socket.path`, `socket.lines_path` or `mqtt.url`";
            say("socket", message.to_owned());
        }
        if let Some(Socket { path: Some(path), lines_path: Some(lines), .. }) = sockets
            && path == lines
        {
            let both = path.display();
            say(
                "socket.lines_path",
                format!("`socket.path` and `socket.lines_path` are both {both}"),
            );
        }
        if self.state.durability == Some(Durability::Disk) && self.state.dir.is_none() {
            let message = "`state.durability` is \"disk\", but there is no `state.dir`";
            say("state.durability", message.to_owned());
        }
        let mut ranged = |key: &str, value: u32, range: RangeInclusive<u32>| {
            if !range.contains(&value) {
                let (low, high) = (range.start(), range.end());
                say(key, format!("`{key}` is {value}; it must be between {low} and {high}"));
            }
        };
        ranged("model.slots", self.model.slots.into(), 1..=64);
        if let Some(seconds) = self.model.keep_loaded_seconds {
            // Loading takes seconds: who unloads sooner only loads.
            ranged("model.keep_loaded_seconds", seconds, 5..=31_536_000);
        }
        ranged("queue.limit", self.queue.limit.into(), 1..=10_000);
        ranged("queue.max_wait_seconds", self.queue.max_wait_seconds, 1..=86_400);
        let sessions = &self.sessions;
        ranged("sessions.count", sessions.count.into(), 1..=10_000);
        ranged("sessions.per_client", sessions.per_client.into(), 1..=10_000);
        ranged("sessions.turns", sessions.turns.into(), 1..=1000);
        ranged("sessions.expire_seconds", sessions.expire_seconds, 1..=31_536_000);
        ranged("limits.payload_bytes", self.limits.payload_bytes, 1024..=16 << 20);
        ranged("shutdown.grace_seconds", self.shutdown.grace_seconds.into(), 0..=3600);
        ranged("runtime.threads", self.runtime.threads.into(), 0..=256);
        if let Some(mqtt) = &self.mqtt {
            ranged("mqtt.keep_alive_seconds", mqtt.keep_alive_seconds.into(), 5..=3600);
        }
        wrong
    }
}
