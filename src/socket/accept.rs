//! Accepts connections and keeps a task for each, up to a limit, until it is told to stop. Knows no protocol.
//!
//! A connection that is not at work (idle, or in the middle of a request that has not arrived) gives way when there are too
//! many: whoever holds thousands of half requests open ends the oldest of his own, and keeps nobody out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::bind::Bound;
use super::connection::{Arrival, Stream};
use super::groups;
use crate::identity::Who;

/// How long the loop waits after an accept that failed, usually for want of file descriptors: long enough for some to
/// come free, short enough that nobody notices.
const PAUSE: Duration = Duration::from_millis(200);

/// Who is at the other end of a connection, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// The user's number, where the kernel knows it.
    pub(super) uid: Option<u32>,
    /// The number of the user's group.
    pub(super) gid: Option<u32>,
    /// The numbers of the other groups that the user is in.
    pub(super) groups: Arc<[u32]>,
    /// Whether it came over TCP, where the kernel knows nobody.
    pub(super) tcp: bool,
    /// Its entry of `[clients]`, where its key named one.
    pub(super) name: Option<String>,
}

impl Peer {
    fn of(stream: &Stream) -> Self {
        let (peer, groups) = match stream {
            Stream::Unix(stream) => {
                (rustix::net::sockopt::socket_peercred(stream).ok(), groups::of_peer(stream))
            }
            Stream::Tcp(_) | Stream::Tls(_) => (None, Vec::new()),
        };
        Peer {
            uid: peer.map(|peer| peer.uid.as_raw()),
            gid: peer.map(|peer| peer.gid.as_raw()),
            groups: groups.into(),
            tcp: !matches!(stream, Stream::Unix(_)),
            name: None,
        }
    }

    /// Whether it is the same user, or the same client.
    pub(super) fn is(&self, other: &Peer) -> bool {
        self.uid == other.uid && self.tcp == other.tcp && self.name == other.name
    }

    /// What the clients' entries are matched against.
    pub(super) fn who<'a>(&'a self, key: Option<&'a str>) -> Who<'a> {
        Who { uid: self.uid, gid: self.gid, groups: &self.groups, mqtt: None, key }
    }

    /// Whether it is the system's administrator.
    pub(super) fn is_root(&self) -> bool {
        self.uid == Some(0)
    }

    /// Whether it is the user that promptd runs as.
    pub(super) fn is_ourselves(&self) -> bool {
        self.uid == Some(rustix::process::geteuid().as_raw())
    }
}

/// Becomes true when the service stops. Connections end what they do then, and begin nothing new.
pub(super) type Stopping = watch::Receiver<bool>;

/// Waits until the service stops.
pub(super) async fn stopped(stopping: &mut Stopping) {
    // The sender is held until every connection has ended, so an error cannot come before the value.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Whether a connection is at work: from a whole request to the end of its answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<Works>);

/// What a connection is at work on: as many references as there are works, and one.
#[derive(Debug, Default)]
struct Works {
    all: Work,
}

/// Something a connection is at work on, until it is dropped.
pub(super) type Work = Arc<()>;

impl Activity {
    /// Work begins.
    pub(super) fn begin(&self) -> Work {
        Arc::clone(&self.0.all)
    }

    /// Whether there is none.
    pub(super) fn is_idle(&self) -> bool {
        // The only one is our own.
        Arc::strong_count(&self.0.all) == 1
    }
}

/// How many connections there may be, and what who comes when there are too many reads before the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Of everybody together.
    pub(super) all: usize,
    /// Of one user.
    pub(super) each: usize,
    /// What is said to one more.
    pub(super) full: &'static [u8],
}

/// Serves connections until `shutdown` ends; then removes the socket and waits until the last connection has ended.
/// Dropping the future drops the connections, and with them their prompts.
pub(super) async fn run<H, F>(
    bound: Bound,
    most: Most,
    shutdown: impl Future<Output = ()>,
    handle: H,
) where
    H: Fn(Arrival, Peer, Stopping, Activity) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, file) = bound.into_parts();
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut open = Open::default();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut warned = false;
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next_with_id(), if !connections.is_empty() => {
                open.ended(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(arrival) => {
                let peer = Peer::of(&arrival.stream);
                if !open.make_room(&peer, &most) {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(
                            limit = most.all,
                            of_one_user = most.each,
                            "too many connections; new ones are sent away until some end"
                        );
                    }
                    // A few bytes fit into any fresh socket's buffer; a client that is gone already misses nothing.
                    let _ = arrival.try_write(most.full);
                    continue;
                }
                warned = false;
                let activity = Activity::default();
                let task = handle(arrival, peer.clone(), stopping.clone(), activity.clone());
                open.began(peer.uid, connections.spawn(task), activity);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                open.end_one(None);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop((listener, file));
    stop.send_replace(true);
    while let Some(ended) = connections.join_next_with_id().await {
        open.ended(ended);
    }
}

/// A user, where the kernel knows it.
type Uid = Option<u32>;

/// The connections that are open, the oldest first.
#[derive(Debug, Default)]
struct Open {
    connections: VecDeque<(Uid, AbortHandle, Activity)>,
    of: HashMap<Uid, usize>,
}

impl Open {
    fn began(&mut self, uid: Uid, task: AbortHandle, activity: Activity) {
        *self.of.entry(uid).or_default() += 1;
        self.connections.push_back((uid, task, activity));
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a connection's task panicked; this is a bug");
        }
        // One that gave way is counted out already.
        if let Some(at) = self.connections.iter().position(|(_, task, _)| task.id() == id) {
            self.remove(at);
        }
    }

    fn remove(&mut self, at: usize) -> Option<AbortHandle> {
        let (uid, task, _) = self.connections.remove(at)?;
        if let Some(count) = self.of.get_mut(&uid) {
            *count -= 1;
            if *count == 0 {
                self.of.remove(&uid);
            }
        }
        Some(task)
    }

    /// Whether one more may come; ends an idle one for it where need be.
    fn make_room(&mut self, peer: &Peer, most: &Most) -> bool {
        if self.of.get(&peer.uid).is_some_and(|count| *count >= most.each) {
            return self.end_one(Some(peer.uid));
        }
        if self.connections.len() < most.all {
            return true;
        }
        let greediest = self.of.iter().max_by_key(|(_, count)| **count).map(|(uid, _)| *uid);
        self.end_one(greediest) || self.end_one(None)
    }

    /// Ends the oldest idle connection, of one user if that is said.
    fn end_one(&mut self, of: Option<Uid>) -> bool {
        let idle = self
            .connections
            .iter()
            .position(|(uid, _, activity)| activity.is_idle() && of.is_none_or(|of| *uid == of));
        let Some(task) = idle.and_then(|at| self.remove(at)) else { return false };
        task.abort();
        true
    }
}
