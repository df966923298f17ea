//! Faults against `promptd serve` with an engine whose every answer is known beforehand.
//!
//! This program is three: `serve` is the service as it is shipped (the same code from the command line down), `engine` the
//! engine that it starts (a service starts its own program file as its engine, and the file is this one), and anything
//! else plays the tests. So no word in the shipped program knows of any of this.

#[cfg(test)]
mod asker;
#[cfg(test)]
mod defects;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod judge;
#[cfg(test)]
mod ledger;
#[cfg(test)]
#[expect(dead_code, reason = "no rules are changed here")]
#[path = "../it/support/mosquitto.rs"]
mod mosquitto;
#[cfg(test)]
mod options;
#[cfg(test)]
mod play;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod schedule;
#[cfg(test)]
mod service;
#[cfg(test)]
mod words;

#[cfg(test)]
use self::options::Suite;

/// Whether what is acknowledged outlives the service. Without a record the answer of a repeated prompt may be another one.
#[cfg(test)]
const RECORD: bool = true;

/// The tests, by name.
#[cfg(test)]
const SUITES: &[Suite] = &[("ends", ends::run), ("ledger", ledger::run), ("defects", defects::run)];

#[cfg(test)]
fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("serve" | "form") => promptd::cli::main(),
        Some("engine") => engine::run(),
        _ => options::play(SUITES),
    }
}

#[cfg(not(test))]
fn main() {}
