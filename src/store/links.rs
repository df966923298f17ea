//! Which model the service takes: two links, changed by renames, each of which is whole at any moment.

use std::path::{Path, PathBuf};

use super::{Lock, ModelName, Store, StoreError, sync};

/// The link to the model that the service takes.
pub const CURRENT: &str = "current";
/// The link to the one before.
pub const PREVIOUS: &str = "previous";

impl Store {
    /// The model that the service takes.
    pub fn current(&self) -> Option<ModelName> {
        self.linked(CURRENT)
    }

    /// The one before.
    pub fn previous(&self) -> Option<ModelName> {
        self.linked(PREVIOUS)
    }

    /// The folder that `model.path` means: of a plain name that is `current`, `previous` or a model here, its folder; a path
    /// to one of the links, the folder it leads to; `current` while none was chosen, the default; any other path, itself.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        let (parent, last) = (path.parent(), path.file_name().and_then(|name| name.to_str()));
        let is_here = parent == Some(self.root.as_path());
        let is_plain = parent.is_some_and(|parent| parent.as_os_str().is_empty());
        let Some(last) = last.filter(|_| is_here || is_plain) else { return path.to_owned() };
        if last == CURRENT || last == PREVIOUS {
            let default = self.default_folder().filter(|_| last == CURRENT);
            let chosen = self.linked(last).map(|name| self.folder(&name));
            let chosen = chosen.or_else(|| default.map(Path::to_owned));
            return chosen.unwrap_or_else(|| self.root.join(last));
        }
        let kept = last.parse::<ModelName>().ok().map(|name| self.folder(&name));
        kept.filter(|folder| folder.is_dir()).unwrap_or_else(|| path.to_owned())
    }

    /// Whether `model.path` means whatever model is the current one.
    pub fn follows_current(&self, path: &Path) -> bool {
        path == Path::new(CURRENT) || path == self.root.join(CURRENT)
    }

    /// Makes a model the current one, and the one that was it the previous one.
    ///
    /// # Errors
    /// The links cannot be written; at least `current` is then what it was.
    pub fn switch(&self, to: &ModelName, _lock: &Lock) -> Result<(), StoreError> {
        let before = self.current();
        if before.as_ref() == Some(to) {
            return Ok(());
        }
        // A power cut between the two leaves `previous` at the model that is still in use, which is harmless.
        if let Some(before) = &before {
            self.link(PREVIOUS, before)?;
        }
        self.link(CURRENT, to)
    }

    /// Goes back to the previous model, or to none where the default was before it, and makes the one that was in use the
    /// previous one. Gives the folder that the service takes now.
    ///
    /// # Errors
    /// There is none, or the links cannot be written.
    pub fn go_back(&self, lock: &Lock) -> Result<PathBuf, StoreError> {
        let current = self.current();
        let previous = self.previous().filter(|name| self.folder(name).is_dir());
        if let Some(previous) = previous.filter(|previous| Some(previous) != current.as_ref()) {
            self.switch(&previous, lock)?;
            if current.is_none() {
                // The default was in use, and is what comes before it again.
                self.forget(PREVIOUS)?;
            }
            return Ok(self.folder(&previous));
        }
        let (Some(default), Some(current)) = (self.default_folder(), current) else {
            return Err(StoreError::NoPrevious);
        };
        self.link(PREVIOUS, &current)?;
        self.forget(CURRENT)?;
        Ok(default.to_owned())
    }

    /// Puts `current` back to `previous`, or away where the default was before it, because `failed` does not work, which then is
    /// no model to go back to. Does nothing where `current` is another one by now. Needs no lock: it is one rename, and somebody who is at work waits for it.
    ///
    /// # Errors
    /// The link cannot be written.
    pub fn give_up(&self, failed: &ModelName) -> Result<(), StoreError> {
        if self.current().as_ref() != Some(failed) {
            return Ok(());
        }
        match self.previous().filter(|previous| previous != failed) {
            Some(previous) => self.link(CURRENT, &previous)?,
            None if self.default_folder().is_some() => self.forget(CURRENT)?,
            None => return Err(StoreError::NoPrevious),
        }
        self.forget(PREVIOUS)
    }

    /// Removes a link.
    pub(super) fn forget(&self, link: &str) -> Result<(), StoreError> {
        let path = self.root.join(link);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", path)(error))
            }
            _ => sync(&self.root),
        }
    }

    fn linked(&self, link: &str) -> Option<ModelName> {
        // Links of others, and those that lead elsewhere, are none of ours.
        std::fs::read_link(self.root.join(link)).ok()?.to_str()?.parse().ok()
    }

    fn link(&self, link: &str, to: &ModelName) -> Result<(), StoreError> {
        let path = self.root.join(link);
        let new = self.root.join(format!(".{link}.new"));
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", new)(error));
            }
            _ => {}
        }
        let made = std::os::unix::fs::symlink(to.to_string(), &new);
        made.map_err(StoreError::io("write", &new))?;
        self.give(&new);
        std::fs::rename(&new, &path).map_err(StoreError::io("write", &path))?;
        sync(&self.root)
    }
}
