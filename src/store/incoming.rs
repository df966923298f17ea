//! A model that is on its way in: a folder beside the models, whose files are written, checksummed and synced, and which
//! becomes a model by a rename when all of it is right.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{Kept, Lock, ModelName, Store, StoreError, clear, plain, sync};
use crate::inference::manifest::{Entry, MAX_FILES, Manifest, NAME};
use crate::inference::{POOLING_FOLDER, hex, inspect, signature};

/// Bytes that are moved at once.
const PIECE: usize = 1 << 20;
/// Levels of folders that are looked into: `onnx/` is one.
const MAX_DEPTH: usize = 3;
/// What goes with a model though no manifest lists it.
const BESIDE: [&str; 4] = ["LICENSE", "NOTICE", "README", "USE_POLICY"];

/// What is said of a model that brings no manifest, or wants another name than it brings.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Its name. `None`: the manifest's, else its folder's.
    pub name: Option<String>,
    /// Its revision. `None`: the manifest's, else made of its files' checksums.
    pub revision: Option<String>,
    /// Where it came from.
    pub source: Option<String>,
    /// The name of the folder or archive it came in, for want of a better one.
    pub around: Option<String>,
    /// Whose signature its manifest must have; empty: nobody's.
    pub trusted: Vec<String>,
}

/// A model that is on its way in.
#[derive(Debug)]
pub struct Incoming<'a> {
    store: &'a Store,
    folder: PathBuf,
    _lock: &'a Lock,
}

impl<'a> Incoming<'a> {
    /// Begins, or goes on where `label` names what was begun before and `afresh` is not wanted.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn begin(
        store: &'a Store,
        lock: &'a Lock,
        label: &str,
        afresh: bool,
    ) -> Result<Self, StoreError> {
        let folder = store.incoming()?.join(plain(label));
        if afresh {
            clear(&folder)?;
        }
        store.make_folder(&folder)?;
        Ok(Incoming { store, folder, _lock: lock })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a file of this name goes; the folders on the way are made.
    ///
    /// # Errors
    /// The name leads out of the folder, or too deep.
    pub fn place(&self, name: &str) -> Result<PathBuf, StoreError> {
        let parts: Vec<&str> = name.split('/').collect();
        let fine = |part: &&str| {
            !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0'])
        };
        if parts.len() > MAX_DEPTH || !parts.iter().all(fine) {
            let reason = "is no name of a file inside a model folder, at most two folders deep";
            return Err(StoreError::wrong(format!("`{}`", name.escape_debug()), reason));
        }
        let mut path = self.folder.clone();
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                self.store.make_folder(&path)?;
            }
            path.push(part);
        }
        Ok(path)
    }

    /// Writes a file of `bytes` bytes from what is read. It may not be there yet.
    ///
    /// # Errors
    /// The disk is full, less is read than there should be, or it cannot be written.
    pub fn write(&self, name: &str, bytes: u64, from: &mut dyn Read) -> Result<(), StoreError> {
        self.store.check_room(bytes)?;
        let path = self.place(name)?;
        let failed = |source| StoreError::io("write", &path)(source);
        let made = File::options().write(true).create_new(true).mode(0o644).open(&path);
        let mut file = made.map_err(failed)?;
        let failed = |source| StoreError::io("write", &path)(source);
        let written = io::copy(&mut from.take(bytes), &mut file).map_err(failed)?;
        if written != bytes {
            let reason = format!("has {written} bytes instead of {bytes}: it was cut off");
            return Err(StoreError::wrong(name, reason));
        }
        let failed = |source| StoreError::io("write", &path)(source);
        file.sync_all().map_err(failed)?;
        self.store.give(&path);
        Ok(())
    }

    /// Makes it a model: names it, gives it a manifest where it has none, checks everything, and renames it.
    ///
    /// # Errors
    /// Something is wrong with the files; or another model has its name. They are then left as they are.
    pub fn finish(&self, about: &Description) -> Result<Kept, StoreError> {
        let root = self.root()?;
        signature::check(&root, &about.trusted)?;
        let known = Manifest::of(&root)?;
        let files = match &known {
            Some(manifest) => manifest.files.clone(),
            None => entries(&root)?,
        };
        if files.is_empty() {
            return Err(StoreError::wrong("the model", "has no files"));
        }
        let inside = (root != self.folder).then(|| root.file_name()).flatten();
        let around = inside.and_then(|name| name.to_str()).or(about.around.as_deref());
        let name = name(known.as_ref(), &files, about, around)?;
        if known.is_none() {
            let manifest = Manifest {
                name: Some(name.name().to_owned()),
                revision: Some(name.revision().to_owned()),
                source: about.source.clone(),
                files,
                ..Manifest::default()
            };
            write_manifest(&root, &manifest)?;
        }
        // Everything that loading checks before the graph is run, the checksums among it.
        inspect::check(&root)?;
        self.settle(&root)?;
        let folder = self.store.folder(&name);
        if folder.is_dir() {
            if Manifest::of(&folder)?.map(|there| there.files)
                != Manifest::of(&root)?.map(|new| new.files)
            {
                return Err(StoreError::There(name.to_string()));
            }
            // It is there already; what was brought is the same.
        } else {
            std::fs::rename(&root, &folder).map_err(StoreError::io("make", &folder))?;
        }
        sync(self.store.root())?;
        clear(&self.folder)?;
        let kept = self.store.list()?.into_iter().find(|kept| kept.name == name);
        kept.ok_or_else(|| StoreError::wrong(name.to_string(), "vanished while it was brought in"))
    }

    /// Does something with it, and leaves nothing of it on the disk where that fails.
    pub(super) fn or_clear(
        self,
        work: impl FnOnce(&Self) -> Result<Kept, StoreError>,
    ) -> Result<Kept, StoreError> {
        work(&self).inspect_err(|_| {
            // The next attempt removes what cannot be removed now.
            let _ = clear(&self.folder);
        })
    }

    /// Where the model's files are: in the folder, or in the only one inside, as archives have it.
    fn root(&self) -> Result<PathBuf, StoreError> {
        let mut root = self.folder.clone();
        for _ in 0..MAX_DEPTH {
            let is_model = ["genai_config.json", "config.json", NAME]
                .iter()
                .any(|name| root.join(name).is_file());
            let mut inside = read_dir(&root)?;
            if is_model || inside.len() != 1 || !inside[0].is_dir() {
                break;
            }
            root = inside.remove(0);
        }
        Ok(root)
    }

    /// Has the disk keep the folders, and gives all of it to the store's owner.
    fn settle(&self, folder: &Path) -> Result<(), StoreError> {
        self.store.give(folder);
        for path in read_dir(folder)? {
            if path.is_dir() {
                self.settle(&path)?;
            } else {
                self.store.give(&path);
            }
        }
        sync(folder)
    }
}

fn write_manifest(root: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let text = toml::to_string(manifest)
        .map_err(|error| StoreError::wrong(NAME, format!("cannot be written: {error}")))?;
    let path = root.join(NAME);
    let written = File::create(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(StoreError::io("write", &path))
}

/// Brings in a folder. With a manifest, the files it lists; without, those in it, in `onnx/` and in `1_Pooling/`.
///
/// # Errors
/// It is no model, or not what its manifest says, or there is no room.
pub fn import_folder(
    store: &Store,
    lock: &Lock,
    folder: &Path,
    about: &Description,
) -> Result<Kept, StoreError> {
    let folder = folder.canonicalize().map_err(StoreError::io("read", folder))?;
    // What is wrong is told of the files as their owner knows them, and before gigabytes are copied.
    inspect::check(&folder)?;
    let listed = Manifest::of(&folder)?;
    let names = match &listed {
        Some(manifest) => beside(&folder, manifest)?,
        None => found(&folder)?,
    };
    let mut total: u64 = 0;
    for name in &names {
        total = total.saturating_add(plain_file(&folder.join(name))?);
    }
    store.check_room(total)?;
    let around = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let incoming = Incoming::begin(store, lock, "import", true)?;
    incoming.or_clear(|incoming| {
        for name in &names {
            let path = folder.join(name);
            let bytes = plain_file(&path)?;
            let mut file = File::open(&path).map_err(StoreError::io("read", &path))?;
            incoming.write(name, bytes, &mut file)?;
        }
        incoming.finish(&Description { around, ..about.clone() })
    })
}

/// The manifest, the files it lists, and what people want to have beside a model.
fn beside(folder: &Path, manifest: &Manifest) -> Result<Vec<String>, StoreError> {
    let mut names: Vec<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
    for name in found(folder)? {
        let goes_along = BESIDE.iter().any(|begin| name.starts_with(begin)) && !name.contains('/');
        if (goes_along || name.starts_with(NAME)) && !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The plain files of a model folder: in it, in `onnx/` and in `1_Pooling/`. Hidden ones are somebody else's.
fn found(folder: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for prefix in [String::new(), "onnx/".to_owned(), format!("{POOLING_FOLDER}/")] {
        let below = folder.join(&prefix);
        if !below.is_dir() {
            continue;
        }
        for path in read_dir(&below)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() || name.starts_with('.') || name.is_empty() {
                continue;
            }
            names.push(format!("{prefix}{name}"));
        }
    }
    if names.len() > MAX_FILES {
        let reason = format!("has {} files; {MAX_FILES} are the most", names.len());
        return Err(StoreError::wrong(folder.display().to_string(), reason));
    }
    Ok(names)
}

/// What a folder holds, by name.
fn read_dir(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder)?.take(super::MAX_ENTRIES);
        let mut paths =
            entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        Ok(paths)
    };
    read().map_err(StoreError::io("read", folder))
}

/// The size of a plain file. A link would bring in what its maker may not read.
fn plain_file(path: &Path) -> Result<u64, StoreError> {
    let data = path.symlink_metadata().map_err(StoreError::io("read", path))?;
    if data.is_file() {
        return Ok(data.len());
    }
    let reason = "is no plain file; copy the folder with `cp -rL` and import the copy";
    Err(StoreError::wrong(path.display().to_string(), reason))
}

/// The files of a folder with sizes and checksums.
fn entries(root: &Path) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    for name in found(root)? {
        let path = root.join(&name);
        let bytes = plain_file(&path)?;
        entries.push(Entry { sha256: checksum(&path)?, name, bytes });
    }
    Ok(entries)
}

/// The sha256 of a file, in hexadecimal.
pub(super) fn checksum(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("read", path))?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => hash.update(piece.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path)(error)),
        }
    }
    Ok(hex(&hash.finalize()))
}

/// What a model is to be called: as the one who brings it says, else as its folder says in full, else as its manifest says,
/// else as its folder or archive is called.
fn name(
    manifest: Option<&Manifest>,
    files: &[Entry],
    about: &Description,
    around: Option<&str>,
) -> Result<ModelName, StoreError> {
    let full = around.and_then(|around| around.parse::<ModelName>().ok());
    let stated = |of: fn(&Manifest) -> Option<&String>| manifest.and_then(of).cloned();
    let name = (about.name.clone())
        .or_else(|| full.as_ref().map(|full| full.name().to_owned()))
        .or_else(|| stated(|manifest| manifest.name.as_ref()))
        .unwrap_or_else(|| plain(around.unwrap_or_default()));
    let revision = (about.revision.clone())
        .or_else(|| full.as_ref().map(|full| full.revision().to_owned()))
        .or_else(|| stated(|manifest| manifest.revision.as_ref()))
        .unwrap_or_else(|| contents(files));
    Ok(ModelName::new(&name, &revision)?)
}

/// A revision made of what the files hold: the same files always have the same.
fn contents(files: &[Entry]) -> String {
    let mut lines: Vec<String> = files
        .iter()
        .map(|file| format!("{} {} {}\n", file.sha256, file.bytes, file.name))
        .collect();
    lines.sort();
    let mut text = hex(&Sha256::digest(lines.concat()));
    text.truncate(12);
    text
}
