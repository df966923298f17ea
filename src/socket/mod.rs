//! The Unix socket door: OpenAI's HTTP API on one socket, one JSON request a line on another.
//!
//! It turns requests into [`crate::request::Submission`]s and tickets into bytes. What a request may say stands in
//! [`crate::wire`]; whether it is accepted is the scheduler's business. Every connection is a task of its own, and every
//! accepted prompt belongs to its connection: a client that goes away takes its ticket with it, which cancels the prompt.

mod accept;
mod admin;
mod asking;
mod base64;
mod bind;
mod body;
mod collect;
mod connection;
mod embeddings;
mod exposition;
#[cfg(test)]
mod fuzz_tests;
mod groups;
mod guard;
mod http;
mod lines;
mod metrics;
mod ollama;
mod openai;
mod openapi;
mod page;
mod patience;
mod prompts;
mod queue;
mod reply;
mod responses;
mod running;
mod stream;
mod tls;
mod voice;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::board::Board;
use crate::control::Control;
use crate::scheduler::Scheduler;
use crate::wire::{Broker, Limits, Policies};

pub use bind::{BindError, Bound, bind, bind_tcp, inherited};
pub use http::{serve, serve_metrics};
pub use lines::serve as serve_lines;
pub use tls::{Tls, TlsFiles};

/// What the operator says of the sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the HTTP socket stands; `None` switches it off.
    pub path: Option<PathBuf>,
    /// Where the line socket stands; `None` switches it off.
    pub lines_path: Option<PathBuf>,
    /// Where HTTP is spoken over TCP; `None` switches it off.
    pub tcp: Option<SocketAddr>,
    /// What is encrypted with there.
    pub tls: Option<TlsFiles>,
    /// Who may connect, as file permissions: writing is connecting.
    pub mode: u32,
}

impl Default for Config {
    fn default() -> Self {
        // Owner and group: whoever is in the group `promptd` may ask.
        Config { path: None, lines_path: None, tcp: None, tls: None, mode: 0o660 }
    }
}

/// How many connections a socket keeps, and how long it waits for a client. Tests shorten the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Connections at once. Each costs two file descriptors at most and some 20 KiB; a service has 1024 descriptors by
    /// default, and a board no more clients than this.
    pub connections: usize,
    /// Connections of one user at once: half, so that nobody can take all of them.
    pub connections_of_one: usize,
    /// How long a request's head may take to arrive, and how long a connection may be idle.
    pub head: Duration,
    /// How long a request's body may take to arrive: local clients have it ready.
    pub body: Duration,
    /// How long a client may leave an answer unread before it counts as gone.
    pub unread: Duration,
    /// After how long a silence a stream says that it is alive. Proxies and clients give up after 30 s and more.
    pub ping: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connections: 256,
            connections_of_one: 128,
            head: Duration::from_mins(1),
            body: Duration::from_secs(30),
            unread: Duration::from_mins(1),
            ping: Duration::from_secs(15),
        }
    }
}

/// What the connections of both sockets share.
#[derive(Debug)]
pub struct App {
    scheduler: Scheduler,
    policies: Policies,
    control: Option<Control>,
    limits: Limits,
    node: Option<String>,
    broker: Option<watch::Receiver<Broker>>,
    patience: Patience,
    running: running::Running,
    /// The board whose memory and temperature the metrics tell.
    board: Board,
    /// Names of this machine that TCP clients may use.
    hosts: Vec<String>,
    /// Whether TCP clients get the page.
    page: bool,
    /// Seconds since 1970 at the start: the `created` of the model.
    started: u64,
}

impl App {
    /// What the connections share. `node` is the board's name, which line answers carry.
    pub fn new(
        scheduler: Scheduler,
        policies: Policies,
        limits: Limits,
        node: Option<String>,
    ) -> Self {
        let running = running::Running::default();
        App {
            scheduler,
            policies,
            control: None,
            limits,
            node,
            broker: None,
            patience: Patience::default(),
            running,
            board: Board::default(),
            hosts: Vec::new(),
            page: false,
            started: unix_seconds(),
        }
    }

    /// The same with other limits for clients.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The same on another board.
    #[must_use]
    pub fn with_board(mut self, board: Board) -> Self {
        self.board = board;
        self
    }

    /// The same with names of this machine that TCP clients may use.
    #[must_use]
    pub fn with_hosts(mut self, hosts: Vec<String>) -> Self {
        self.hosts = hosts;
        self
    }

    /// The same with the built-in page for TCP clients.
    #[must_use]
    pub fn with_page(mut self, page: bool) -> Self {
        self.page = page;
        self
    }

    /// The same with a way to load, unload and reload.
    #[must_use]
    pub fn with_control(mut self, control: Control) -> Self {
        self.control = Some(control);
        self
    }

    /// The same with an eye on the broker, where there is one, whose state stands in the status.
    #[must_use]
    pub fn with_broker(mut self, broker: Option<watch::Receiver<Broker>>) -> Self {
        self.broker = broker;
        self
    }

    /// How large requests may be at present.
    fn limits(&self) -> Limits {
        self.policies.limits(&self.limits)
    }

    /// The served model's name, once it is known.
    fn model(&self) -> Option<String> {
        self.scheduler.status().borrow().model.as_ref().map(|model| model.name.clone())
    }
}

/// Seconds since 1970; OpenAI's objects carry them. A board without a clock says what it believes.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
