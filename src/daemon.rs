//! The wiring of `promptd serve`: the order in which the rooms are born, how they are told to end, and what is left when they have.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::engine::client::{self, SpawnConfig};
use crate::engine::frames::{LoadRequest, VERSION};
use crate::mqtt;
use crate::request::Identity;
use crate::scheduler::{self, Scheduler, State, Status};
use crate::settings::Settings;
use crate::socket::{self, App, Bound};
use crate::systemd::ServiceManager;
use crate::wire;

/// After the last answer is known, the doors get this long to hand it over before they are closed on it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why `promptd serve` could not begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory cannot be used.
    #[error("cannot use the state directory `{}` (`state.dir`)", path.display())]
    StateDir {
        /// Which directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else uses the state directory.
    #[error("the state directory `{}` is used by another promptd; give each its own `state.dir`", .0.display())]
    StateTaken(PathBuf),
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] socket::BindError),
    /// A value of the configuration is wrong in a way that only its room knows.
    #[error("configuration: {0}")]
    Settings(String),
    /// The system does not give what every process gets.
    #[error("cannot set up the service")]
    System(#[source] std::io::Error),
}

impl DaemonError {
    /// Whether the configuration has to be mended before another start makes sense.
    pub fn is_configuration(&self) -> bool {
        matches!(self, DaemonError::Settings(_))
    }
}
