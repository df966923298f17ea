//! `promptd cancel`: ends a request that waits or runs, by the id that its answer or `promptd top` shows.

use std::process::ExitCode;

use super::args::Cancel;
use super::http::{Client, Trouble};
use super::{World, exit};

/// Cancels a request.
pub async fn run(args: Cancel) -> ExitCode {
    World::real(async |world| ExitCode::from(run_in(args, world).await)).await
}

/// The same in a given world; returns the exit code.
pub async fn run_in(args: Cancel, world: &mut World<'_>) -> u8 {
    let ended = Box::pin(cancel(&args, world)).await;
    world.end(ended.map(|()| exit::OK))
}

async fn cancel(args: &Cancel, world: &mut World<'_>) -> Result<(), Trouble> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if args.id.is_empty() || !args.id.chars().all(plain) {
        let message = format!("{:?} is no id of a request; `promptd top` shows them", args.id);
        return Err(Trouble::Usage(message));
    }
    let socket = args.place.socket(world.environment);
    let client = Client { socket: &socket };
    let response = client.request("DELETE", &format!("/v1/requests/{}", args.id), None).await?;
    let (_, answer) = client.read_json(response).await?;
    if let Some(error) = answer.get("error") {
        return Err(Trouble::refused(error));
    }
    let text =
        if args.json { format!("{answer}\n") } else { format!("{} is cancelled\n", args.id) };
    world.print(&text)
}
