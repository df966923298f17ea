//! Checksums of files, and a memory of those that were computed before: a model of gigabytes is not read at every load only
//! to find that it is what it was. A file counts as unchanged while the system says the same of it: device, inode, size,
//! and the times of its last change, of which a program cannot set back the inode's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::LoadError;
use super::mapped::Mapped;
use super::watch::Identity;

/// The file in the store. It is written in place: the engine is given it opened, and may open no other for writing. What is
/// torn is not read as JSON, and computed again.
const NAME: &str = "hashes.json";
/// Files that are remembered: those of a few dozen models. Beyond this all are forgotten and learned again.
const MOST: usize = 256;
/// More than such a file ever has; what is longer is none.
const MAX_BYTES: u64 = 1 << 20;
/// A file that was changed so short a time ago is not remembered: it could be changed again within the same tick of the
/// file system's clock, and look the same.
const SETTLED_SECONDS: i64 = 2;

/// Checksums, remembered where there is a store.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    file: Option<Arc<File>>,
    known: BTreeMap<PathBuf, Known>,
    changed: bool,
    /// Files that were read, for tests and for people.
    pub(super) computed: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    identity: Identity,
    sha256: String,
}

impl Hashes {
    /// Those that are remembered in a file. What cannot be read there is computed again.
    pub(super) fn open(file: Option<Arc<File>>) -> Self {
        let known = file.as_deref().and_then(read).unwrap_or_default();
        Hashes { file, known, ..Hashes::default() }
    }

    /// The sha256 of a plain file, in hexadecimal.
    ///
    /// # Errors
    /// It cannot be read, or is written to meanwhile.
    pub(super) fn of(&mut self, path: &Path) -> Result<String, LoadError> {
        let read = |source| LoadError::Read { path: path.into(), source };
        let before = Identity::of(path).map_err(read)?;
        // Under whatever name: a folder that was renamed has the same files.
        if let Some(known) = self.known.values().find(|known| known.identity == before) {
            return Ok(known.sha256.clone());
        }
        let map = Mapped::open(path)?;
        map.warm();
        let sha256 = hex(&Sha256::digest(map.bytes()));
        self.computed += 1;
        if Identity::of(path).map_err(read)? != before {
            return Err(LoadError::file(path, "changed while it was read"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if is_settled(&before, i64::try_from(now).unwrap_or(0)) {
            if self.known.len() >= MOST {
                self.known.clear();
            }
            self.known.insert(path.into(), Known { identity: before, sha256: sha256.clone() });
            self.changed = true;
        }
        Ok(sha256)
    }

    /// Writes down what was learned. Nothing depends on it but time.
    pub(super) fn save(&mut self) {
        let Some(file) = self.file.as_deref().filter(|_| self.changed) else { return };
        self.changed = false;
        if let Err(error) = write(file, &self.known) {
            tracing::debug!(%error, "checksums of model files are computed again next time");
        }
    }
}

/// Opens the memory of checksums in a store for reading and writing; `None` where it cannot be had.
pub fn memory(store: &Path) -> Option<Arc<File>> {
    let opened = std::fs::create_dir_all(store).and_then(|()| {
        File::options().read(true).write(true).create(true).truncate(false).open(store.join(NAME))
    });
    match opened {
        Ok(file) => Some(Arc::new(file)),
        Err(error) => {
            tracing::debug!(%error, store = %store.display(), "checksums of model files are not remembered");
            None
        }
    }
}

fn is_settled(identity: &Identity, now: i64) -> bool {
    let last = identity.modified.0.max(identity.changed.0);
    (0..=now.saturating_sub(SETTLED_SECONDS)).contains(&last)
}

fn read(file: &File) -> Option<BTreeMap<PathBuf, Known>> {
    let size = file.metadata().ok().filter(|data| data.is_file() && data.len() <= MAX_BYTES)?.len();
    let mut text = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut text, 0).ok()?;
    serde_json::from_slice(&text).ok()
}

fn write(file: &File, known: &BTreeMap<PathBuf, Known>) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(known)?;
    // Whoever else writes now has learned things, too; these will be learned again.
    flock(file, FlockOperation::NonBlockingLockExclusive)?;
    let written = file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0));
    flock(file, FlockOperation::Unlock)?;
    written
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// A file whose last change of contents is long ago; that of its inode cannot be.
    fn settle(hashes: &mut Hashes, path: &Path) {
        let identity = Identity::of(path).unwrap();
        hashes.known.insert(path.into(), Known { identity, sha256: ABC.into() });
        hashes.changed = true;
    }

    #[test]
    fn what_is_unchanged_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, b"abc").unwrap();
        let mut hashes = Hashes::open(memory(folder.path()));
        assert_eq!((hashes.of(&path).unwrap().as_str(), hashes.computed), (ABC, 1));
        settle(&mut hashes, &path);
        hashes.save();

        let mut again = Hashes::open(memory(folder.path()));
        assert_eq!((again.of(&path).unwrap().as_str(), again.computed), (ABC, 0));
        // Another file of the same size under the same name, as old as the first one.
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let new = folder.path().join("new");
        std::fs::write(&new, b"abd").unwrap();
        std::fs::File::options().write(true).open(&new).unwrap().set_modified(modified).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_ne!(again.of(&path).unwrap(), ABC);
        assert_eq!(again.computed, 1);
    }

    #[test]
    fn a_memory_that_cannot_be_used_is_only_slower() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, b"abc").unwrap();
        std::fs::write(folder.path().join(NAME), b"{\"not\": ").unwrap();
        let mut hashes = Hashes::open(memory(folder.path()));
        assert_eq!((hashes.of(&path).unwrap().as_str(), hashes.computed), (ABC, 1));
        let mut nowhere = Hashes::open(memory(Path::new("/proc/nowhere")));
        settle(&mut nowhere, &path);
        nowhere.save();
        assert_eq!(nowhere.of(&path).unwrap(), ABC);
    }

    #[test]
    fn what_changed_just_now_is_not_trusted() {
        let at = |seconds| Identity {
            device: 1,
            inode: 2,
            bytes: 3,
            modified: (seconds, 0),
            changed: (seconds, 0),
        };
        assert!(is_settled(&at(1000), 1002));
        assert!(!is_settled(&at(1000), 1001));
        // A clock that was set back says nothing.
        assert!(!is_settled(&at(1000), 900));
    }
}
