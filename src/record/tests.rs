//! The record against a naive model and failing disks, and its file against everything that befalls files.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::disk::{Change, Contents, Disk, DiskError};
use super::faulty::Faulty;
use super::sqlite::Sqlite;
use super::*;
use crate::session::{Key, Store as _, Turn};

/// No test waits for a disk.
const QUICK: Pace = Pace {
    gather: Duration::from_micros(100),
    settle: Duration::from_millis(2),
    pause: Duration::from_micros(100),
    longest_pause: Duration::from_millis(1),
};

fn item(number: u64, stage: Stage, data: &str) -> Item {
    Item {
        number,
        door: Door::Mqtt,
        stage,
        key: [7; 32],
        seed: u64::MAX - number,
        starts: 1,
        deaths: 3,
        attempts: 2,
        begun: 1000,
        until: 5000,
        data: Bytes::copy_from_slice(data.as_bytes()),
    }
}

/// Waits until the record says so.
fn until(record: &Record, what: &str, is_so: impl Fn(&Health) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so(&record.health().borrow()) {
        assert!(Instant::now() < deadline, "{what}: {:?}", record.health().borrow());
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn close(keeper: Keeper) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert!(runtime.block_on(keeper.close(Duration::from_secs(30))), "the record closes");
}

/// A life of a few prompts; gives the marks at which each state was to be safe.
fn live(record: &Record) {
    let first = record.put(item(1, Stage::Accepted, "a"), true).unwrap();
    record.put(item(2, Stage::Accepted, "b"), false).unwrap();
    until(record, "all is written", |health| health.waiting == 0);
    until(record, "the first is safe", |health| health.safe >= first);
    record.put(item(1, Stage::Answered, "answer"), false).unwrap();
    record.put(item(1, Stage::Delivered, "answer"), false).unwrap();
    until(record, "all is written", |health| health.waiting == 0);
    record.remove(2);
    let last = record.put(item(3, Stage::Accepted, "c"), true).unwrap();
    until(record, "the last is safe", |health| health.safe >= last && health.trouble.is_none());
}

#[test]
fn whichever_call_fails_what_was_called_safe_is_safe() {
    for failing in 0.. {
        let disk = Faulty::failing_at([failing, failing + 2]);
        let (record, keeper) = Record::with_disk(Box::new(disk.clone()), QUICK).unwrap();
        live(&record);
        let safe = disk.safe();
        assert_eq!(
            safe.get(&Row::Prompt(3)),
            Some(&Change::Prompt(item(3, Stage::Accepted, "c"))),
            "call {failing} failed"
        );
        assert_eq!(
            safe.get(&Row::Prompt(1)),
            Some(&Change::Prompt(item(1, Stage::Delivered, "answer"))),
            "call {failing} failed"
        );
        assert!(!safe.contains_key(&Row::Prompt(2)), "call {failing} failed");
        close(keeper);
        if disk.calls() <= failing {
            assert!(failing >= 4, "the disk was called {failing} times");
            return;
        }
    }
}

#[test]
fn a_disk_that_comes_late_gives_what_it_has() {
    let mut disk = Faulty::failing_at([1, 2, 3]);
    disk.open().unwrap();
    disk.preset(&[Change::Prompt(item(5, Stage::Accepted, "old"))]);
    let (record, keeper) = Record::with_disk(Box::new(disk), QUICK).unwrap();
    let mut later = record.found_later(Door::Mqtt);
    let now = record.take(Door::Mqtt);
    until(&record, "the disk is back", |health| health.trouble.is_none());
    let found = if now.is_empty() { later.blocking_recv().unwrap() } else { now };
    assert_eq!(found, [item(5, Stage::Accepted, "old")]);
    assert!(record.number() > 5);
    close(keeper);
}

#[test]
fn a_disk_that_stands_still_does_not_fill_the_memory() {
    let disk = Faulty::failing_at(0..100_000);
    let (record, keeper) = Record::with_disk(Box::new(disk), QUICK).unwrap();
    let large = "x".repeat(1 << 20);
    let taken = (1..20).filter(|n| record.put(item(*n, Stage::Accepted, &large), true).is_some());
    assert_eq!(taken.count(), 7, "8 MiB with what goes with each");
    // What is forgotten before it was written never has to be.
    (1..20).for_each(|n| record.remove(n));
    assert!(record.put(item(30, Stage::Accepted, &large), true).is_some());
    until(&record, "it says so", |health| health.trouble.is_some());
    drop(keeper);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64, u8, bool),
    Remove(u64),
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6_u64, any::<u8>(), any::<bool>()).prop_map(|(n, data, urgent)| Step::Put(n, data, urgent)),
        2 => (0..6_u64).prop_map(Step::Remove),
        1 => Just(Step::Look),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A power cut at any moment leaves of each row a state that is at least as new as what was called safe; and after a
    /// clean end all is as in a map.
    #[test]
    fn as_a_naive_model(steps in steps(), failing in proptest::collection::vec(0..40_u64, 0..6)) {
        let disk = Faulty::failing_at(failing);
        let (record, keeper) = Record::with_disk(Box::new(disk.clone()), QUICK).unwrap();
        let mut model: BTreeMap<u64, Option<Item>> = BTreeMap::new();
        let mut history: BTreeMap<u64, Vec<(u64, Option<Item>)>> = BTreeMap::new();
        let mut mark = 0;
        for step in steps {
            match step {
                Step::Put(number, data, urgent) => {
                    let item = item(number, Stage::Accepted, &data.to_string());
                    mark = record.put(item.clone(), urgent).unwrap();
                    history.entry(number).or_default().push((mark, Some(item.clone())));
                    model.insert(number, Some(item));
                }
                Step::Remove(number) => {
                    record.remove(number);
                    mark += 1;
                    history.entry(number).or_default().push((mark, None));
                    model.insert(number, None);
                }
                Step::Look => {
                    let safe = record.health().borrow().safe;
                    let on_disk = disk.safe();
                    for (number, states) in &history {
                        let sure = states.iter().rposition(|(mark, _)| *mark <= safe);
                        let Some(sure) = sure else { continue };
                        let is = match on_disk.get(&Row::Prompt(*number)) {
                            Some(Change::Prompt(item)) => Some(item.clone()),
                            _ => None,
                        };
                        prop_assert!(states[sure..].iter().any(|(_, state)| *state == is), "{number}: {is:?} of {states:?}, safe {safe}");
                    }
                }
            }
        }
        let last = record.put(item(99, Stage::Accepted, ""), true).unwrap();
        until(&record, "all is safe", |health| health.safe >= last && health.trouble.is_none());
        model.insert(99, Some(item(99, Stage::Accepted, "")));
        close(keeper);
        let left: Vec<Change> = disk.safe().into_values().collect();
        let expected: Vec<Change> = model.into_values().flatten().map(Change::Prompt).collect();
        prop_assert_eq!(left, expected);
    }
}

/// A transaction: which rows become what, and whether it is made safe.
type Transaction = (Vec<(u64, Option<u8>)>, bool);

fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    let change = (0..8_u64, proptest::option::weighted(0.7, any::<u8>()));
    let transaction = (proptest::collection::vec(change, 0..4), any::<bool>());
    proptest::collection::vec(transaction, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// The log cut off at any byte behind what was made safe, with or without other bytes in place of the rest: the file
    /// opens, and holds what one of the transactions left, the last safe one or a later one.
    #[test]
    fn a_log_cut_anywhere_opens_as_it_was_after_some_transaction(
        transactions in transactions(),
        cut in 0..10_000_usize,
        garbage in proptest::option::of(any::<u8>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("record.db-wal");
        let mut disk = Sqlite::new(folder.path());
        disk.open().unwrap();
        let mut rows: BTreeMap<u64, Item> = BTreeMap::new();
        let (mut states, mut safe) = (vec![rows.clone()], (std::fs::metadata(&log).unwrap().len(), 0));
        for (changes, is_safe) in transactions {
            let changes: Vec<Change> = changes
                .into_iter()
                .map(|(number, data)| {
                    let Some(data) = data else {
                        rows.remove(&number);
                        return Change::Remove(Row::Prompt(number));
                    };
                    let long = data.to_string().repeat(usize::from(data));
                    let item = item(number, Stage::Accepted, &long);
                    rows.insert(number, item.clone());
                    Change::Prompt(item)
                })
                .collect();
            disk.write(&changes, is_safe).unwrap();
            states.push(rows.clone());
            if is_safe {
                safe = (std::fs::metadata(&log).unwrap().len(), states.len() - 1);
            }
        }
        // As a crash leaves it: the file is still open.
        let mut bytes = std::fs::read(&log).unwrap();
        let first = usize::try_from(safe.0).unwrap();
        let at = first + cut % (bytes.len() - first + 1);
        match garbage {
            Some(byte) => bytes[at..].fill(byte),
            None => bytes.truncate(at),
        }
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(folder.path().join("record.db"), copy.path().join("record.db")).unwrap();
        std::fs::write(copy.path().join("record.db-wal"), bytes).unwrap();
        let contents = reopened(copy.path());
        prop_assert_eq!((contents.lost, &contents.set_aside), (0, &None));
        let found: BTreeMap<u64, Item> =
            contents.prompts.into_iter().map(|item| (item.number, item)).collect();
        prop_assert!(
            states[safe.1..].contains(&found),
            "{found:?} is none of {:?}",
            &states[safe.1..]
        );
    }
}

fn reopened(dir: &Path) -> Contents {
    Sqlite::new(dir).open().unwrap()
}

fn session_item(name: &str, data: &str) -> SessionItem {
    SessionItem {
        client: "me".into(),
        name: name.into(),
        used: 9,
        data: Bytes::copy_from_slice(data.as_bytes()),
    }
}

/// A file with a few rows, some of them larger than a page.
fn filled(dir: &Path) -> Contents {
    let mut disk = Sqlite::new(dir);
    disk.open().unwrap();
    let large = "long ".repeat(3000);
    let prompts: Vec<Item> = (1..=20)
        .map(|n| item(n, Stage::Accepted, if n % 4 == 0 { &large } else { "short" }))
        .collect();
    let sessions = vec![session_item("s", "turns")];
    let changes: Vec<Change> = prompts
        .iter()
        .cloned()
        .map(Change::Prompt)
        .chain(sessions.iter().cloned().map(Change::Session))
        .collect();
    for change in &changes {
        disk.write(std::slice::from_ref(change), true).unwrap();
    }
    Contents { prompts, sessions, ..Contents::default() }
}

#[test]
fn rows_survive_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let contents = filled(dir.path());
    assert_eq!(reopened(dir.path()), contents);
    let mut disk = Sqlite::new(dir.path());
    disk.open().unwrap();
    let changes = [
        Change::Remove(Row::Prompt(3)),
        Change::Prompt(Item { door: Door::Socket, ..item(1, Stage::Delivered, "new") }),
        Change::Remove(Row::Session("me".into(), "s".into())),
    ];
    disk.write(&changes, false).unwrap();
    drop(disk);
    let again = reopened(dir.path());
    assert_eq!((again.prompts.len(), again.sessions.len()), (19, 0));
    assert_eq!((again.prompts[0].stage, again.prompts[0].door), (Stage::Delivered, Door::Socket));
}

#[test]
fn a_file_of_the_first_version_is_read_and_brought_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.db");
    let old = Item { deaths: 0, ..item(1, Stage::Accepted, "old") };
    let mut disk = Sqlite::new(dir.path());
    disk.open().unwrap();
    disk.write(&[Change::Prompt(old.clone())], true).unwrap();
    drop(disk);
    {
        let plain = sqlite::plain(&path);
        plain.execute_batch("ALTER TABLE prompts DROP COLUMN deaths; DROP TABLE accounts").unwrap();
        plain.pragma_update(None, "user_version", 1).unwrap();
    }
    let mut disk = Sqlite::new(dir.path());
    assert_eq!(disk.open().unwrap().prompts, std::slice::from_ref(&old));
    disk.write(&[Change::Prompt(item(2, Stage::Accepted, "new"))], true).unwrap();
    drop(disk);
    assert_eq!(reopened(dir.path()).prompts, [old, item(2, Stage::Accepted, "new")]);
}

#[test]
fn two_promptds_do_not_share_a_file_and_a_newer_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().join("record.db");
    {
        let newer = sqlite::plain(&path);
        newer.pragma_update(None, "user_version", 99).unwrap();
    }
    let before = std::fs::read(&path).unwrap();
    let error = Record::open(dir.path(), QUICK).unwrap_err();
    assert!(matches!(error, DiskError::Newer { have: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer promptd"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_file_is_set_aside_and_what_can_be_read_goes_on() {
    let whole = tempfile::tempdir().unwrap();
    let contents = filled(whole.path());
    // All in the file itself, none in its log.
    sqlite::plain(&whole.path().join("record.db"))
        .pragma_update(None, "journal_mode", "DELETE")
        .unwrap();
    let bytes = std::fs::read(whole.path().join("record.db")).unwrap();
    let (mut aside, mut lost) = (0, 0);
    let places = (0..bytes.len()).step_by(bytes.len() / 60);
    for (n, at) in places.enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let mut harmed = bytes.clone();
        if n % 10 == 0 {
            harmed.truncate(at);
        } else {
            harmed[at] ^= 0x5a;
        }
        std::fs::write(dir.path().join("record.db"), &harmed).unwrap();
        let mut disk = Sqlite::new(dir.path());
        let found = match disk.open() {
            Ok(found) => found,
            // The version is in the file as well.
            Err(DiskError::Newer { .. }) => continue,
            Err(error) => panic!("byte {at}: {error}"),
        };
        for item in &found.prompts {
            assert!(contents.prompts.contains(item), "byte {at}: {item:?} was never written");
        }
        if let Some(path) = &found.set_aside {
            assert_eq!(std::fs::read(path).unwrap(), harmed, "byte {at}: it is kept as it was");
            aside += 1;
        }
        lost += found.lost;
        disk.write(&[Change::Prompt(item(50, Stage::Accepted, "new"))], true).unwrap();
        drop(disk);
        let again = reopened(dir.path());
        assert_eq!(again.prompts.last(), Some(&item(50, Stage::Accepted, "new")), "byte {at}");
        assert_eq!(again.prompts.len(), found.prompts.len() + 1, "byte {at}");
    }
    assert!(aside > 3 && lost > 3, "{aside} files set aside, {lost} rows left out");
}

#[test]
fn a_renewal_that_was_cut_off_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let contents = filled(dir.path());
    sqlite::plain(&dir.path().join("record.db"))
        .pragma_update(None, "journal_mode", "DELETE")
        .unwrap();
    // The old file is gone, its log is not, and the new one is not in its place.
    std::fs::rename(dir.path().join("record.db"), dir.path().join("record.db.new")).unwrap();
    std::fs::write(dir.path().join("record.db-wal"), "an old log").unwrap();
    assert_eq!(reopened(dir.path()), contents);
}

#[test]
fn conversations_last() {
    let dir = tempfile::tempdir().unwrap();
    let key = |name: &str| Key { client: "me".into(), name: name.into() };
    let turn = |n: u64| Turn { question: format!("q{n}"), answer: "a".into(), prompt: Some(n) };
    {
        let (record, keeper) = Record::open(dir.path(), QUICK).unwrap();
        let mut store = KeptSessions::new(record);
        assert!(store.load().is_empty());
        store.save(&key("s"), &[turn(1)]);
        store.save(&key("s"), &[turn(1), turn(2)]);
        store.save(&key("t"), &[turn(3)]);
        store.remove(&key("t"));
        close(keeper);
    }
    let (record, keeper) = Record::open(dir.path(), QUICK).unwrap();
    let mut store = KeptSessions::new(record);
    let loaded = store.load();
    let (found, turns, idle) = &loaded[0];
    assert_eq!((loaded.len(), found, turns), (1, &key("s"), &vec![turn(1), turn(2)]));
    assert!(*idle < Duration::from_secs(60), "{idle:?}");
    close(keeper);
}

#[test]
fn a_clock_that_was_set_gives_no_more_time_than_there_was() {
    let item = item(1, Stage::Accepted, "");
    for (now, left) in [(1000, 4000), (4999, 1), (5000, 0), (9999, 0), (0, 4000)] {
        assert_eq!(item.left(now), Some(Duration::from_millis(left)), "{now}");
    }
    assert_eq!(Item { until: 0, ..item }.left(1), None);
}
