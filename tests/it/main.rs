//! The integration tests: one binary, a module per subject.

mod inference;
#[cfg(test)]
mod scheduler;
#[cfg(test)]
mod support;
