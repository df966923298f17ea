//! The commands: what the user typed, and those of them that talk to a running service over its socket.
//!
//! Only this room prints for people. What `serve` and `engine` do stands in other rooms; here they are only named.

mod answering;
pub mod args;
pub mod ask;
mod asking;
pub mod bench;
pub mod cancel;
pub mod chat;
pub mod config;
pub mod doctor;
mod http;
pub mod model;
pub mod models;
mod prepare;
pub mod protocol;
pub mod serve;
pub mod status;
pub mod top;
mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Args, Command};
use crate::settings::Environment;

pub use asking::{DEFAULT_SOCKET, SOCKET_VARIABLE};
pub use world::World;

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
        Command::TrySandbox(args) => serve::try_sandbox(&args),
        Command::Ask(args) => block_on(ask::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Config(args) => block_on(self::config::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Protocol(args) => block_on(protocol::run(args)),
        Command::Model(args) => block_on(model::run(args)),
        Command::Bench(args) => block_on(self::bench::run(args)),
        Command::Chat(args) => block_on(chat::run(args)),
        Command::Top(args) => block_on(top::run(args)),
        Command::Cancel(args) => block_on(cancel::run(args)),
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
