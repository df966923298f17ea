//! Why something cannot be done with kept models.

use std::io;
use std::path::PathBuf;

use super::name::BadName;
use crate::inference::LoadError;

/// Why it could not be done. Nothing has changed then: what was begun is put away, or waits to be gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or folder cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another command is at work.
    #[error("another `promptd model` command works in {}; try again when it has ended", .0.display())]
    Busy(PathBuf),
    /// No model is called so.
    #[error("no model is called `{typed}`; {there}")]
    Unknown {
        /// What was typed.
        typed: String,
        /// What there is.
        there: String,
    },
    /// More than one model is called so.
    #[error("`{typed}` may be {several}; name one of them")]
    Ambiguous {
        /// What was typed.
        typed: String,
        /// The ones it may be.
        several: String,
    },
    /// A name that no folder shall have.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The model is there already.
    #[error(
        "{0} is there already, with other files; `promptd model rm {0}` makes room for it, --revision gives it another name"
    )]
    There(String),
    /// The model is in use.
    #[error("{0} is in use; use another one first")]
    InUse(String),
    /// There is nothing to go back to.
    #[error("there is no model to go back to: `promptd model use` remembers the one before")]
    NoPrevious,
    /// The disk has no room.
    #[error("{} has room for {have} bytes, {need} are needed; free some, or name another place with --models", path.display())]
    Room {
        /// Where.
        path: PathBuf,
        /// Bytes that are needed.
        need: u64,
        /// Bytes that are left, less a reserve.
        have: u64,
    },
    /// What is to be brought in is not what it should be.
    #[error("{what}: {reason}")]
    Wrong {
        /// What is wrong.
        what: String,
        /// What is wrong with it, and the way out.
        reason: String,
    },
    /// The model's files are not what they should be.
    #[error(transparent)]
    Model(#[from] LoadError),
}

impl StoreError {
    /// For `map_err`: the system could not do this with that file.
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io { doing, path, source }
    }

    /// Something is wrong with this.
    pub(super) fn wrong(what: impl Into<String>, reason: impl Into<String>) -> StoreError {
        StoreError::Wrong { what: what.into(), reason: reason.into() }
    }
}
