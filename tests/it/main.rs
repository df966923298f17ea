//! The integration tests: one binary, a module per subject.
//!
//! `#[cfg(test)]` tells clippy that helpers are tests too, where `unwrap` and `panic!` are the right words.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod config;
#[cfg(test)]
mod engine_client;
#[cfg(test)]
mod engine_death;
#[cfg(test)]
mod engine_process;
#[cfg(test)]
mod forms;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod inference;
#[cfg(test)]
mod lines;
#[cfg(test)]
mod logprobs;
#[cfg(test)]
mod main_job;
#[cfg(test)]
mod model_folder;
#[cfg(test)]
mod mqtt;
#[cfg(test)]
mod mqtt_faults;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod record;
#[cfg(test)]
mod scheduler;
#[cfg(test)]
mod shipped;
#[cfg(test)]
mod socket;
#[cfg(test)]
mod socket_bind;
#[cfg(test)]
mod socket_misuse;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tools;
#[cfg(test)]
mod walls;
