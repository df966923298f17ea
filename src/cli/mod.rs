//! The commands: what the user typed, and those of them that talk to a running service over its socket.
//!
//! Only this room prints for people. What `serve` and `engine` do stands in other rooms; here they are only named.

pub mod args;
pub mod ask;
pub mod config;
mod http;
pub mod serve;
pub mod status;
mod world;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Args, Command};
use crate::settings::Environment;

pub use world::World;

/// Where the service listens if nobody says otherwise: the systemd unit's runtime directory.
pub const DEFAULT_SOCKET: &str = "/run/promptd/promptd.sock";

/// The variable that names the socket, the same that configures the service.
pub const SOCKET_VARIABLE: &str = "PROMPTD__SOCKET__PATH";

/// Exit codes, as sysexits.h has them where it has any.
pub mod exit {
    /// All is well.
    pub const OK: u8 = 0;
    /// It did not work, for a reason that was printed.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// Nobody listens on the socket (`EX_UNAVAILABLE`).
    pub const UNREACHABLE: u8 = 69;
    /// The configuration is wrong (`EX_CONFIG`); the unit does not start the service again.
    pub const CONFIGURATION: u8 = 78;
    /// The service is busy or loads its model: the same command works later (`EX_TEMPFAIL`).
    pub const LATER: u8 = 75;
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    match Args::parse().command {
        Command::Serve(args) => serve::run(args, &environment()),
        Command::Engine(args) => serve::engine(args, &environment()),
        Command::Form => crate::engine::adapter::try_form(),
        Command::Ask(args) => block_on(ask::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Config(args) => block_on(self::config::run(args)),
    }
}

/// An error and its causes, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// The environment as it is now, without what is no text: no setting of ours is.
fn environment() -> Environment {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// Runs a command that waits for the service.
fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        // Without file descriptors or memory there is nothing to say it with either.
        Err(_) => ExitCode::from(exit::FAILURE),
    }
}

/// The socket: as typed, or as the environment says, or the default one.
fn socket_path(typed: Option<PathBuf>, environment: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = || environment(SOCKET_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    typed.or_else(set).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_socket_is() {
        let set =
            |value: &'static str| move |name: &str| (name == SOCKET_VARIABLE).then(|| value.into());
        assert_eq!(socket_path(Some("/a".into()), set("/b")), PathBuf::from("/a"));
        assert_eq!(socket_path(None, set("/b")), PathBuf::from("/b"));
        assert_eq!(socket_path(None, set("")), PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(socket_path(None, |_| None), PathBuf::from(DEFAULT_SOCKET));
    }
}
