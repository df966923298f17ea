//! What outlasts the service: accepted prompts until their answer is delivered, answers for a while, conversations. Knows
//! no topic and no tensor; what a door keeps here is bytes to it.
//!
//! Memory is the truth and the disk follows. A door puts the newest state of a row here and goes on; a thread of its own
//! writes what has changed, all in one transaction, and says up to where everything is safe. A disk that fails stops
//! nobody: what is not safe is not promised, and the thread tries again until it is.

mod accounts;
mod disk;
#[cfg(test)]
mod faulty;
mod keeper;
mod sessions;
mod sqlite;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::disk::DiskError;
use self::disk::{Change, Contents, Disk};
pub use self::keeper::Pace;
pub use self::sessions::Kept as KeptSessions;

/// The most bytes of changes that wait for the disk. Beyond this a prompt is not made safe, and so not acknowledged
/// before its answer: a disk that stands still must not fill the memory.
const MAX_WAITING_BYTES: usize = 8 << 20;

/// Which door a prompt came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Door {
    /// The broker.
    Mqtt,
    /// A Unix socket.
    Socket,
}

/// How far a prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has no answer yet.
    Accepted,
    /// It has one, which may not have been delivered.
    Answered,
    /// Its answer was delivered, and is kept for those who ask again.
    Delivered,
}

/// A prompt, as far as the record knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Given by [`Record::number`]; older prompts have smaller ones.
    pub number: u64,
    /// Whose it is.
    pub door: Door,
    /// How far it is.
    pub stage: Stage,
    /// What makes it the same prompt when it comes again: a digest.
    pub key: [u8; 32],
    /// The seed of its answer.
    pub seed: u64,
    /// How many services began with it and did not hand it back.
    pub starts: u32,
    /// How many engines died while they ran it, when the last one began with it.
    pub deaths: u32,
    /// How many services took it up.
    pub attempts: u32,
    /// When it came into this stage, in milliseconds since 1970.
    pub begun: u64,
    /// When it may be forgotten or is worthless, in the same; 0: never.
    pub until: u64,
    /// What the door needs to know of it.
    pub data: Bytes,
}

impl Item {
    /// An engine begins with it, the first of this service or a further one; so many died while they ran it. If the service
    /// ends before the prompt does, it stands there as one more that ended.
    pub(crate) fn begins(&mut self, first: bool, deaths: u32) {
        self.starts = self.starts.saturating_add(first.into());
        self.deaths = deaths;
    }

    /// How much is left of its time, by a wall clock that may have been set meanwhile: never more than there was.
    pub fn left(&self, now_ms: u64) -> Option<Duration> {
        (self.until > 0).then(|| {
            let most = self.until.saturating_sub(self.begun);
            Duration::from_millis(self.until.saturating_sub(now_ms).min(most))
        })
    }
}

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionItem {
    /// Whose.
    pub(crate) client: String,
    /// Its name.
    pub(crate) name: String,
    /// When it was used last, in milliseconds since 1970.
    pub(crate) used: u64,
    /// Its turns.
    pub(crate) data: Bytes,
}

/// What somebody has used of the day that began with the first token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccountItem {
    /// Who.
    pub(crate) client: String,
    /// When the day began, in milliseconds since 1970.
    pub(crate) began: u64,
    /// Tokens.
    pub(crate) tokens: u64,
}

/// Which row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Row {
    /// A prompt's.
    Prompt(u64),
    /// The conversation of a client by this name.
    Session(String, String),
    /// What this client has used.
    Account(String),
}

/// How things are with the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why nothing can be made safe; `None`: it can.
    pub trouble: Option<String>,
    /// Everything up to this mark is safe.
    pub safe: u64,
    /// Accepted prompts without an answer.
    pub prompts: usize,
    /// Answers that may not have been delivered.
    pub undelivered: usize,
    /// Answers that are kept for those who ask again.
    pub answers: usize,
    /// Rows whose newest state waits for the disk.
    pub waiting: usize,
    /// Accepted prompts that were taken up after a start.
    pub replayed: u64,
    /// Rows that were lost, and files that were set aside, since the service began.
    pub lost: u64,
}

/// A handle on the record; clones mean the same one.
#[derive(Clone, Debug)]
pub struct Record {
    shared: Arc<Shared>,
    health: watch::Receiver<Health>,
}

/// The record's thread, for the one who ends it.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
    ended: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
    next: AtomicU64,
    health: watch::Sender<Health>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The newest state of each row that is not on the disk. Bounded: in bytes here, in rows by the doors, which have
    /// bounds for what they keep.
    waiting: BTreeMap<Row, Change>,
    bytes: usize,
    /// Grows with each change.
    mark: u64,
    /// Somebody waits for a change to be safe.
    urgent: bool,
    /// Rows that may be on the disk, and how far those of prompts are.
    on_disk: HashMap<Row, Option<Stage>>,
    /// What lay on the disk and was not fetched yet.
    found: BTreeMap<Door, Vec<Item>>,
    /// Doors that want to be told what is found later.
    callers: Vec<(Door, mpsc::Sender<Vec<Item>>)>,
    sessions: Vec<SessionItem>,
    accounts: Vec<AccountItem>,
    /// The disk could be read since the service began.
    opened: bool,
    closing: bool,
}

impl Record {
    /// Opens the record in this directory and starts its thread. A disk that fails is reported by the record's
    /// [`Health`], and tried again.
    ///
    /// # Errors
    /// The record is of a newer promptd; or there can be no thread.
    pub fn open(dir: &Path, pace: Pace) -> Result<(Record, Keeper), DiskError> {
        Self::with_disk(Box::new(sqlite::Sqlite::new(dir)), pace)
    }

    pub(crate) fn with_disk(
        mut disk: Box<dyn Disk>,
        pace: Pace,
    ) -> Result<(Record, Keeper), DiskError> {
        let (health, watched) = watch::channel(Health::default());
        // Numbers go on after a start; where the clock does not, those on the disk are higher.
        let next = AtomicU64::new(unix_ms().saturating_mul(1000).max(1));
        let inner = Mutex::default();
        let shared = Arc::new(Shared { inner, wake: Condvar::new(), next, health });
        let trouble = match disk.open() {
            Ok(contents) => {
                shared.found(contents);
                None
            }
            Err(newer @ DiskError::Newer { .. }) => return Err(newer),
            Err(failed) => Some(failed),
        };
        let (end, ended) = oneshot::channel();
        let work = keeper::Work::new(Arc::clone(&shared), disk, pace, trouble);
        let thread = std::thread::Builder::new().name("record".to_owned()).spawn(move || {
            work.run();
            // Whoever closed the record may have stopped waiting.
            let _ = end.send(());
        });
        if let Err(error) = thread {
            let reason = format!("the system gives no thread for the record: {error}");
            return Err(DiskError::Failed { reason, distrust: false, damaged: false });
        }
        let keeper = Keeper { shared: Arc::clone(&shared), ended };
        Ok((Record { shared, health: watched }, keeper))
    }

    /// A number for a new prompt, greater than all before, also of earlier starts.
    pub fn number(&self) -> u64 {
        self.shared.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The row of a prompt is this from now on. Gives the mark that [`Health::safe`] reaches when it outlasts a power cut;
    /// `None` where too much waits for the disk already. What is not `urgent` is written a moment later, together with
    /// what comes until then, and outlasts a crash of the service at once and a power cut within seconds.
    pub fn put(&self, item: Item, urgent: bool) -> Option<u64> {
        self.shared.change(Row::Prompt(item.number), Change::Prompt(item), urgent)
    }

    /// Forgets a prompt.
    pub fn remove(&self, number: u64) {
        let row = Row::Prompt(number);
        let _ = self.shared.change(row.clone(), Change::Remove(row), false);
    }

    /// How things are; changes as they change.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// What an earlier start has left for this door, in the order in which it came.
    pub fn take(&self, door: Door) -> Vec<Item> {
        self.shared.lock().found.remove(&door).unwrap_or_default()
    }

    /// What is found for this door later, because the disk could not be read at first. Bounded: the disk is read once.
    pub fn found_later(&self, door: Door) -> mpsc::Receiver<Vec<Item>> {
        let (tell, told) = mpsc::channel(1);
        self.shared.lock().callers.push((door, tell));
        told
    }

    /// A prompt of an earlier start was taken up.
    pub fn replayed(&self) {
        self.shared.health.send_modify(|health| health.replayed += 1);
    }
}

impl Keeper {
    /// Writes what waits and ends the thread, if the disk does it within `patience`. Says whether it did.
    pub async fn close(mut self, patience: Duration) -> bool {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        tokio::time::timeout(patience, &mut self.ended).await.is_ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves no half change behind: each method makes its own in one step.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a change; `None` where it was not, because too much waits.
    fn change(&self, row: Row, change: Change, urgent: bool) -> Option<u64> {
        let mut inner = self.lock();
        let known = inner.waiting.remove(&row);
        let before = known.as_ref().map_or(0, Change::weight);
        inner.bytes -= before;
        if matches!(change, Change::Remove(_)) {
            if inner.on_disk.contains_key(&row) {
                inner.waiting.insert(row, change);
            }
        } else if inner.bytes + change.weight() > MAX_WAITING_BYTES {
            // The older state is better than none.
            if let Some(known) = known {
                inner.bytes += before;
                inner.waiting.insert(row, known);
            }
            return None;
        } else {
            inner.bytes += change.weight();
            inner.waiting.insert(row, change);
        }
        inner.mark += 1;
        inner.urgent |= urgent;
        let mark = inner.mark;
        self.count(&inner);
        drop(inner);
        self.wake.notify_one();
        Some(mark)
    }

    /// Says how many rows there are.
    fn count(&self, inner: &Inner) {
        let old = inner.on_disk.iter().filter(|(row, _)| !inner.waiting.contains_key(row));
        let old = old.filter_map(|(_, stage)| *stage);
        let stages = old.chain(inner.waiting.values().filter_map(Change::stage));
        let (mut prompts, mut undelivered, mut answers) = (0, 0, 0);
        for stage in stages {
            *match stage {
                Stage::Accepted => &mut prompts,
                Stage::Answered => &mut undelivered,
                Stage::Delivered => &mut answers,
            } += 1;
        }
        let counts = (prompts, undelivered, answers, inner.waiting.len());
        self.health.send_if_modified(|health| {
            let Health { prompts, undelivered, answers, waiting, .. } = health;
            let before = (*prompts, *undelivered, *answers, *waiting);
            (*prompts, *undelivered, *answers, *waiting) = counts;
            before != counts
        });
    }

    /// What lay on the disk when it could be read at last.
    fn found(&self, contents: Contents) {
        self.harmed(&contents);
        let Contents { prompts, sessions, accounts, .. } = contents;
        if let Some(last) = prompts.last() {
            self.next.fetch_max(last.number + 1, Ordering::Relaxed);
        }
        let mut inner = self.lock();
        inner.opened = true;
        let prompt = |item: &Item| (Row::Prompt(item.number), Some(item.stage));
        inner.on_disk.extend(prompts.iter().map(prompt));
        let session =
            |item: &SessionItem| (Row::Session(item.client.clone(), item.name.clone()), None);
        inner.on_disk.extend(sessions.iter().map(session));
        let account = |item: &AccountItem| (Row::Account(item.client.clone()), None);
        inner.on_disk.extend(accounts.iter().map(account));
        for item in prompts {
            inner.found.entry(item.door).or_default().push(item);
        }
        inner.sessions.extend(sessions);
        inner.accounts.extend(accounts);
        for (door, tell) in std::mem::take(&mut inner.callers) {
            if let Some(items) = inner.found.remove(&door) {
                // A door that is gone takes them up at the next start.
                let _ = tell.try_send(items);
            }
        }
        self.count(&inner);
    }

    /// The disk was opened again: what lies there is known, unless it is less than it was.
    fn found_again(&self, contents: &Contents) {
        self.harmed(contents);
        let rows = contents.prompts.iter().map(|item| (Row::Prompt(item.number), Some(item.stage)));
        let mut inner = self.lock();
        inner.on_disk.extend(rows);
        self.count(&inner);
    }

    /// Reports what could not be read.
    fn harmed(&self, contents: &Contents) {
        let Contents { prompts, sessions, accounts, lost, set_aside } = contents;
        let lost = *lost;
        if let Some(path) = &set_aside {
            tracing::error!(
                path = %path.display(),
                rows = prompts.len() + sessions.len() + accounts.len(),
                "the record was damaged: it was set aside under this name, what could be read of it goes on in a new one"
            );
        }
        if lost > 0 {
            tracing::error!(
                rows = lost,
                "rows of the record are not what was written; they are left out"
            );
        }
        let harm = u64::try_from(lost).unwrap_or(u64::MAX) + u64::from(set_aside.is_some());
        if harm > 0 {
            self.health.send_modify(|health| health.lost += harm);
        }
    }
}

/// The wall clock in milliseconds since 1970: the only time that means something after a start.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
