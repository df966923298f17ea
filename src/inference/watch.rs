//! Notices that a file of the loaded model is no longer what was loaded: replaced, cut short or written to. The weights are
//! mapped from the files, so whatever is written there is what the model computes with from then on.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::LoadError;

/// What the system says of a file: it differs when the file is replaced, written to or cut. The time of the last change of
/// its inode cannot be set back by a program, as that of its contents can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) bytes: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    pub(super) changed: (i64, i64),
}

impl Identity {
    /// Of the file under this name, links not followed.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let data = path.symlink_metadata()?;
        Ok(Identity {
            device: data.dev(),
            inode: data.ino(),
            bytes: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

/// The files of a loaded model as they were when it was loaded.
#[derive(Debug)]
pub(super) struct Watch(Vec<(PathBuf, Identity)>);

impl Watch {
    /// Takes note of the files.
    pub(super) fn new(files: &[(PathBuf, u64)]) -> Result<Self, LoadError> {
        let of = |(path, bytes): &(PathBuf, u64)| {
            let identity = Identity::of(path)
                .map_err(|source| LoadError::Read { path: path.clone(), source })?;
            if identity.bytes != *bytes {
                return Err(LoadError::file(path, "changed while it was loaded"));
            }
            Ok((path.clone(), identity))
        };
        files.iter().map(of).collect::<Result<_, _>>().map(Watch)
    }

    /// Looks whether all is as it was: a few microseconds, before each step of the model.
    ///
    /// # Errors
    /// Which file is not, in words for people.
    pub(super) fn look(&self) -> Result<(), String> {
        for (path, before) in &self.0 {
            let what = match Identity::of(path) {
                Ok(now) if now == *before => continue,
                Ok(now) if (now.device, now.inode) != (before.device, before.inode) => {
                    "was replaced by another file".to_owned()
                }
                Ok(now) if now.bytes != before.bytes => {
                    format!("has {} bytes, it had {}", now.bytes, before.bytes)
                }
                Ok(_) => "was written to or touched".to_owned(),
                Err(error) => format!("cannot be found any more ({error})"),
            };
            return Err(format!(
                "{} {what} while the model was in use; the model is loaded again",
                path.display()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_noticed() {
        type Change = fn(&Path);
        let cases: [(&str, Change); 4] = [
            ("was replaced", |path| {
                let new = path.with_extension("new");
                std::fs::write(&new, b"abc").unwrap();
                std::fs::rename(new, path).unwrap();
            }),
            ("has 1 bytes, it had 3", |path| {
                std::fs::File::options().write(true).open(path).unwrap().set_len(1).unwrap();
            }),
            ("was written to", |path| {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                std::os::unix::fs::FileExt::write_at(&file, b"x", 1).unwrap();
                // Not even this hides it.
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }),
            ("cannot be found", |path| std::fs::remove_file(path).unwrap()),
        ];
        for (words, change) in cases {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("weights");
            std::fs::write(&path, b"abc").unwrap();
            let watch = Watch::new(&[(path.clone(), 3)]).unwrap();
            assert_eq!(watch.look(), Ok(()));
            change(&path);
            let noticed = watch.look().unwrap_err();
            assert!(noticed.contains(words), "{noticed} / {words}");
        }
    }
}
