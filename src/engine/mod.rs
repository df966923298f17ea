//! The engine as a process: the seam's frames, the child that owns the model, and the parent's half that keeps it alive.

pub mod adapter;
mod backoff;
pub mod client;
mod death;
mod desk;
pub mod escape;
pub mod frames;
mod life;
mod outbox;
mod pace;
pub mod process;
pub mod sandbox;
pub mod trial;

pub use death::{Death, DeathReport, Phase};
