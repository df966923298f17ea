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

/// What has to stand in the environment of a process before it opens libonnxruntime.
///
/// - From version 1.29 on the official builds for Linux report what they run to their maker, and keep a number of the machine and what is
///   still to be sent in the user's folder; with this they do neither (<https://github.com/microsoft/onnxruntime/pull/27379>).
/// - On a GPU of NVIDIA's generation 9 or later, attention in half precision goes through cuDNN, which compiles a kernel for each length of
///   a prompt that it has not met: 0.9 s on an H100, as the engine may keep nothing on disk. The other kernels are there already
///   (<https://github.com/microsoft/onnxruntime/pull/28849>). Jetson's GPUs are older and never do it.
pub const FOR_ONNXRUNTIME: [(&str, &str); 2] =
    [("ORT_DISABLE_TELEMETRY", "1"), ("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0")];
