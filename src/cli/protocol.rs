//! `promptd protocol`: what clients speak, for programs that make code, forms or checks of it.

use std::process::ExitCode;

use super::args::{Protocol, ProtocolCommand};
use super::{World, exit};
use crate::wire;

/// Prints it.
pub async fn run(args: Protocol) -> ExitCode {
    World::real(async |world| ExitCode::from(run_in(args.command, world))).await
}

/// The same in a given world; returns the exit code.
pub fn run_in(command: ProtocolCommand, world: &mut World<'_>) -> u8 {
    let document = match command {
        ProtocolCommand::Schema => wire::payload_schemas(),
        ProtocolCommand::Asyncapi => wire::asyncapi(env!("CARGO_PKG_VERSION")),
    };
    match world.print(&format!("{document:#}\n")) {
        Ok(()) => exit::OK,
        Err(error) => {
            world.complain(&error);
            exit::FAILURE
        }
    }
}
