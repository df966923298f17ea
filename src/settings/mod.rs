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
use std::net::SocketAddr;
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
    /// What is done about heat and a want of memory.
    #[serde(default)]
    pub board: Board,
    /// Where metrics are told besides the HTTP socket.
    #[serde(default)]
    pub metrics: Metrics,
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
    /// The model folder. `current`: what `promptd model use` chose.
    pub path: PathBuf,
    /// The model folder that `current` means while nobody has chosen any. Absent: there is no model then.
    pub default: Option<PathBuf>,
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
    /// Public keys of minisign. Where there are any, a model is loaded only if one of them has signed its `manifest.toml`
    /// (`manifest.toml.minisig`), and the manifest lists all its files.
    #[serde(default)]
    pub trusted_keys: Vec<String>,
}

/// `[runtime]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// libonnxruntime.so. Absent: `ORT_DYLIB_PATH`, then the search path of [`find_library`].
    pub library: Option<PathBuf>,
    /// Where the model runs: `"cuda"`, `"cpu"`, or `"auto"`, which takes a GPU where libonnxruntime can use one and says what it
    /// took (`promptd status`).
    pub provider: Provider,
    /// Threads for one step of the model. 0: one for each physical core.
    pub threads: u16,
    /// Processors that these threads keep to, one each, as /proc/cpuinfo counts them. Empty: where the kernel puts them.
    pub cores: Vec<u16>,
    /// Whether these threads wait for each other without sleeping while a step runs; between steps they always sleep. Quicker on
    /// a board that does nothing else, much slower on one that does; `promptd bench --tune` measures it.
    pub spinning: bool,
    /// Whether the engine takes from itself all files but the model and the libraries, sockets, and the system calls of an
    /// administrator. `false` only where an accelerator's driver cannot live with it.
    pub sandbox: bool,
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime {
            library: None,
            provider: Provider::default(),
            threads: 0,
            cores: Vec::new(),
            spinning: false,
            sandbox: true,
        }
    }
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// On a GPU where libonnxruntime can use one, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On an NVIDIA GPU, or not at all.
    Cuda,
}

/// `[mqtt]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    /// `mqtt://[user[:password]@]host[:port]`, or `mqtts://` for TLS.
    pub url: Option<String>,
    /// Further addresses of the same broker, tried in turn: the nodes of a cluster.
    #[serde(default)]
    pub urls: Vec<String>,
    /// `[mqtt.tls]`
    #[serde(default)]
    pub tls: MqttTls,
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
    /// Whether `request/` and `load`, `unload`, `reload`, `drain` or `loglevel` are listened to. Off, because MQTT does not tell who
    /// publishes: only the broker's access rules can keep others from these topics.
    #[serde(default)]
    pub admin: bool,
    /// Where Home Assistant looks for devices, `homeassistant` as it comes. Absent: it is told nothing.
    pub discovery_prefix: Option<String>,
    /// `[mqtt.fleet]`: absent: this board shares no prompts with others.
    pub fleet: Option<MqttFleet>,
}

/// `[mqtt.fleet]`: several boards answer what is asked on `<base>/any/ask`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MqttFleet {
    /// The name of the shared subscription, the same on all boards of the fleet.
    pub group: String,
    /// How many prompts may wait here for a slot before a board that is less busy is asked to take them. 0 keeps every board at
    /// work; more saves messages where answers are very short.
    pub high_water: u16,
}

impl Default for MqttFleet {
    fn default() -> Self {
        MqttFleet { group: "promptd".to_owned(), high_water: 0 }
    }
}

/// `[mqtt.tls]`: for addresses that begin with `mqtts://`. The files are read for every connection.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MqttTls {
    /// The authorities that vouch for the broker (PEM). Absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// promptd's own certificate (PEM), where the broker wants one.
    pub certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<PathBuf>,
    /// Protocols offered by ALPN: `["mqtt"]` where port 443 is shared.
    pub alpn: Vec<String>,
    /// Whether TLS 1.2 will do, for brokers that have no 1.3.
    pub allow_tls12: bool,
}

/// `[socket]`
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Socket {
    /// The HTTP socket (OpenAI's API). Absent: none.
    pub path: Option<PathBuf>,
    /// The line socket (one JSON request a line). Absent: none.
    pub lines_path: Option<PathBuf>,
    /// HTTP over TCP, for programs that know no Unix socket: an address and a port. Absent: none. Every request needs an API key
    /// of `[clients]`. An address beyond this machine needs TLS, or a reason why not.
    pub tcp: Option<SocketAddr>,
    /// The certificate for TLS over TCP, with the chain behind it (PEM). It is read again on reload. Absent: no TLS.
    pub tcp_certificate_file: Option<PathBuf>,
    /// The key of this certificate (PEM).
    pub tcp_key_file: Option<PathBuf>,
    /// Why it is right that keys and prompts travel unencrypted to this address, such as "behind nginx, which speaks TLS". It is
    /// told in the log.
    pub tcp_without_tls: Option<String>,
    /// Whether a browser that comes to the TCP address gets a page to chat and to watch the status. What it does there needs
    /// an API key too.
    pub tcp_page: bool,
    /// Names of this machine that TCP clients may use besides `localhost` and addresses.
    pub tcp_hosts: Vec<String>,
}

impl Socket {
    /// What is wrong with how TCP is guarded, and at which key: beyond this machine everybody can read along.
    fn check_tcp(&self) -> Option<(&'static str, String)> {
        let address = self.tcp?;
        match (&self.tcp_certificate_file, &self.tcp_key_file) {
            (Some(_), Some(_)) => return None,
            (None, None) => {}
            (certificate, _) => {
                let (there, missing) = if certificate.is_some() {
                    ("tcp_certificate_file", "tcp_key_file")
                } else {
                    ("tcp_key_file", "tcp_certificate_file")
                };
                let message = format!("`socket.{there}` needs `socket.{missing}` beside it");
                return Some(("socket.tcp", message));
            }
        }
        let reason = self.tcp_without_tls.as_deref().unwrap_or_default().trim();
        (!address.ip().is_loopback() && reason.is_empty()).then(|| {
            let message = format!(
                "`socket.tcp` is {address}: keys and prompts would travel there unencrypted. Set `socket.tcp_certificate_file` and \
                 `socket.tcp_key_file`, listen on 127.0.0.1, or say in `socket.tcp_without_tls` why it is right"
            );
            ("socket.tcp", message)
        })
    }
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

    /// Where the engine keeps what it knows of models: their files' checksums, and prepared copies.
    pub fn models_dir(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("models"))
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

/// `[board]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Board {
    /// Degrees Celsius of the hottest zone from which the model runs with `hot_threads`, until it is ten degrees cooler. Absent:
    /// never. A change of threads is another engine, which takes a load.
    pub hot_celsius: Option<u8>,
    /// Threads of a step while the board is hot.
    pub hot_threads: u16,
    /// No new prompts are taken while all programs have waited for memory for this share of the last ten seconds, in percent. 0:
    /// they are taken all the same. Kernels without pressure information (Raspberry Pi OS without `psi=1`) tell nothing.
    pub memory_pressure_percent: u8,
    /// No new prompts are taken while programs can have less than this. 0: they are taken all the same.
    pub memory_floor_mib: u32,
    /// Below this folder are `sys` and `proc`.
    pub root: PathBuf,
}

impl Default for Board {
    fn default() -> Self {
        Board {
            hot_celsius: None,
            hot_threads: 1,
            memory_pressure_percent: 40,
            memory_floor_mib: 32,
            root: PathBuf::from("/"),
        }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// An address and a port where `GET /metrics` is answered without a key, and nothing else: for Prometheus, which knows no
    /// Unix sockets. Absent: none. The names of profiles stand in the page, nothing of prompts and answers.
    pub tcp: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or tracing's directives (`promptd::mqtt=debug,info`).
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether prompts and answers are logged. They are somebody's words: only to find a fault.
    pub content: bool,
    /// The journal's socket. Absent: /run/systemd/journal/socket. Used where standard error goes to the journal and `format` is
    /// `text`.
    pub journal: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), format: LogFormat::Text, content: false, journal: None }
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
        let has_socket =
            sockets.is_some_and(|s| s.path.is_some() || s.lines_path.is_some() || s.tcp.is_some());
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
        if let Some((key, message)) = sockets.and_then(Socket::check_tcp) {
            say(key, message);
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
        ranged("board.hot_celsius", self.board.hot_celsius.unwrap_or(80).into(), 40..=120);
        ranged("board.hot_threads", self.board.hot_threads.into(), 1..=256);
        ranged("board.memory_pressure_percent", self.board.memory_pressure_percent.into(), 0..=100);
        ranged("board.memory_floor_mib", self.board.memory_floor_mib, 0..=1 << 20);
        ranged("shutdown.grace_seconds", self.shutdown.grace_seconds.into(), 0..=3600);
        ranged("runtime.threads", self.runtime.threads.into(), 0..=256);
        let cores = &self.runtime.cores;
        ranged("runtime.cores", u32::try_from(cores.len()).unwrap_or(u32::MAX), 0..=256);
        if let Some(mqtt) = &self.mqtt {
            ranged("mqtt.keep_alive_seconds", mqtt.keep_alive_seconds.into(), 1..=3600);
        }
        wrong
    }
}
