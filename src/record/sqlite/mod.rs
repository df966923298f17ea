//! The record on a real disk: one file of `SQLite`. Only this room names rusqlite.
//!
//! Its write-ahead log makes a transaction one sequential write and one sync. What the library does not do is done here:
//! rows carry a digest, because a card can return other bytes than it was given; a file that is damaged is set aside, and
//! what can be read of it goes on; after a sync that failed the file is written anew, because the system's cache shows
//! pages as they should be and not as they are (<https://lwn.net/Articles/752063/>).

mod rows;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, TransactionBehavior};

use self::rows::{read, read_accounts, read_prompts, read_sessions, write};
use super::disk::{Change, Contents, Disk, DiskError};
use super::unix_ms;

/// The file in the state directory.
const NAME: &str = "record.db";
/// `application_id` of the file: "prmd".
const APPLICATION: i64 = 0x7072_6d64;
/// What brings the form of the file from each version to the next. The version is the number of steps.
const STEPS: &[&str] = &["CREATE TABLE prompts (
        number INTEGER PRIMARY KEY, door INTEGER NOT NULL, stage INTEGER NOT NULL, key BLOB NOT NULL, seed INTEGER NOT NULL,
        starts INTEGER NOT NULL, attempts INTEGER NOT NULL, begun INTEGER NOT NULL, until INTEGER NOT NULL,
        data BLOB NOT NULL, digest BLOB NOT NULL);
    CREATE TABLE sessions (
        client TEXT NOT NULL, name TEXT NOT NULL, used INTEGER NOT NULL, data BLOB NOT NULL, digest BLOB NOT NULL,
        PRIMARY KEY (client, name)) WITHOUT ROWID;
    CREATE TABLE openings (id INTEGER PRIMARY KEY CHECK (id = 1), count INTEGER NOT NULL);
    INSERT INTO openings VALUES (1, 0);",
    "ALTER TABLE prompts ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;",
    "CREATE TABLE accounts (
        client TEXT PRIMARY KEY, began INTEGER NOT NULL, tokens INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;"];
/// The most damaged files that are kept; the oldest gives way to a further one. A card that fails damages file after file,
/// and they must not fill it.
const SET_ASIDE: usize = 4;
/// The log is written into the file when it has so many pages (4 KiB): often enough to keep it small, seldom enough that
/// a page which changes with every prompt is written once for hundreds of them.
const CHECKPOINT_PAGES: i64 = 512;

/// The file, and what stands in the way of trusting it.
#[derive(Debug)]
pub(super) struct Sqlite {
    dir: PathBuf,
    connection: Option<Connection>,
    is_safe: bool,
    distrust: bool,
    damaged: bool,
}

impl Sqlite {
    pub(super) fn new(dir: &Path) -> Self {
        Sqlite {
            dir: dir.to_owned(),
            connection: None,
            is_safe: false,
            distrust: false,
            damaged: false,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Where the next file is written before it takes the place of this one.
    fn new_path(&self) -> PathBuf {
        with_suffix(&self.path(), ".new")
    }

    fn try_open(&mut self) -> Result<Contents, DiskError> {
        let path = self.path();
        if !path.exists() && self.new_path().exists() {
            self.finish_renewal(&with_suffix(&path, ".old-wal"))?;
        }
        let connection = connect(&path).map_err(failed)?;
        let version = version(&connection, &path)?;
        let contents = if version == 0 {
            Contents::default()
        } else {
            sound(&connection).and_then(|()| read(&connection)).map_err(failed)?
        };
        if self.distrust {
            drop(connection);
            let old = with_suffix(&path, ".old");
            self.renew(&contents, &old)?;
            remove(&with_suffix(&old, "-wal"))?;
            remove(&old)?;
            self.distrust = false;
            self.connection = Some(connect(&path).map_err(failed)?);
        } else {
            self.connection = Some(connection);
        }
        if let Some(connection) = &mut self.connection {
            migrate(connection).map_err(failed)?;
        }
        self.is_safe = false;
        self.write(&[], true)?;
        sync_dir(&self.dir)?;
        Ok(contents)
    }

    /// Writes the rows into a new file that takes the place of the old, which gets this name. Wherever this is cut off,
    /// one of the two is whole and is found.
    fn renew(&self, contents: &Contents, old: &Path) -> Result<(), DiskError> {
        let (path, new) = (self.path(), self.new_path());
        for leftover in [&new, &with_suffix(&new, "-journal"), &with_suffix(&new, "-wal")] {
            remove(leftover)?;
        }
        fill(&new, contents).map_err(failed)?;
        sync_dir(&self.dir)?;
        rename(&path, old)?;
        sync_dir(&self.dir)?;
        self.finish_renewal(&with_suffix(old, "-wal"))
    }

    /// Puts the new file in the place that is empty. The old one's log goes with the old one: it would be taken for the
    /// new one's.
    fn finish_renewal(&self, old_log: &Path) -> Result<(), DiskError> {
        let log = with_suffix(&self.path(), "-wal");
        if log.exists() {
            rename(&log, old_log)?;
        }
        rename(&self.new_path(), &self.path())?;
        sync_dir(&self.dir)
    }

    /// Renames a damaged file and goes on with what can be read of it.
    fn set_aside(&self) -> Result<Contents, DiskError> {
        let mut contents = salvage(&self.path());
        let mut earlier = self.set_aside_before();
        while earlier.len() >= SET_ASIDE {
            let oldest = earlier.remove(0);
            remove(&with_suffix(&oldest, "-wal"))?;
            remove(&oldest)?;
        }
        let name = with_suffix(&self.path(), &format!(".damaged-{}", unix_ms()));
        self.renew(&contents, &name)?;
        contents.set_aside = Some(name);
        Ok(contents)
    }

    /// Files that were set aside, the oldest first.
    fn set_aside_before(&self) -> Vec<PathBuf> {
        let prefix = format!("{NAME}.damaged-");
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with(&prefix) && !name.ends_with("-wal")
            })
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        paths
    }
}

impl Sqlite {
    fn open_or_set_aside(&mut self) -> Result<Contents, DiskError> {
        self.connection = None;
        if !self.damaged {
            match self.try_open() {
                Err(DiskError::Failed { damaged: true, .. }) => {}
                other => return other,
            }
        }
        self.connection = None;
        let aside = self.set_aside()?;
        (self.damaged, self.distrust) = (false, false);
        self.try_open()?;
        Ok(aside)
    }

    /// The reason in better words, where the system knows them.
    fn explained(&self, error: DiskError) -> DiskError {
        use rustix::fs::{StatVfsMountFlags, statvfs};
        let is_readonly =
            statvfs(&self.dir).is_ok_and(|about| about.f_flag.contains(StatVfsMountFlags::RDONLY));
        match error {
            DiskError::Failed { reason, distrust, damaged }
                if is_readonly && !reason.contains("is read-only") =>
            {
                let dir = self.dir.display();
                let reason = format!("the file system of `{dir}` is read-only ({reason})");
                DiskError::Failed { reason, distrust, damaged }
            }
            other => other,
        }
    }
}

impl Disk for Sqlite {
    fn open(&mut self) -> Result<Contents, DiskError> {
        self.open_or_set_aside().map_err(|error| self.explained(error))
    }

    fn write(&mut self, changes: &[Change], safe: bool) -> Result<(), DiskError> {
        let Some(connection) = &mut self.connection else {
            return Err(DiskError::Failed {
                reason: "the record is not open".to_owned(),
                distrust: false,
                damaged: false,
            });
        };
        let written = write(connection, changes, (self.is_safe, safe));
        self.is_safe = safe;
        written.map_err(|error| {
            let error = failed(error);
            if let DiskError::Failed { distrust, damaged, .. } = &error {
                self.distrust |= distrust;
                self.damaged |= damaged;
            }
            self.connection = None;
            self.explained(error)
        })
    }
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    // What is closed because it failed must not be written once more on the way out.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // The state directory is ours alone: without the shared memory file there is no memory map to die of on a full disk.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    Ok(connection)
}

/// The version of the file's form; 0 is a new file.
fn version(connection: &Connection, path: &Path) -> Result<i64, DiskError> {
    let number = |name: &str| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(failed)
    };
    let (have, application, known) = (number("user_version")?, number("application_id")?, known());
    if have > 0 && application != APPLICATION {
        let reason = format!("`{}` is no record of promptd", path.display());
        return Err(DiskError::Failed { reason, distrust: false, damaged: true });
    }
    if have > known {
        return Err(DiskError::Newer { path: path.to_owned(), have, known });
    }
    Ok(have)
}

fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

fn migrate(connection: &mut Connection) -> Result<(), Error> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", CHECKPOINT_PAGES * 4096)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let have: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if have == known() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in STEPS.iter().skip(usize::try_from(have).unwrap_or(usize::MAX)) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known())?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.commit()
}

/// Whether the library finds its file in order.
fn sound(connection: &Connection) -> Result<(), Error> {
    let said: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if said == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(Error::SqliteFailure(code, Some(said)))
}

/// Reads what can be read.
fn salvage(path: &Path) -> Contents {
    let mut contents = Contents::default();
    let Ok(connection) = connect(path) else { return contents };
    // Each as far as it goes: the error is the end of what can be had.
    let _ = read_prompts(&connection, &mut contents);
    let _ = read_sessions(&connection, &mut contents);
    let _ = read_accounts(&connection, &mut contents);
    contents
}

/// A new file with these rows, whole on the disk.
fn fill(path: &Path, contents: &Contents) -> Result<(), Error> {
    let mut connection = connect(path)?;
    migrate(&mut connection)?;
    // A file that is renamed must not need a log.
    connection.pragma_update(None, "journal_mode", "DELETE")?;
    let prompts = contents.prompts.iter().cloned().map(Change::Prompt);
    let sessions = contents.sessions.iter().cloned().map(Change::Session);
    let accounts = contents.accounts.iter().cloned().map(Change::Account);
    let changes: Vec<Change> = prompts.chain(sessions).chain(accounts).collect();
    write(&mut connection, &changes, (true, true))
}

/// An error of the library in our words.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives it away")]
fn failed(error: Error) -> DiskError {
    let code = error.sqlite_error_code();
    let distrust = matches!(code, Some(ErrorCode::SystemIoFailure));
    let damaged = matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase));
    let what = match code {
        Some(ErrorCode::DiskFull) => "the disk is full",
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "the record cannot be opened for writing"
        }
        Some(ErrorCode::SystemIoFailure) => "the disk fails",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => "the record is damaged",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program has the record open"
        }
        _ => "the record cannot be used",
    };
    DiskError::Failed { reason: format!("{what}: {error}"), distrust, damaged }
}

fn io(path: &Path, error: &std::io::Error) -> DiskError {
    let reason = format!("`{}` cannot be changed: {error}", path.display());
    DiskError::Failed { reason, distrust: false, damaged: false }
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(path, &error)),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    std::fs::rename(from, to).map_err(|error| io(from, &error))
}

/// Names in a directory are safe when the directory is.
fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| io(dir, &error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The file without any of our settings, for tests that change it behind our back.
#[cfg(test)]
pub(super) fn plain(path: &Path) -> Connection {
    Connection::open(path).unwrap_or_else(|error| unreachable!("{error}"))
}
