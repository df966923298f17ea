//! What several test modules share: the program under test as a child, and a plain HTTP client for its socket.

pub(crate) mod broker;
pub(crate) mod document;
pub(crate) mod door;
pub(crate) mod engine;
pub(crate) mod fleet;
pub(crate) mod hidden;
pub(crate) mod http;
pub(crate) mod model;
pub(crate) mod mosquitto;
pub(crate) mod raw_http;
pub(crate) mod raw_mqtt;
pub(crate) mod scripted_broker;
pub(crate) mod service;
pub(crate) mod terminal;
pub(crate) mod words;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The longest any test waits for something that should happen within a second; a busy single-core machine gets there too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something, or fails the test with what it waited for.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says `true` when it is dropped, also by a test that fails: a scope waits for the threads that go on until then, and the test
/// would hang where it should fail.
#[derive(Debug)]
pub(crate) struct TrueAtTheEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for TrueAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The libonnxruntime that `make runtime` fetched, beside the built programs.
pub(crate) fn library() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_promptd"));
    let found = promptd::settings::find_library(
        None,
        std::env::var("ORT_DYLIB_PATH").ok().as_deref(),
        program,
    );
    found.unwrap_or_else(|message| panic!("{message} (`make test` fetches it)")).path
}

/// The model that ships.
pub(crate) fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// Further models and vectors that are not part of this repository; tests that need them say so and pass where they are absent.
pub(crate) fn material() -> Option<PathBuf> {
    let named = std::env::var_os("PROMPTD_TEST_MATERIAL").map(PathBuf::from);
    let path =
        named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/material"));
    if path.join("golden").is_dir() {
        return Some(path);
    }
    println!("skipped: no test material at {}", path.display());
    None
}
