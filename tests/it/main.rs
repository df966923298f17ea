//! The integration tests: one binary, a module per subject.

#[cfg(test)]
mod scheduler;
#[cfg(test)]
mod support;
