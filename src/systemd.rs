//! What systemd is told: readiness, a line of state, more patience while weights load, a sign of life, the goodbye.
//!
//! Without `NOTIFY_SOCKET` (a terminal, a container) every call does nothing.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// The service manager, or nobody.
#[derive(Clone, Copy, Debug)]
pub struct ServiceManager {
    /// Half of `WatchdogSec`, where the unit sets one.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Finds out whether a service manager listens and whether it wants signs of life.
    pub fn from_environment() -> Self {
        // sd_watchdog_enabled(3) recommends a sign of life at half the time.
        ServiceManager { watchdog: sd_notify::watchdog_enabled().map(|timeout| timeout / 2) }
    }

    /// How often [`ServiceManager::alive`] is due.
    pub fn watchdog_interval(self) -> Option<Duration> {
        self.watchdog
    }

    /// The doors are open.
    pub fn ready(self, status: &str) {
        insist(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The doors are not open yet, for a reason that may take a while: a card that is read after a power cut.
    pub fn opening(self, what: &str) {
        let patience = NotifyState::ExtendTimeoutUsec(micros(OPENING));
        insist(&[NotifyState::Status(what), patience]);
    }

    /// The model is being loaded; a manager that waits for something meanwhile shall wait on.
    pub fn loading(self, status: &str) {
        let patience = NotifyState::ExtendTimeoutUsec(micros(LOADING));
        // Said again in a second.
        let _ = mention(&[NotifyState::Status(status), patience]);
    }

    /// The configuration is being read again; [`ServiceManager::ready`] ends it.
    pub fn reloading(self) {
        insist(&[NotifyState::Reloading]);
    }

    /// A line for `systemctl status`. `false`: the manager has too much to read already; say it again later.
    pub fn status(self, status: &str) -> bool {
        mention(&[NotifyState::Status(status)])
    }

    /// The service's loops turn. A manager that has too much to read already has enough signs of life among it.
    pub fn alive(self) {
        let _ = mention(&[NotifyState::Watchdog]);
    }

    /// The doors are closing; accepted prompts have this long to end.
    pub fn stopping(self, grace: Duration) {
        insist(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros(grace))]);
    }
}

/// The record may have to be rolled forward and looked through; minutes on the slowest card.
const OPENING: Duration = Duration::from_secs(300);

/// Said again every second while the model loads.
const LOADING: Duration = Duration::from_secs(30);

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// How long the manager may take to make room for what it must not miss. One that stands still for longer has lost the service anyhow,
/// and a service that waited on would lose its clients as well.
const INSISTENCE: Duration = Duration::from_secs(5);

/// Says what the manager must not miss; waits where its queue (`net.unix.max_dgram_qlen`, 10 on many systems) is full.
fn insist(states: &[NotifyState<'_>]) {
    let said = send(states, |socket| socket.set_write_timeout(Some(INSISTENCE)));
    if let Err(error) = said {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Says what will be said again, and waits for nobody: the thread that speaks is the one that serves. Whether there was room for it.
fn mention(states: &[NotifyState<'_>]) -> bool {
    match send(states, |socket| socket.set_nonblocking(true)) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "the service manager could not be told");
            error.kind() != io::ErrorKind::WouldBlock
        }
    }
}

fn send(
    states: &[NotifyState<'_>],
    how: impl FnOnce(&UnixDatagram) -> io::Result<()>,
) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => send_to(&path, states, how),
        None => Ok(()),
    }
}

/// As `sd_notify(3)` has it: one datagram, a line for each state. A path that begins with `@` is a name without a file.
fn send_to(
    path: &OsStr,
    states: &[NotifyState<'_>],
    how: impl FnOnce(&UnixDatagram) -> io::Result<()>,
) -> io::Result<()> {
    let mut message = String::new();
    for state in states {
        writeln!(message, "{state}").map_err(io::Error::other)?;
    }
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    how(&socket)?;
    // Whole or not at all: it is a datagram.
    socket.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as the queue takes.
    fn full(path: &OsStr) -> usize {
        let alive =
            || send_to(path, &[NotifyState::Watchdog], |socket| socket.set_nonblocking(true));
        let said = (0..100_000).take_while(|_| alive().is_ok()).count();
        assert_eq!(alive().map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        said
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let said = full(path.as_os_str());
        let mut bytes = [0; 64];
        for _ in 0..said {
            let read = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..read], b"WATCHDOG=1\n");
        }
        let states = [NotifyState::Ready, NotifyState::Status("x")];
        send_to(path.as_os_str(), &states, |_| Ok(())).unwrap();
        let read = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"READY=1\nSTATUS=x\n");
    }

    #[test]
    fn a_name_without_a_file_is_found() {
        let name = format!("promptd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let path = format!("@{name}");
        send_to(OsStr::new(&path), &[NotifyState::Watchdog], |_| Ok(())).unwrap();
        let mut bytes = [0; 64];
        let read = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..read], b"WATCHDOG=1\n");
    }
}
