//! The JSON that both doors speak.
