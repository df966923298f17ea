//! Models that a board keeps: a folder for each, `name@revision`, beside each other; a link `current` to the one that the
//! service takes, and `previous` to the one before. What comes in is made beside them, checked, and becomes a model by a
//! rename; what is half done is never found. Knows no network.

mod archive;
mod error;
mod incoming;
mod links;
mod name;

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::inference::manifest::Manifest;

pub use archive::{export, import_tar};
pub use error::StoreError;
pub use incoming::{Description, Incoming, import_folder};
pub use links::{CURRENT, PREVIOUS};
pub use name::{BadName, ModelName, plain};

/// Where models lie that are not whole yet.
const INCOMING: &str = "incoming";
/// Held by whoever changes something.
const LOCK: &str = "lock";
/// Bytes of the disk that models leave to others: logs and the record of a board need some.
const RESERVE: u64 = 64 << 20;
/// More entries than any such folder has.
const MAX_ENTRIES: usize = 4096;

/// The folder of models.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// What the service takes while none of these was chosen: somebody else's folder.
    default: Option<PathBuf>,
}

/// A model that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it is called.
    pub name: ModelName,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether the service takes it.
    pub current: bool,
    /// Whether it is the one before.
    pub previous: bool,
}

/// The right to change something; given back when it is dropped.
#[derive(Debug)]
pub struct Lock {
    // The kernel lets go of it when it is closed.
    _file: File,
}

impl Store {
    /// The store in this folder, which need not be there.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Store { root: root.into(), default: None }
    }

    /// With this folder for the service while no model was chosen.
    #[must_use]
    pub fn with_default(self, default: Option<PathBuf>) -> Self {
        Store { default, ..self }
    }

    /// What the service takes while none of the models was chosen; only what is there.
    pub fn default_folder(&self) -> Option<&Path> {
        self.default.as_deref().filter(|folder| folder.is_dir())
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a model.
    pub fn folder(&self, name: &ModelName) -> PathBuf {
        self.root.join(name.to_string())
    }

    /// Takes the right to change something, and makes the folder where there is none.
    ///
    /// # Errors
    /// Somebody else has it, or the folder cannot be had.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        self.make_folder(&self.root)?;
        let path = self.root.join(LOCK);
        let opened = File::options().write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(StoreError::io("open", &path))?;
        self.give(&path);
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Busy(self.root.clone())),
            Err(error) => Err(StoreError::io("lock", path)(error.into())),
        }
    }

    /// The models, by name.
    ///
    /// # Errors
    /// The folder cannot be read. One that is not there has no models.
    pub fn list(&self) -> Result<Vec<Kept>, StoreError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("read", &self.root)(error)),
        };
        let (current, previous) = (self.current(), self.previous());
        let mut models = Vec::new();
        for entry in entries.take(MAX_ENTRIES) {
            let entry = entry.map_err(StoreError::io("read", &self.root))?;
            let name = entry.file_name().to_str().and_then(|name| name.parse::<ModelName>().ok());
            let Some(name) = name.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            else {
                continue;
            };
            models.push(Kept {
                bytes: size_of(&entry.path(), 0),
                current: current.as_ref() == Some(&name),
                previous: previous.as_ref() == Some(&name),
                name,
            });
        }
        models.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(models)
    }

    /// Of the kept models of this name, the one that came last. What cannot be read counts as not there.
    pub fn newest(&self, name: &str) -> Option<ModelName> {
        let entries = std::fs::read_dir(&self.root).ok()?.take(MAX_ENTRIES).flatten();
        let models = entries.filter_map(|entry| {
            let model = entry.file_name().to_str()?.parse::<ModelName>().ok()?;
            let data =
                entry.metadata().ok().filter(|data| data.is_dir() && model.name() == name)?;
            // A folder is changed by whoever looks after it, but made once; not every file system knows when.
            Some((data.created().or_else(|_| data.modified()).ok()?, model))
        });
        models.max().map(|(_, model)| model)
    }

    /// The model that somebody means: `current`, `previous`, a name, or a name and how its revision begins.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, typed: &str) -> Result<ModelName, StoreError> {
        let linked = match typed {
            CURRENT => self.current(),
            PREVIOUS => self.previous(),
            _ => None,
        };
        if let Some(name) = linked {
            return Ok(name);
        }
        let models = self.list()?;
        if let Some(kept) = models.iter().find(|kept| kept.name.to_string() == typed) {
            return Ok(kept.name.clone());
        }
        let mut found: Vec<&ModelName> =
            models.iter().map(|kept| &kept.name).filter(|name| name.answers_to(typed)).collect();
        let listed = |names: &[&ModelName]| {
            names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        match found.len() {
            1 => Ok(found.remove(0).clone()),
            0 => {
                let all: Vec<&ModelName> = models.iter().map(|kept| &kept.name).collect();
                let place = self.root.display();
                let there = if all.is_empty() {
                    format!("there is none in {place}")
                } else {
                    format!("in {place} there are: {}", listed(&all))
                };
                Err(StoreError::Unknown { typed: typed.to_owned(), there })
            }
            _ => Err(StoreError::Ambiguous { typed: typed.to_owned(), several: listed(&found) }),
        }
    }

    /// Holds every file of a model against its manifest, reading them whole, and the manifest against those who may sign it.
    ///
    /// # Errors
    /// The first that is wrong; or there is no manifest to hold them against.
    pub fn verify(&self, name: &ModelName, trusted: &[String]) -> Result<Manifest, StoreError> {
        let folder = self.folder(name);
        crate::inference::signature::check(&folder, trusted)?;
        let manifest = Manifest::of(&folder)?.ok_or_else(|| {
            StoreError::wrong(
                name.to_string(),
                "has no manifest.toml to be held against; import it again",
            )
        })?;
        crate::inference::manifest::verify(&folder)?;
        Ok(manifest)
    }

    /// Takes a model away. The one before may go; the one in use may not.
    ///
    /// # Errors
    /// It is in use, or cannot be removed.
    pub fn remove(&self, name: &ModelName, _lock: &Lock) -> Result<(), StoreError> {
        if self.current().as_ref() == Some(name) {
            return Err(StoreError::InUse(name.to_string()));
        }
        if self.previous().as_ref() == Some(name) {
            self.forget(PREVIOUS)?;
        }
        // Out of sight first: one that is half removed is never found.
        let folder = self.folder(name);
        let away = self.incoming()?.join(format!("{name}.removed"));
        clear(&away)?;
        std::fs::rename(&folder, &away).map_err(StoreError::io("remove", &folder))?;
        sync(&self.root)?;
        clear(&away)
    }

    /// Checks that there is room for this much.
    ///
    /// # Errors
    /// There is not.
    pub fn check_room(&self, need: u64) -> Result<(), StoreError> {
        let have = self.room();
        if need <= have {
            return Ok(());
        }
        Err(StoreError::Room { path: self.root.clone(), need, have })
    }

    /// Bytes that are left for models.
    fn room(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.root);
        // A system that does not say finds out by writing.
        disk.map_or(u64::MAX, |disk| {
            disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(RESERVE)
        })
    }

    /// The folder of what is not whole yet.
    fn incoming(&self) -> Result<PathBuf, StoreError> {
        let folder = self.root.join(INCOMING);
        self.make_folder(&folder)?;
        Ok(folder)
    }

    /// Makes a folder that everybody may look into, as models hold no secrets, and that belongs to whom the store belongs.
    fn make_folder(&self, folder: &Path) -> Result<(), StoreError> {
        if folder.is_dir() {
            return Ok(());
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.map_err(StoreError::io("make the folder", folder))?;
        self.give(folder);
        Ok(())
    }

    /// Gives a file to the one whom the folder around the store belongs to: root installs models for the service's user.
    fn give(&self, path: &Path) {
        let around = self.root.parent().unwrap_or(&self.root);
        let (Ok(owner), Ok(data)) = (around.metadata(), path.symlink_metadata()) else { return };
        if (owner.uid(), owner.gid()) != (data.uid(), data.gid()) {
            // Only root can; others have made it under their own name anyway.
            let _ = std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()));
        }
    }
}

/// Bytes of the files in a folder and those a few levels below.
fn size_of(folder: &Path, depth: usize) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_ENTRIES);
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_file() => data.len(),
            Ok(data) if data.is_dir() && depth < 4 => size_of(&entry.path(), depth + 1),
            _ => 0,
        })
        .fold(0, u64::saturating_add)
}

/// Removes a folder with all that is in it, where there is one.
fn clear(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Has the disk keep what a folder lists.
fn sync(folder: &Path) -> Result<(), StoreError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(StoreError::io("write", folder))
}

#[cfg(test)]
mod tests;
