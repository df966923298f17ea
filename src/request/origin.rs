//! Where a request came from: what counters and the log say of it. Decides nothing.

/// Where a request came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The door it came by.
    pub door: Door,
    /// The profile it names, where there is such a one.
    pub profile: Option<String>,
    /// The asker's own id.
    pub id: Option<String>,
    /// The topic its answer goes to.
    pub topic: Option<String>,
}

impl Origin {
    /// A request that came by this door, and of which nothing else is known.
    pub fn new(door: Door) -> Self {
        Origin { door, profile: None, id: None, topic: None }
    }
}

/// The doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// The broker.
    Mqtt,
    /// HTTP, on a Unix socket or over TCP.
    Http,
    /// The line socket.
    Lines,
}

impl Door {
    /// All doors.
    pub const ALL: [Door; 3] = [Door::Mqtt, Door::Http, Door::Lines];

    /// The door as metrics and the log write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Door::Mqtt => "mqtt",
            Door::Http => "http",
            Door::Lines => "lines",
        }
    }
}
