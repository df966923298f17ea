//! `promptd bench DIR`: how quick a model is on this machine, as a table or as JSON; and `--tune`, which finds out how its
//! steps are executed most quickly and writes that down for the service.

mod table;
mod tuning;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::args::Bench;
use super::model::{library, provider};
use super::{World, exit};
use crate::inference::bench::{self, Options, Report};
use crate::inference::{Clock, Config, Execution, Facts, remembered_hashes};

type Done<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs the command in the process's own world.
pub async fn run(args: Bench) -> ExitCode {
    ExitCode::from(World::real(async |world| run_in(&args, world)).await)
}

/// Runs the command; gives its exit code.
pub fn run_in(args: &Bench, world: &mut World<'_>) -> u8 {
    let done = if args.tune { tuning::tune(args, world) } else { measure(args, world) };
    match done {
        Ok(()) => exit::OK,
        Err(error) => {
            world.complain(&*error);
            exit::FAILURE
        }
    }
}

fn measure(args: &Bench, world: &mut World<'_>) -> Done<()> {
    let config = Config {
        model: args.folder.clone(),
        library: library(args.library.as_deref(), world)?,
        execution: execution(args),
        store: args.store.clone(),
        hashes: args.store.as_deref().and_then(remembered_hashes),
        slots: 1,
        context: 0,
        beside: None,
        prefill_chunk: 0,
    };
    let clock: Clock =
        if args.processor_time { bench::processor_clock() } else { Arc::new(Instant::now) };
    let (facts, report) = bench::bench(&config, &options(args), clock, &mut |doing| {
        // Whoever closed standard error does not want to know.
        let _ = writeln!(world.errors, "promptd: {doing}");
    })?;
    let text = if args.json {
        format!("{}\n", as_json(args, &facts, &report))
    } else {
        table::table(&facts, &report)
    };
    world.print(&text)?;
    for left_out in &report.left_out {
        let _ = writeln!(world.errors, "promptd: left out: {left_out}");
    }
    Ok(())
}

/// How the steps are executed, as typed.
fn execution(args: &Bench) -> Execution {
    Execution {
        provider: provider(args.provider),
        threads: args.threads,
        cores: args.cores.clone(),
        spinning: args.spinning,
    }
}

/// What is measured, as typed; a zero in a list of lengths or streams stands for "nothing".
fn options(args: &Bench) -> Options {
    let but_zero = |list: &[u32]| list.iter().copied().filter(|n| *n > 0).collect();
    Options {
        prompts: but_zero(&args.prompts),
        depths: args.depths.clone(),
        streams: args.streams.iter().copied().filter(|n| *n > 0).collect(),
        shared: args.shared,
        keys: args.keys,
        tokens: args.tokens,
        rounds: args.rounds,
    }
}

fn as_json(args: &Bench, facts: &Facts, report: &Report) -> Value {
    let nodes: Map<String, Value> = (facts.placement.nodes.iter())
        .map(|(provider, count)| (provider.clone(), (*count).into()))
        .collect();
    json!({
        "promptd": env!("CARGO_PKG_VERSION"),
        "model": {"name": facts.name, "architecture": facts.architecture, "vocab_size": facts.vocab_size},
        "runtime": {
            "version": facts.runtime_version,
            "provider": facts.placement.provider,
            "provider_reason": facts.placement.why,
            "nodes": nodes,
            "threads": facts.threads,
            "cores": args.cores,
            "spinning": args.spinning,
            "clock": if args.processor_time { "processor time" } else { "wall" },
        },
        "machine": {"processor": processor(), "load_average": load_average()},
        "results": report,
    })
}

/// What the machine calls its processor, or the board itself.
fn processor() -> Option<String> {
    let board = std::fs::read_to_string("/proc/device-tree/model").ok();
    let board = board.map(|name| name.trim_end_matches('\0').to_owned());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    board.or_else(|| named.map(|(_, name)| name.trim().to_owned()))
}

/// Programs that wanted to run in the last minute: where that is more than the cores, figures mean little.
fn load_average() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}
