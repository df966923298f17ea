//! What several subjects need.

pub(crate) mod broker;
pub(crate) mod door;
