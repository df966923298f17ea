//! `manifest.toml`: which files a model folder must have, how long they are and what they hash to. Optional; a folder
//! without it is checked for what its own files state.

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::error::LoadError;
use super::files;
use super::mapped::Mapped;

/// The manifest's name in the model folder.
pub(super) const NAME: &str = "manifest.toml";

/// More files than any model folder has; a longer list is no manifest.
const MAX_FILES: usize = 1024;

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    file: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Checks every file the manifest names: present, plain, of the right size and contents.
pub(super) fn check(root: &Path) -> Result<(), LoadError> {
    let path = root.join(NAME);
    if !path.exists() {
        return Ok(());
    }
    let text = files::read_text(&path)?;
    let manifest: Manifest = toml::from_str(&text)
        .map_err(|error| LoadError::file(&path, format!("is no manifest: {}", error.message())))?;
    if manifest.file.len() > MAX_FILES {
        return Err(LoadError::file(
            &path,
            format!("lists {} files; {MAX_FILES} are the most", manifest.file.len()),
        ));
    }
    for entry in &manifest.file {
        check_entry(root, &path, entry)?;
    }
    Ok(())
}

fn check_entry(root: &Path, manifest: &Path, entry: &Entry) -> Result<(), LoadError> {
    let file = files::inside(root, manifest, "file.name", &entry.name)?;
    let size = files::plain_file(&file)?;
    if size != entry.bytes {
        let reason = format!("has {size} bytes, {NAME} says {}; fetch it again", entry.bytes);
        return Err(LoadError::file(file, reason));
    }
    let map = Mapped::open(&file)?;
    map.warm();
    let hash = hex(&Sha256::digest(map.bytes()));
    if !hash.eq_ignore_ascii_case(&entry.sha256) {
        let reason = format!("has the sha256 {hash}, {NAME} says {}; fetch it again", entry.sha256);
        return Err(LoadError::file(file, reason));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_hashes_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.bin"), b"abc").unwrap();
        let right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let cases = [
            (format!("[[file]]\nname='a.bin'\nbytes=3\nsha256='{right}'"), None),
            (
                format!("[[file]]\nname='a.bin'\nbytes=4\nsha256='{right}'"),
                Some("has 3 bytes, manifest.toml says 4"),
            ),
            ("[[file]]\nname='a.bin'\nbytes=3\nsha256='00'".into(), Some("has the sha256 ba78")),
            ("[[file]]\nname='../a.bin'\nbytes=3\nsha256='00'".into(), Some("outside")),
            ("[[file]]\nname='b.bin'\nbytes=3\nsha256='00'".into(), Some("b.bin: is missing")),
            ("[[file".into(), Some("is no manifest")),
        ];
        for (manifest, words) in cases {
            std::fs::write(dir.path().join(NAME), &manifest).unwrap();
            match (check(dir.path()), words) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => {
                    assert!(error.to_string().contains(words), "{error} / {words}");
                }
                (result, words) => panic!("{manifest}: {result:?}, expected {words:?}"),
            }
        }
    }
}
