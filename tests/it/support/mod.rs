//! What several subjects' tests share.

pub(crate) mod engine;
pub(crate) mod words;
