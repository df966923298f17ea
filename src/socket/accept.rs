//! Accepts connections and keeps a task for each, up to a limit, until it is told to stop. Knows no protocol.

use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::bind::Bound;
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
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let peer = rustix::net::sockopt::socket_peercred(stream).ok();
        Peer { uid: peer.map(|peer| peer.uid.as_raw()), gid: peer.map(|peer| peer.gid.as_raw()) }
    }

    /// What the clients' entries are matched against.
    pub(super) fn who<'a>(&self, key: Option<&'a str>) -> Who<'a> {
        Who { uid: self.uid, gid: self.gid, mqtt: None, key }
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

/// Serves connections until `shutdown` ends; then removes the socket and waits until the last connection has ended.
/// Dropping the future drops the connections, and with them their prompts. Who comes while `most` connections are there
/// reads `full` and the end.
pub(super) async fn run<H, F>(
    bound: Bound,
    most: usize,
    full: &[u8],
    shutdown: impl Future<Output = ()>,
    handle: H,
) where
    H: Fn(UnixStream, Peer, Stopping) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (listener, file) = bound.into_parts();
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut warned = false;
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if connections.len() >= most => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(
                        limit = most,
                        "too many connections; new ones are sent away until some end"
                    );
                }
                // A few bytes fit into any fresh socket's buffer; a client that is gone already misses nothing.
                let _ = stream.try_write(full);
            }
            Ok((stream, _)) => {
                warned = false;
                let peer = Peer::of(&stream);
                connections.spawn(handle(stream, peer, stopping.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop((listener, file));
    stop.send_replace(true);
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked; this is a bug");
    }
}
