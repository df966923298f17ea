//! The record's thread: writes what has changed in one transaction after the other, and waits out a disk that fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::disk::{Change, Disk, DiskError};
use super::{Inner, Row, Shared};

/// How long the thread waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// What nobody waits for is written this long after it came, with all that came until then. A prompt that is started,
    /// answered and delivered within this is written once.
    pub gather: Duration,
    /// What was written and not made safe is made safe after this long.
    pub settle: Duration,
    /// The first pause after a failure; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            gather: Duration::from_millis(20),
            settle: Duration::from_secs(2),
            pause: Duration::from_millis(500),
            // A card that was full or loose is back within half a minute of its mending.
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// The most rows that are written and not safe: they are kept in memory until they are.
const MAX_UNSETTLED: usize = 256;

type Batch = BTreeMap<Row, Change>;

/// The thread's state.
pub(super) struct Work {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    pace: Pace,
    /// Written, but not safe: written again when the disk fails.
    unsettled: Batch,
    trouble: Option<DiskError>,
}

/// What there is to do.
enum Todo {
    Write {
        batch: Batch,
        mark: u64,
        safe: bool,
    },
    /// Nothing came for a while: make safe what was written.
    Settle {
        mark: u64,
    },
    End,
}

impl Work {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Box<dyn Disk>,
        pace: Pace,
        trouble: Option<DiskError>,
    ) -> Self {
        Work { shared, disk, pace, unsettled: Batch::new(), trouble }
    }

    pub(super) fn run(mut self) {
        if let Some(trouble) = self.trouble.take() {
            self.failed(&trouble);
            if !self.recover() {
                return;
            }
        }
        loop {
            let (batch, mark, safe) = match self.next() {
                Todo::End => return,
                Todo::Write { batch, mark, safe } => (batch, mark, safe),
                Todo::Settle { mark } => (Batch::new(), mark, true),
            };
            let changes: Vec<Change> = batch.values().cloned().collect();
            match self.disk.write(&changes, safe) {
                Ok(()) => self.written(batch, mark, safe),
                Err(error) => {
                    self.put_back(batch);
                    self.failed(&error);
                    if !self.recover() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for something to do.
    fn next(&self) -> Todo {
        let mut inner = self.shared.lock();
        let mut since: Option<Instant> = None;
        let quiet = Instant::now();
        loop {
            let now = Instant::now();
            let wait = if inner.waiting.is_empty() {
                if inner.closing {
                    return if self.unsettled.is_empty() {
                        Todo::End
                    } else {
                        Todo::Settle { mark: inner.mark }
                    };
                }
                if self.unsettled.is_empty() {
                    None
                } else {
                    let left = (quiet + self.pace.settle).saturating_duration_since(now);
                    if left.is_zero() {
                        return Todo::Settle { mark: inner.mark };
                    }
                    Some(left)
                }
            } else {
                let due = *since.get_or_insert(now) + self.pace.gather;
                if inner.urgent || inner.closing || due <= now {
                    return self.take(&mut inner);
                }
                Some(due.saturating_duration_since(now))
            };
            inner = self.wait(inner, wait);
        }
    }

    fn wait<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        wait: Option<Duration>,
    ) -> MutexGuard<'a, Inner> {
        use std::sync::PoisonError;
        match wait {
            None => self.shared.wake.wait(inner).unwrap_or_else(PoisonError::into_inner),
            Some(wait) => {
                self.shared.wake.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    fn take(&self, inner: &mut Inner) -> Todo {
        let batch = std::mem::take(&mut inner.waiting);
        inner.bytes = 0;
        // From now on the disk may have them.
        inner.on_disk.extend(batch.iter().map(|(row, change)| (row.clone(), change.stage())));
        let urgent = std::mem::take(&mut inner.urgent);
        let safe = urgent || inner.closing || self.unsettled.len() + batch.len() > MAX_UNSETTLED;
        Todo::Write { batch, mark: inner.mark, safe }
    }

    fn written(&mut self, batch: Batch, mark: u64, safe: bool) {
        {
            let mut inner = self.shared.lock();
            for (row, change) in &batch {
                if matches!(change, Change::Remove(_)) && !inner.waiting.contains_key(row) {
                    inner.on_disk.remove(row);
                }
            }
            self.shared.count(&inner);
        }
        if safe {
            self.unsettled.clear();
        } else {
            self.unsettled.extend(batch);
        }
        if safe {
            self.shared.health.send_modify(|health| health.safe = mark);
        }
    }

    /// What is not safe waits again, unless something newer does.
    fn put_back(&mut self, batch: Batch) {
        let mut unsafe_rows = std::mem::take(&mut self.unsettled);
        unsafe_rows.extend(batch);
        let mut inner = self.shared.lock();
        for (row, change) in unsafe_rows {
            if let std::collections::btree_map::Entry::Vacant(place) = inner.waiting.entry(row) {
                let weight = change.weight();
                place.insert(change);
                inner.bytes += weight;
            }
        }
        inner.urgent = true;
        self.shared.count(&inner);
    }

    fn failed(&self, error: &DiskError) {
        let reason = error.to_string();
        let news = self.shared.health.send_if_modified(|health| {
            let news = health.trouble.as_ref() != Some(&reason);
            health.trouble = Some(reason.clone());
            news
        });
        if news {
            tracing::error!(
                reason,
                "the record cannot be written: prompts are acknowledged after their answer until it can"
            );
        }
    }

    /// Tries to open the disk until it can be written. `false`: the record is closed before.
    fn recover(&mut self) -> bool {
        let mut pause = self.pace.pause;
        loop {
            if !self.rest(pause) {
                return false;
            }
            pause = (pause * 2).min(self.pace.longest_pause);
            match self.reopen() {
                Ok(()) => break,
                Err(error) => self.failed(&error),
            }
        }
        self.shared.health.send_modify(|health| health.trouble = None);
        tracing::info!("the record can be written again");
        true
    }

    fn reopen(&mut self) -> Result<(), DiskError> {
        let first = !self.shared.lock().opened;
        let contents = self.disk.open()?;
        if first {
            self.shared.found(contents);
        } else {
            self.shared.found_again(&contents);
        }
        // What waits is written before it is said that all is well.
        let (batch, mark) = {
            let mut inner = self.shared.lock();
            match self.take(&mut inner) {
                Todo::Write { batch, mark, .. } => (batch, mark),
                Todo::Settle { .. } | Todo::End => return Ok(()),
            }
        };
        let changes: Vec<Change> = batch.values().cloned().collect();
        match self.disk.write(&changes, true) {
            Ok(()) => {
                self.written(batch, mark, true);
                Ok(())
            }
            Err(error) => {
                self.put_back(batch);
                Err(error)
            }
        }
    }

    /// Waits; `false` where the record is closed meanwhile.
    fn rest(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut inner = self.shared.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if inner.closing {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            inner = self.wait(inner, Some(left));
        }
    }
}
