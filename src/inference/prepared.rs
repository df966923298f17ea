//! Prepared copies of models: the graph as ONNX Runtime optimises it, with the weights in the order that this machine's
//! kernels want beside the original ones. Loaded from there, weights are pages of a file, which the system can give back,
//! instead of memory of the engine's own.
//!
//! A copy belongs to the contents of the model's files, to a version of ONNX Runtime and to the features of a processor. It
//! lies in the store under the checksum of all three, and comes to be by a rename: what was interrupted is never found.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::LoadError;
use super::folder::Folder;
use super::hashes::{Hashes, hex};

/// Raised when what is written here changes.
const FORM: u32 = 1;
/// The folder of all copies in the store.
const COPIES: &str = "prepared";
/// What a copy is of; written last.
const LABEL: &str = "prepared.json";
/// The graph in a copy.
pub(super) const GRAPH: &str = "model.onnx";
/// Its weights.
pub(super) const WEIGHTS: &str = "model.onnx.data";
/// What is not a copy yet ends so.
const PARTIAL: &str = "partial";

/// What a copy is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    form: u32,
    /// ONNX Runtime's version.
    runtime: String,
    /// Kind and features of the processor, as far as kernels are chosen by them.
    processor: String,
    /// Names and checksums of the graph's file and those it takes weights from.
    files: Vec<(String, String)>,
}

/// What lies in a copy's folder beside the graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Label {
    key: Key,
    /// The graph it was made from.
    source: PathBuf,
    /// Files of the copy, their sizes and checksums.
    files: Vec<(String, u64, String)>,
}

/// A copy that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Its graph.
    pub(super) graph: PathBuf,
    /// Its files and their sizes.
    pub(super) files: Vec<(PathBuf, u64)>,
}

impl Key {
    /// Of a model with this runtime on this machine.
    pub(super) fn of(
        folder: &Folder,
        runtime: &str,
        hashes: &mut Hashes,
    ) -> Result<Self, LoadError> {
        let mut files = Vec::new();
        for (path, _) in &folder.files {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, hashes.of(path)?));
        }
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Ok(Key { form: FORM, runtime: runtime.into(), processor: processor(&cpuinfo), files })
    }

    /// The name of the copy's folder.
    fn name(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        // Half of the digest: nobody forges what only its owner can write.
        hex(Sha256::digest(text).get(..16).unwrap_or_default())
    }

    /// Why a copy with that key is not one with this.
    fn differs(&self, other: &Key) -> String {
        if other.form != self.form {
            "it was made by another version of promptd".to_owned()
        } else if other.runtime != self.runtime {
            format!("it was made with ONNX Runtime {}, this is {}", other.runtime, self.runtime)
        } else if other.processor != self.processor {
            "it was made on another kind of processor".to_owned()
        } else {
            "the model's files have changed".to_owned()
        }
    }
}

/// Features of the processor that kernels are chosen by, with the machine's architecture.
fn processor(cpuinfo: &str) -> String {
    const KINDS: [&str; 12] = [
        "avx", "fma", "f16c", "amx", "sse4", "asimd", "sve", "sme", "i8mm", "bf16", "fphp", "vnni",
    ];
    let line =
        cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let words = line.and_then(|line| line.split_once(':')).map_or("", |(_, words)| words);
    let mut words: Vec<&str> = (words.split_whitespace())
        .filter(|word| KINDS.iter().any(|kind| word.starts_with(kind)))
        .collect();
    words.sort_unstable();
    format!("{} {}", std::env::consts::ARCH, words.join(" ")).trim_end().to_owned()
}

/// Whether there is any copy in a store: without one nothing need be computed.
pub(super) fn any(store: &Path) -> bool {
    std::fs::read_dir(store.join(COPIES)).is_ok_and(|mut entries| entries.next().is_some())
}

/// The copy of a model. Where there is none that can be used, but one of an earlier state of things, a sentence about why
/// not.
pub(super) fn find(
    store: &Path,
    folder: &Folder,
    key: &Key,
    hashes: &mut Hashes,
) -> Result<Copy, Option<String>> {
    let place = store.join(COPIES).join(key.name());
    if let Some(label) = label_of(&place) {
        return open(&place, &label, hashes).map_err(|reason| {
            Some(format!("the prepared copy {} is not used: {reason}", place.display()))
        });
    }
    let stale = labels(store).into_iter().find(|(_, label)| label.source == folder.graph);
    Err(stale.map(|(place, label)| {
        let why = key.differs(&label.key);
        let place = place.display();
        format!(
            "the prepared copy {place} is not used: {why}; `promptd model prepare` makes another"
        )
    }))
}

/// Checks a copy's files: only what was written is loaded.
fn open(place: &Path, label: &Label, hashes: &mut Hashes) -> Result<Copy, String> {
    let mut files = Vec::new();
    for (name, bytes, sha256) in &label.files {
        if ![GRAPH, WEIGHTS].contains(&name.as_str()) {
            return Err(format!("its {LABEL} names a file `{}`", name.escape_debug()));
        }
        let path = place.join(name);
        let size = super::files::plain_file(&path).map_err(|error| error.to_string())?;
        if size != *bytes {
            return Err(format!("its {name} has {size} bytes, {bytes} were written"));
        }
        if hashes.of(&path).map_err(|error| error.to_string())? != *sha256 {
            return Err(format!("its {name} is not what was written"));
        }
        files.push((path, size));
    }
    Ok(Copy { graph: place.join(GRAPH), files })
}

fn label_of(place: &Path) -> Option<Label> {
    let text = super::files::read(&place.join(LABEL)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// All copies of a store.
fn labels(store: &Path) -> Vec<(PathBuf, Label)> {
    let entries = std::fs::read_dir(store.join(COPIES)).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), label_of(&entry.path())?))).collect()
}

/// Makes a copy: `write` is given the folder in which the graph and its weights are to be. Copies that the same graph had
/// before are removed. Returns the copy and whether it was made now.
///
/// # Errors
/// The store cannot be written to, or what `write` fails with; the store is as it was then.
pub(super) fn make(
    store: &Path,
    folder: &Folder,
    key: &Key,
    hashes: &mut Hashes,
    write: impl FnOnce(&Path) -> Result<(), LoadError>,
) -> Result<(Copy, bool), LoadError> {
    let copies = store.join(COPIES);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Write { path, source }
    };
    std::fs::create_dir_all(&copies).map_err(failed(&copies))?;
    // One at a time; the lock goes with the process.
    let lock = File::open(&copies).map_err(failed(&copies))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(&copies)(error.into()))?;
    sweep(&copies);
    let place = copies.join(key.name());
    if let Some(copy) = label_of(&place).and_then(|label| open(&place, &label, hashes).ok()) {
        return Ok((copy, false));
    }
    let partial = copies.join(format!("{}.{PARTIAL}", key.name()));
    let made = fill(&partial, folder, key, hashes, write).and_then(|()| {
        // A damaged copy of the same key is in the way.
        remove(&place).and_then(|()| std::fs::rename(&partial, &place)).map_err(failed(&place))?;
        lock.sync_all().map_err(failed(&copies))
    });
    if let Err(error) = made {
        // What is left is swept up the next time.
        let _ = remove(&partial);
        return Err(error);
    }
    own_like(store, &copies);
    for (stale, label) in labels(store) {
        if stale != place && label.source == folder.graph {
            remove(&stale).map_err(failed(&stale))?;
        }
    }
    let label = label_of(&place).ok_or_else(|| LoadError::file(&place, "has no label"))?;
    let copy = open(&place, &label, hashes).map_err(|reason| LoadError::file(&place, reason))?;
    Ok((copy, true))
}

/// Fills a new folder with a copy, safe on the disk.
fn fill(
    partial: &Path,
    folder: &Folder,
    key: &Key,
    hashes: &mut Hashes,
    write: impl FnOnce(&Path) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let failed = |source| LoadError::Write { path: partial.into(), source };
    std::fs::create_dir(partial).map_err(failed)?;
    write(partial)?;
    let mut files = Vec::new();
    for name in [GRAPH, WEIGHTS] {
        let path = partial.join(name);
        // A graph with few weights has them all inside.
        if !path.exists() && name == WEIGHTS {
            continue;
        }
        File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
        let bytes = super::files::plain_file(&path)?;
        files.push((name.to_owned(), bytes, hashes.of(&path)?));
    }
    let label = Label { key: key.clone(), source: folder.graph.clone(), files };
    let text =
        serde_json::to_vec_pretty(&label).map_err(|error| failed(std::io::Error::other(error)))?;
    let path = partial.join(LABEL);
    std::fs::write(&path, text).map_err(failed)?;
    File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
    File::open(partial).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Removes what was interrupted.
fn sweep(copies: &Path) {
    for entry in std::fs::read_dir(copies).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == PARTIAL) {
            // If it cannot be removed, making the copy says so.
            let _ = remove(&path);
        }
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Gives what root has made to whom the store belongs, who has to replace and remove it one day.
fn own_like(store: &Path, made: &Path) {
    let Ok(owner) = store.metadata() else { return };
    let mut paths = vec![made.to_owned()];
    while let Some(path) = paths.pop() {
        let Ok(data) = path.symlink_metadata() else { continue };
        if (data.uid(), data.gid()) != (owner.uid(), owner.gid()) {
            // Only root can; others have made it under their own name anyway.
            let _ = chown(&path, Some(owner.uid()), Some(owner.gid()));
        }
        if data.is_dir() {
            paths
                .extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
}
