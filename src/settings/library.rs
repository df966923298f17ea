//! Where libonnxruntime is looked for when nobody says where it is.

use std::path::{Path, PathBuf};

/// A library path and how it was chosen, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The file.
    pub path: PathBuf,
    /// Who named it: a key, a variable, or the search path.
    pub chosen_by: &'static str,
}

/// Finds libonnxruntime: `runtime.library` (which `PROMPTD__RUNTIME__LIBRARY` overrides), then `ORT_DYLIB_PATH`, then
/// beside the program: `../onnxruntime` (a checkout: `target/release/promptd` and `target/onnxruntime`),
/// `../lib/promptd` (an installed package), the system's library directories, `/opt/onnxruntime/lib`, and where Python's
/// `onnxruntime` is installed for everybody, which is how builds for Jetson come (docs/models.md has the list).
///
/// # Errors
/// Every place that was looked at.
pub fn find_library(
    configured: Option<&Path>,
    ort_dylib_path: Option<&str>,
    program: &Path,
) -> Result<Located, String> {
    if let Some(path) = configured {
        return Ok(Located { path: path.to_owned(), chosen_by: "runtime.library" });
    }
    if let Some(path) = ort_dylib_path.filter(|path| !path.is_empty()) {
        return Ok(Located { path: PathBuf::from(path), chosen_by: "ORT_DYLIB_PATH" });
    }
    let directories = search_path(program);
    let found = directories.iter().find_map(|directory| newest_library(directory));
    found.map(|path| Located { path, chosen_by: "the search path" }).ok_or_else(|| {
        let places: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
        format!(
            "no libonnxruntime.so in {}; in a checkout run `make build`, elsewhere set `runtime.library`",
            places.join(", ")
        )
    })
}

/// Where libonnxruntime is expected if it is nowhere.
pub fn expected_library(program: &Path) -> PathBuf {
    let directory = search_path(program).into_iter().next().unwrap_or_default();
    directory.join("libonnxruntime.so")
}

/// The directories looked at, first one first.
fn search_path(program: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if let Some(prefix) = program.parent().and_then(Path::parent) {
        directories.push(prefix.join("onnxruntime"));
        directories.push(prefix.join("lib/promptd"));
    }
    directories.push(PathBuf::from("/usr/local/lib"));
    directories.push(PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)));
    directories.push(PathBuf::from("/usr/lib"));
    directories.push(PathBuf::from("/opt/onnxruntime/lib"));
    directories.extend(wheels(Path::new("/usr/local/lib")));
    directories.extend(wheels(Path::new("/usr/lib")));
    directories
}

/// Where wheels of `onnxruntime` lie below a directory of Pythons, the newest Python first.
fn wheels(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let minor = |name: &str| -> Option<u32> {
        let rest = name.strip_prefix("python3")?;
        if rest.is_empty() { Some(0) } else { rest.strip_prefix('.')?.parse().ok() }
    };
    let mut pythons: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((minor(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    pythons.sort_by(|one, other| other.cmp(one));
    pythons.into_iter().map(|(_, path)| path.join("dist-packages/onnxruntime/capi")).collect()
}

/// `libonnxruntime.so` itself, or the one with the highest version behind it.
fn newest_library(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    let version = |name: &str| -> Option<Vec<u32>> {
        let rest = name.strip_prefix("libonnxruntime.so")?;
        // The plain name is what a distribution's link is called: it says "this one".
        if rest.is_empty() {
            Some(vec![u32::MAX])
        } else {
            rest.strip_prefix('.')?.split('.').map(|n| n.parse().ok()).collect()
        }
    };
    let candidates = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((version(&name)?, entry.path()))
    });
    candidates.max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_wins() {
        let program = Path::new("/nowhere/bin/promptd");
        let by_key = find_library(Some(Path::new("/k.so")), Some("/e.so"), program).unwrap();
        assert_eq!(
            (by_key.path.as_path(), by_key.chosen_by),
            (Path::new("/k.so"), "runtime.library")
        );
        let by_variable = find_library(None, Some("/e.so"), program).unwrap();
        assert_eq!(by_variable.chosen_by, "ORT_DYLIB_PATH");
    }

    #[test]
    fn a_checkout_finds_the_newest_fetched_library() {
        let checkout = tempfile::tempdir().unwrap();
        let lib = checkout.path().join("target/onnxruntime");
        std::fs::create_dir_all(&lib).unwrap();
        for name in [
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.32.0",
            "libonnxruntime.so.tmp",
            "LICENSE",
        ] {
            std::fs::write(lib.join(name), "").unwrap();
        }
        let found =
            find_library(None, None, &checkout.path().join("target/release/promptd")).unwrap();
        assert_eq!(found.path, lib.join("libonnxruntime.so.1.32.0"));
        assert_eq!(found.chosen_by, "the search path");
    }

    #[test]
    fn wheels_of_the_newest_python_are_looked_at_first() {
        let root = tempfile::tempdir().unwrap();
        for name in ["python3.9", "python3.12", "python3", "python2.7", "node"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let found: Vec<_> = wheels(root.path())
            .iter()
            .map(|path| path.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            found,
            ["python3.12", "python3.9", "python3"]
                .map(|name| format!("{name}/dist-packages/onnxruntime/capi"))
        );
    }

    #[test]
    fn what_is_not_found_says_where_it_was_looked_for() {
        let program = Path::new("/nowhere/at/all/promptd");
        if let Err(message) = find_library(None, Some(""), program) {
            assert!(
                message.contains("/nowhere/at/onnxruntime") && message.contains("make build"),
                "{message}"
            );
        }
    }
}
