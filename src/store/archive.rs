//! Models as archives (tar): how they travel to boards without internet. An archive is somebody's word: only plain files and
//! folders come out of it, inside the model's folder, and no more than the disk has room for.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use tar::{Archive, Builder, EntryType, Header};

use super::{Description, Incoming, Kept, Lock, ModelName, Store, StoreError};
use crate::inference::manifest::MAX_FILES;

/// The beginnings of compressed files, and what undoes them.
const COMPRESSED: [(&[u8], &str); 3] = [
    (&[0x1f, 0x8b], "zcat"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstdcat"),
    (&[0xfd, b'7', b'z'], "xzcat"),
];
/// The most levels of folders in an archive: one around the model, `onnx/`, the file.
const MAX_DEPTH: usize = 3;

/// Brings in a model from an archive.
///
/// # Errors
/// It is none, holds what is no model, or leads out of its folder; or there is no room.
pub fn import_tar(
    store: &Store,
    lock: &Lock,
    mut archive: impl Read,
    about: &Description,
) -> Result<Kept, StoreError> {
    let mut begin = Vec::new();
    let read = (&mut archive).take(4).read_to_end(&mut begin);
    read.map_err(|error| broken(&error))?;
    if let Some((_, tool)) = COMPRESSED.iter().find(|(magic, _)| begin.starts_with(magic)) {
        let reason = format!("is compressed; `{tool} FILE | promptd model import -` brings it in");
        return Err(StoreError::wrong("the archive", reason));
    }
    let incoming = Incoming::begin(store, lock, "import", true)?;
    incoming.or_clear(|incoming| {
        unpack(incoming, begin.as_slice().chain(archive))?;
        incoming.finish(about)
    })
}

/// Takes the files out of an archive.
fn unpack(incoming: &Incoming<'_>, archive: impl Read) -> Result<(), StoreError> {
    let mut archive = Archive::new(archive);
    let mut files = 0;
    for entry in archive.entries().map_err(|error| broken(&error))? {
        let mut entry = entry.map_err(|error| broken(&error))?;
        let path = entry.path_bytes();
        let shown = format!("`{}` in the archive", path.escape_ascii());
        let name =
            std::str::from_utf8(&path).ok().map(|name| name.trim_start_matches("./").to_owned());
        match entry.header().entry_type() {
            // Those that files lie in are made; archives may hold bookkeeping of their own.
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            EntryType::Regular | EntryType::Continuous => {}
            _ => {
                let reason =
                    "is neither a plain file nor a folder; model folders hold nothing else";
                return Err(StoreError::wrong(shown, reason));
            }
        }
        let Some(name) = name else {
            return Err(StoreError::wrong(shown, "has a name that is not UTF-8"));
        };
        // Editors, version control and macOS leave such files; no model needs them.
        if name.split('/').any(|part| part.starts_with('.') && part != "..") {
            continue;
        }
        files += 1;
        if files > MAX_FILES {
            let reason = format!("holds more than {MAX_FILES} files");
            return Err(StoreError::wrong("the archive", reason));
        }
        let bytes = entry.size();
        incoming.write(&name, bytes, &mut entry)?;
    }
    if files == 0 {
        return Err(StoreError::wrong("the archive", "holds no files; it is no model, or no tar"));
    }
    Ok(())
}

fn broken(error: &std::io::Error) -> StoreError {
    StoreError::wrong("the archive", format!("cannot be read as a tar: {error}"))
}

/// Writes a model as an archive, in one folder of its name. The same model gives the same bytes.
///
/// # Errors
/// It cannot be read, or the archive cannot be written.
pub fn export(store: &Store, name: &ModelName, into: impl Write) -> Result<(), StoreError> {
    let folder = store.folder(name);
    let mut archive = Builder::new(into);
    add(&mut archive, &folder, &name.to_string(), 0)?;
    let finished = archive.into_inner().and_then(|mut into| into.flush());
    finished.map_err(StoreError::io("write the archive of", folder))
}

fn add(
    archive: &mut Builder<impl Write>,
    folder: &Path,
    inside: &str,
    depth: usize,
) -> Result<(), StoreError> {
    let failed = StoreError::io("read", folder);
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = entries.map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let data = path.symlink_metadata().map_err(StoreError::io("read", &path))?;
        let name = format!("{inside}/{}", entry.file_name().to_string_lossy());
        if data.is_dir() && depth < MAX_DEPTH {
            add(archive, &path, &name, depth + 1)?;
        } else if data.is_file() {
            let mut header = Header::new_gnu();
            header.set_size(data.len());
            header.set_mode(0o644);
            let file = File::open(&path).map_err(StoreError::io("read", &path))?;
            let added = archive.append_data(&mut header, &name, file.take(data.len()));
            added.map_err(StoreError::io("write the archive of", &path))?;
        }
    }
    Ok(())
}
