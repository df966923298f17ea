//! The integration tests: one binary, a module per subject.

mod lines;
mod socket;
mod socket_bind;
mod support;
