//! Vectors made by independent implementations. They lie outside of the repository; tests that need them pass with a
//! note where they are absent.

use std::path::PathBuf;

/// The folder that holds them: `PROMPTD_TEST_MATERIAL`, or `material` in a `shared` folder beside the repository.
pub(super) fn root() -> Option<PathBuf> {
    let named = std::env::var_os("PROMPTD_TEST_MATERIAL").map(PathBuf::from);
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/material");
    let found = named.unwrap_or(beside);
    if found.is_dir() {
        return Some(found);
    }
    println!(
        "skipped: there is no {}; PROMPTD_TEST_MATERIAL can name another folder",
        found.display()
    );
    None
}

/// The lines of a file of JSON lines.
pub(super) fn lines(file: &str) -> Option<Vec<serde_json::Value>> {
    let text = std::fs::read_to_string(root()?.join(file)).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}
