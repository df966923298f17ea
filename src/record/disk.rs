//! The seam under the record: what a disk is asked, and in which ways it fails. Tests put a disk here that fails when it
//! is told to.

use std::path::PathBuf;

use super::{AccountItem, Item, Row, SessionItem, Stage};

/// A change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The row of a prompt is this now.
    Prompt(Item),
    /// The row of a conversation is this now.
    Session(SessionItem),
    /// Somebody has used this much.
    Account(AccountItem),
    /// There is no such row any more.
    Remove(Row),
}

impl Change {
    /// How far its prompt is, where it is one's.
    pub(super) fn stage(&self) -> Option<Stage> {
        match self {
            Change::Prompt(item) => Some(item.stage),
            Change::Session(_) | Change::Account(_) | Change::Remove(_) => None,
        }
    }

    /// The bytes it keeps in memory, roughly.
    pub(super) fn weight(&self) -> usize {
        match self {
            Change::Prompt(item) => 128 + item.data.len(),
            Change::Session(item) => 128 + item.client.len() + item.name.len() + item.data.len(),
            Change::Account(item) => 128 + item.client.len(),
            Change::Remove(_) => 0,
        }
    }
}

/// What lay on the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Prompts, in the order of their numbers.
    pub(crate) prompts: Vec<Item>,
    /// Conversations.
    pub(crate) sessions: Vec<SessionItem>,
    /// What was used of a day.
    pub(crate) accounts: Vec<AccountItem>,
    /// Rows that were not what had been written.
    pub(crate) lost: usize,
    /// Where a file that could not be read lies now.
    pub(crate) set_aside: Option<PathBuf>,
}

/// Why the disk did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The file is from a newer promptd.
    #[error(
        "`{}` was written by a newer promptd (version {have} of its form; this one knows {known}); start that one, or give \
         this one another `state.dir`. Nothing in it was changed",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        have: i64,
        /// The newest version that is known.
        known: i64,
    },
    /// The disk is full, cannot be written, or fails.
    #[error("{reason}")]
    Failed {
        /// In a person's words.
        reason: String,
        /// What was written lately may not be on the disk, whatever the system says when it is read: its cache hides it.
        distrust: bool,
        /// The file is not what was written to it.
        damaged: bool,
    },
}

/// Where the record lies.
pub(crate) trait Disk: Send {
    /// Opens it, and anew where it was open: nothing is trusted then that was not made safe. It can be written when this
    /// returns.
    fn open(&mut self) -> Result<Contents, DiskError>;
    /// Makes these changes, all or none. With `safe` it returns only when they, and all before them, outlast a power cut.
    fn write(&mut self, changes: &[Change], safe: bool) -> Result<(), DiskError>;
}
