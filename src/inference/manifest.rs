//! `manifest.toml`: which files a model folder must have, how long they are and what they hash to, and how one sees that the
//! model works. Optional; a folder without it is checked for what its own files state.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::LoadError;
use super::files;
use super::hashes::Hashes;

/// The manifest's name in the model folder.
pub const NAME: &str = "manifest.toml";

/// More files than any model folder has; a longer list is no manifest.
pub const MAX_FILES: usize = 1024;

/// What a manifest says. Keys that are not known here are somebody else's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Manifest {
    /// What the model is called where several are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which of them by this name it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Where it came from, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Tokens a second, of one answer, below which it is of no use on the board it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tokens_per_second: Option<f64>,
    /// Its files.
    #[serde(rename = "file")]
    pub files: Vec<Entry>,
    /// What it has to answer before anybody relies on it.
    #[serde(rename = "golden", skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<Golden>,
}

/// A file of a model folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Entry {
    /// Its name, below the folder.
    pub name: String,
    /// How long it is.
    pub bytes: u64,
    /// Its checksum in hexadecimal.
    pub sha256: String,
}

/// A question that is asked at temperature 0, and what its answer must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// The question.
    pub prompt: String,
    /// The system message in front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The whole answer. Rounding differs between processors: for texts that hang on a hair, `contains` is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Text that must stand in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// The most tokens that are waited for.
    #[serde(default = "default_tokens")]
    pub max_tokens: u32,
}

fn default_tokens() -> u32 {
    64
}

impl Manifest {
    /// Reads the manifest of a folder; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is no manifest.
    pub fn of(root: &Path) -> Result<Option<Manifest>, LoadError> {
        let path = root.join(NAME);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let text = files::read_text(&path)?;
        let manifest: Manifest = toml::from_str(&text).map_err(|error| {
            LoadError::file(&path, format!("is no manifest: {}", error.message()))
        })?;
        if manifest.files.len() > MAX_FILES {
            return Err(LoadError::file(
                &path,
                format!("lists {} files; {MAX_FILES} are the most", manifest.files.len()),
            ));
        }
        Ok(Some(manifest))
    }
}

/// Holds every file against the manifest of its folder, reading each whole.
///
/// # Errors
/// The first that is missing, of another size or of other contents.
pub fn verify(root: &Path) -> Result<(), LoadError> {
    check(root, &mut Hashes::default())
}

/// Checks every file the manifest names: present, plain, of the right size and contents.
pub(super) fn check(root: &Path, hashes: &mut Hashes) -> Result<(), LoadError> {
    let Some(manifest) = Manifest::of(root)? else { return Ok(()) };
    let path = root.join(NAME);
    for entry in &manifest.files {
        check_entry(root, &path, entry, hashes)?;
    }
    Ok(())
}

fn check_entry(
    root: &Path,
    manifest: &Path,
    entry: &Entry,
    hashes: &mut Hashes,
) -> Result<(), LoadError> {
    let file = files::below(root, manifest, "file.name", &entry.name)?;
    let size = files::plain_file(&file)?;
    if size != entry.bytes {
        let reason = format!("has {size} bytes, {NAME} says {}; fetch it again", entry.bytes);
        return Err(LoadError::file(file, reason));
    }
    let hash = hashes.of(&file)?;
    if !hash.eq_ignore_ascii_case(&entry.sha256) {
        let reason = format!("has the sha256 {hash}, {NAME} says {}; fetch it again", entry.sha256);
        return Err(LoadError::file(file, reason));
    }
    Ok(())
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
            match (check(dir.path(), &mut Hashes::default()), words) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => {
                    assert!(error.to_string().contains(words), "{error} / {words}");
                }
                (result, words) => panic!("{manifest}: {result:?}, expected {words:?}"),
            }
        }
    }
}
