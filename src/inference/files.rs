//! How a file of a model folder is named and read: plain files inside the folder only, and never more than a bound. Knows no
//! layout.

use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::error::LoadError;

/// JSON files of model folders are at most some 20 MB (tokenizers of 260,000 tokens).
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// The path of a file that a model names, if the name stays inside `base`: one plain name, no folders.
pub(super) fn inside(
    base: &Path,
    source: &Path,
    key: &str,
    name: &str,
) -> Result<PathBuf, LoadError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if !name.contains(['/', '\\', '\0']) => {
            Ok(base.join(part))
        }
        _ => {
            let reason = format!(
                "{key} is `{}`, which names a file outside the model folder",
                name.escape_debug()
            );
            Err(LoadError::file(source, reason))
        }
    }
}

/// Folders that a file of a model may lie in, below the model's own: one (`onnx/`), and one to spare.
const MAX_DEPTH: usize = 3;

/// The same where the file may lie in a folder inside. No folder on the way may be a link.
pub(super) fn below(
    base: &Path,
    source: &Path,
    key: &str,
    name: &str,
) -> Result<PathBuf, LoadError> {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > MAX_DEPTH {
        return inside(base, source, key, name);
    }
    let mut path = base.to_owned();
    for (at, part) in parts.iter().enumerate() {
        path = inside(&path, source, key, part)?;
        if at + 1 < parts.len() && path.is_symlink() {
            return Err(LoadError::file(
                path,
                "is a symbolic link; model folders hold plain files only",
            ));
        }
    }
    Ok(path)
}

/// The size of a plain file that is not empty. Links are refused, so that what was checked is what will be opened.
pub(super) fn plain_file(path: &Path) -> Result<u64, LoadError> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(LoadError::file(path, "is missing"));
        }
        Err(source) => return Err(LoadError::Read { path: path.into(), source }),
    };
    let kind = metadata.file_type();
    let wrong = if kind.is_symlink() {
        "is a symbolic link; model folders hold plain files only (copy the file itself)"
    } else if kind.is_dir() {
        "is a folder, expected a file"
    } else if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device()
    {
        "is no plain file"
    } else if metadata.len() == 0 {
        "is empty"
    } else {
        return Ok(metadata.len());
    };
    Err(LoadError::file(path, wrong))
}

/// A file's bytes, bounded.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let size = plain_file(path)?;
    if size > MAX_TEXT_BYTES {
        return Err(LoadError::file(
            path,
            format!("has {size} bytes, at most {MAX_TEXT_BYTES} are read"),
        ));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)
        .map_err(|source| LoadError::Read { path: path.into(), source })?;
    let read = file.take(MAX_TEXT_BYTES).read_to_end(&mut bytes);
    read.map_err(|source| LoadError::Read { path: path.into(), source })?;
    Ok(bytes)
}

/// A file's text, bounded.
pub(super) fn read_text(path: &Path) -> Result<String, LoadError> {
    String::from_utf8(read(path)?)
        .map_err(|error| LoadError::file(path, format!("is not UTF-8 ({})", error.utf8_error())))
}

/// A file as JSON, bounded.
pub(super) fn read_json(path: &Path) -> Result<Value, LoadError> {
    serde_json::from_slice(&read(path)?)
        .map_err(|error| LoadError::file(path, format!("is not JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_must_stay_inside() {
        let base = Path::new("/m");
        assert_eq!(inside(base, base, "k", "model.onnx").unwrap(), Path::new("/m/model.onnx"));
        for name in ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a/../b", "./x", "x/"] {
            let error = inside(base, Path::new("/m/c.json"), "key", name).unwrap_err().to_string();
            assert!(error.contains("outside") && error.contains("key"), "{name}: {error}");
        }
    }

    #[test]
    fn names_may_lead_into_folders_inside() {
        let base = Path::new("/m");
        let found = below(base, base, "k", "onnx/model.onnx").unwrap();
        assert_eq!(found, Path::new("/m/onnx/model.onnx"));
        for name in ["a/../b", "/a", "a//b", "a/./b", "..", "a/b/c/d"] {
            assert!(below(base, base, "k", name).is_err(), "{name}");
        }
    }

    #[test]
    fn only_plain_files_that_hold_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("full"), b"x").unwrap();
        std::fs::write(path("empty"), b"").unwrap();
        std::os::unix::fs::symlink(path("full"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("loop"), path("loop")).unwrap();
        assert_eq!(plain_file(&path("full")).unwrap(), 1);
        for (name, words) in [
            ("empty", "is empty"),
            ("link", "symbolic link"),
            ("loop", "symbolic link"),
            ("none", "is missing"),
            (".", "is a folder"),
        ] {
            let error = plain_file(&path(name)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
