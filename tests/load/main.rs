//! Load on `promptd serve` with an engine whose speed is known, so that capacity is a number and not a guess.
//!
//! This program is four: `serve` is the service as it is shipped (the same code from the command line down), `engine` the
//! engine that it starts (a service starts its own program file as its engine, and the file is this one), `serve-inside` the service
//! with a scripted engine in its own process, and anything else plays the load. So no word in the shipped program knows of any
//! of this.

#[cfg(test)]
use std::process::ExitCode;

#[cfg(test)]
mod asking;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod figures;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod inside;
#[cfg(test)]
#[expect(dead_code, reason = "others stop their broker, this one only runs")]
#[path = "../it/support/mosquitto.rs"]
mod mosquitto;
#[cfg(test)]
mod mqtt;
#[cfg(test)]
mod overhead;
#[cfg(test)]
mod overload;
#[cfg(test)]
#[path = "../it/support/raw_mqtt.rs"]
mod raw_mqtt;
#[cfg(test)]
mod service;

#[cfg(test)]
type Play = fn(Option<u64>) -> ExitCode;

/// What can be played, by its name on the command line.
#[cfg(test)]
const PLAYS: [(&str, Play); 4] = [
    ("broker", mqtt::play),
    ("idle", idle::play),
    ("overhead", overhead::play),
    ("overload", overload::play),
];

#[cfg(test)]
fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("serve" | "form") => promptd::cli::main(),
        Some("engine") => engine::run(),
        Some("serve-inside") => inside::run(&std::env::args().skip(2).collect::<Vec<_>>()),
        _ => play(std::env::args().skip(1).collect()),
    }
}

/// Plays what is named, or all; `--seconds N`: for so long, and what depends on the machine's speed counts too.
#[cfg(test)]
fn play(arguments: Vec<String>) -> ExitCode {
    let (mut names, mut seconds, mut arguments) = (Vec::new(), None, arguments.into_iter());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => {
                for (name, _) in PLAYS {
                    println!("{name}: test");
                }
                return ExitCode::SUCCESS;
            }
            "--seconds" => seconds = arguments.next().and_then(|number| number.parse().ok()),
            option if option.starts_with('-') => {}
            _ => names.push(argument),
        }
    }
    let named = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    let mut asked = PLAYS.iter().filter(|(name, _)| named(name));
    let failed = asked.any(|(_, play)| play(seconds) != ExitCode::SUCCESS);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(not(test))]
fn main() {}
