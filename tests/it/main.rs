//! The integration tests: one binary, a module per subject.
//!
//! `#[cfg(test)]` tells clippy that helpers are tests too, where `unwrap` and `panic!` are the right words.

#[cfg(test)]
mod activation;
#[cfg(test)]
mod apis;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod board;
#[cfg(test)]
mod chat_terminal;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod cli_document;
#[cfg(test)]
mod config;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod embeddings;
#[cfg(test)]
mod engine_client;
#[cfg(test)]
mod engine_death;
#[cfg(test)]
mod engine_ends;
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
mod logs;
#[cfg(test)]
mod main_job;
#[cfg(test)]
mod model_change;
#[cfg(test)]
mod model_command;
#[cfg(test)]
mod model_families;
#[cfg(test)]
mod model_folder;
#[cfg(test)]
mod model_layouts;
#[cfg(test)]
mod model_memory;
#[cfg(test)]
mod model_pull;
#[cfg(test)]
mod models;
#[cfg(test)]
mod monitoring;
#[cfg(test)]
mod mqtt;
#[cfg(test)]
mod mqtt_brokers;
#[cfg(test)]
mod mqtt_cluster;
#[cfg(test)]
mod mqtt_denied;
#[cfg(test)]
mod mqtt_faults;
#[cfg(test)]
mod mqtt_fleet;
#[cfg(test)]
mod mqtt_network;
#[cfg(test)]
mod mqtt_security;
#[cfg(test)]
mod named;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod prepared;
#[cfg(test)]
mod protocol;
#[cfg(test)]
mod recipes;
#[cfg(test)]
mod record;
#[cfg(test)]
mod record_disk;
#[cfg(test)]
mod record_wear;
#[cfg(test)]
mod reuse;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod scheduler;
#[cfg(test)]
mod shipped;
#[cfg(test)]
mod socket;
#[cfg(test)]
mod socket_bind;
#[cfg(test)]
mod socket_crowd;
#[cfg(test)]
mod socket_misuse;
#[cfg(test)]
mod support;
#[cfg(test)]
mod surroundings;
#[cfg(test)]
mod tcp;
#[cfg(test)]
mod tools;
#[cfg(test)]
mod walls;
#[cfg(test)]
mod watchdog;
