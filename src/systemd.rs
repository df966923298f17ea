//! What systemd is told: readiness, a line of state, more patience while weights load, a sign of life, the goodbye.
//!
//! Without `NOTIFY_SOCKET` (a terminal, a container) every call does nothing.

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
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is being read again; [`ServiceManager::ready`] ends it.
    pub fn reloading(self) {
        notify(&[NotifyState::Reloading]);
    }

    /// A line for `systemctl status`.
    pub fn status(self, status: &str) {
        notify(&[NotifyState::Status(status)]);
    }

    /// The service's loops turn.
    pub fn alive(self) {
        notify(&[NotifyState::Watchdog]);
    }

    /// The doors are closing; accepted prompts have this long to end.
    pub fn stopping(self, grace: Duration) {
        let micros = u32::try_from(grace.as_micros()).unwrap_or(u32::MAX);
        notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}
