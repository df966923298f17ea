//! A disk in memory that fails when it is told to, with a cache that lies after a failed sync as the system's does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::Row;
use super::disk::{Change, Contents, Disk, DiskError};

type Rows = BTreeMap<Row, Change>;

/// A handle on the disk; clones mean the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Faulty(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What a power cut leaves.
    disk: Rows,
    /// What a crash of the service leaves, and what is read.
    cache: Rows,
    /// A sync failed: what was not safe before it is lost when the disk is opened again.
    lies: bool,
    calls: u64,
    /// Which calls fail.
    failing: Vec<u64>,
}

impl Faulty {
    /// These calls will fail, counted from 0.
    pub(super) fn failing_at(calls: impl IntoIterator<Item = u64>) -> Self {
        let disk = Faulty::default();
        disk.0.lock().unwrap().failing = calls.into_iter().collect();
        disk
    }

    /// What a power cut would leave now.
    pub(super) fn safe(&self) -> Rows {
        self.0.lock().unwrap().disk.clone()
    }

    /// This lies there from the beginning.
    pub(super) fn preset(&self, changes: &[Change]) {
        let mut state = self.0.lock().unwrap();
        apply(&mut state.cache, changes);
        apply(&mut state.disk, changes);
    }

    /// How often it was called.
    pub(super) fn calls(&self) -> u64 {
        self.0.lock().unwrap().calls
    }
}

impl State {
    fn fails(&mut self) -> bool {
        self.calls += 1;
        self.failing.contains(&(self.calls - 1))
    }
}

fn apply(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Prompt(item) => rows.insert(Row::Prompt(item.number), change.clone()),
            Change::Session(item) => {
                rows.insert(Row::Session(item.client.clone(), item.name.clone()), change.clone())
            }
            Change::Account(item) => rows.insert(Row::Account(item.client.clone()), change.clone()),
            Change::Remove(row) => rows.remove(row),
        };
    }
}

impl Disk for Faulty {
    fn open(&mut self) -> Result<Contents, DiskError> {
        let mut state = self.0.lock().unwrap();
        if state.fails() {
            let reason = "no disk".to_owned();
            return Err(DiskError::Failed { reason, distrust: false, damaged: false });
        }
        if std::mem::take(&mut state.lies) {
            state.cache = state.disk.clone();
        }
        let mut contents = Contents::default();
        for change in state.cache.values() {
            match change {
                Change::Prompt(item) => contents.prompts.push(item.clone()),
                Change::Session(item) => contents.sessions.push(item.clone()),
                Change::Account(item) => contents.accounts.push(item.clone()),
                Change::Remove(_) => {}
            }
        }
        Ok(contents)
    }

    fn write(&mut self, changes: &[Change], safe: bool) -> Result<(), DiskError> {
        let mut state = self.0.lock().unwrap();
        let fails = state.fails();
        if fails {
            // The cache has them, until it is looked at again.
            apply(&mut state.cache, changes);
            state.lies = true;
            let reason = "the sync failed".to_owned();
            return Err(DiskError::Failed { reason, distrust: true, damaged: false });
        }
        apply(&mut state.cache, changes);
        if safe {
            state.disk = state.cache.clone();
        }
        Ok(())
    }
}
