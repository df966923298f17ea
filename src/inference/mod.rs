//! Tokens in, tokens out. No network, no tokio.
