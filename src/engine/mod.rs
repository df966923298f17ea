//! The engine as a process: the seam's frames, the child that owns the model, and the parent's half that keeps it alive.

pub mod frames;
