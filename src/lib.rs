//! promptd: a daemon that answers prompts over MQTT and a Unix socket with a LLaMA-class model on the board itself.
//!
//! The rooms, lowest first; each may know only those below it (`tests/it/walls.rs` keeps it so, docs/architecture.md
//! tells the story):
//!
//! | room | what it is |
//! |---|---|
//! | [`request`] | the words: a prompt, an answer, a refusal |
//! | [`inference`] | tokens in, tokens out: model folder, ONNX Runtime, KV cache, tokenizer, sampler, grammar |
//! | [`engine`] | the seam between the two processes, and the child on its other side |
//! | [`store`] | the models that a board keeps, and which of them it takes |
//! | [`hub`] | fetches models from a hub over HTTP, for the command line only |
//! | [`board`] | what the board says of itself: temperature, clocks, memory |
//! | [`traffic`] | counts and logs each request once |
//! | [`session`] | conversations kept for clients that cannot resend them |
//! | [`record`] | what outlasts the service: accepted prompts, answers for a while, conversations |
//! | [`scheduler`] | accepts, queues, starts and ends prompts; knows no topic and no tensor |
//! | [`identity`] | who asks, and what they may |
//! | [`control`] | what an operator may ask of a running promptd |
//! | [`wire`] | the JSON that both doors speak, and profiles |
//! | [`mqtt`], [`socket`] | the doors |
//! | [`settings`], [`telemetry`], [`systemd`] | what the operator wrote, sees, and starts it with |
//! | [`daemon`] | wires it all together |
//! | [`cli`] | the commands |
//! | [`defect`] | faults that test builds can be told to have |

pub mod board;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod defect;
pub mod engine;
pub mod hub;
pub mod identity;
pub mod inference;
pub mod mqtt;
pub mod record;
pub mod request;
pub mod scheduler;
pub mod session;
pub mod settings;
pub mod socket;
pub mod store;
pub mod systemd;
pub mod telemetry;
pub mod traffic;
pub mod wire;

#[cfg(test)]
#[path = "../tests/it/support/random.rs"]
mod random;
