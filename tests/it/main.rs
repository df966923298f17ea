//! The integration tests: one binary, a module per subject.

#[cfg(test)]
mod inference;
#[cfg(test)]
mod model_folder;
#[cfg(test)]
mod support;
