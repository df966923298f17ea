//! The files of a model, one after the other: each into a file beside its place, gone on with where it was cut off, and put in
//! its place when its size and checksum are right.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{CONTENT_RANGE, ETAG};
use hyper::{StatusCode, Uri};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::choice::Wanted;
use super::http::{self, Fetcher};
use super::{HubError, Progress};
use crate::inference::hex;
use crate::store::{Incoming, Store, StoreError};

/// Attempts in a row that bring nothing; one that brings something begins the count again.
const ATTEMPTS: u32 = 6;
/// The longest pause between two, whatever a server asks for.
const LONGEST: Duration = Duration::from_secs(120);
/// What the name of a file ends with that is not whole.
const PART: &str = ".part";
/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;

/// Where files come from, and how.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) fetcher: &'a Fetcher,
    /// What stands before a file's name in its address.
    pub(super) prefix: String,
    pub(super) pause: Duration,
    pub(super) bytes_per_second: Option<u64>,
}

/// Fetches all files.
pub(super) async fn all(
    source: &Source<'_>,
    store: &Store,
    incoming: &Incoming<'_>,
    wanted: &[Wanted],
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<(), HubError> {
    let size = |wanted: &Wanted| {
        wanted.file.lfs.as_ref().map(|lfs| lfs.size).or(wanted.file.size).unwrap_or(0)
    };
    let total = wanted.iter().map(size).fold(0, u64::saturating_add);
    let mut there: u64 = 0;
    for wanted in wanted {
        let place = incoming.place(&wanted.name)?;
        there =
            there.saturating_add(length(&place).max(length(&part_of(&place))).min(size(wanted)));
    }
    // As it comes in from the network, so it fills the disk: what is there already needs no room.
    store.check_room(total.saturating_sub(there))?;
    let mut pace = Pace { bytes_per_second: source.bytes_per_second, due: Instant::now() };
    let mut done = 0;
    for wanted in wanted {
        let mut tell_of = |bytes: u64| {
            tell(Progress { file: &wanted.name, done: done + bytes, total });
        };
        one(source, &incoming.place(&wanted.name)?, wanted, &mut pace, &mut tell_of).await?;
        done += size(wanted);
    }
    Ok(())
}

/// Fetches a file, in as many attempts as it takes.
async fn one(
    source: &Source<'_>,
    place: &Path,
    wanted: &Wanted,
    pace: &mut Pace,
    tell: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    if place.exists() {
        if check(place, wanted, None).is_ok() {
            tell(length(place));
            return Ok(());
        }
        std::fs::remove_file(place).map_err(|error| disk("remove", place, error))?;
    }
    let url = source.fetcher.at(&format!("{}{}", source.prefix, escaped(&wanted.file.name)));
    let (mut failures, mut reached) = (0, length(&part_of(place)));
    let linked = loop {
        let error = match attempt(source, &url, place, wanted, (&mut *pace, &mut *tell)).await {
            Ok(linked) => break linked,
            Err(error) => error,
        };
        let now = length(&part_of(place));
        if now > reached {
            (failures, reached) = (0, now);
        }
        failures += 1;
        wait(error, failures, source.pause).await?;
    };
    let part = part_of(place);
    if let Err(error) = check(&part, wanted, linked.as_deref()) {
        std::fs::remove_file(&part).map_err(|error| disk("remove", &part, error))?;
        return Err(error);
    }
    let synced = File::open(&part).and_then(|file| file.sync_all());
    synced.and_then(|()| std::fs::rename(&part, place)).map_err(|error| disk("write", place, error))
}

/// One attempt: goes on behind what is there. Gives the checksum that came with it, where one did.
async fn attempt(
    source: &Source<'_>,
    url: &str,
    place: &Path,
    wanted: &Wanted,
    (pace, tell): (&mut Pace, &mut dyn FnMut(u64)),
) -> Result<Option<String>, HubError> {
    let part = part_of(place);
    let size = wanted.file.lfs.as_ref().map(|lfs| lfs.size).or(wanted.file.size);
    let mut at = length(&part);
    if size.is_some_and(|size| at > size) {
        std::fs::remove_file(&part).map_err(|error| disk("remove", &part, error))?;
        at = 0;
    }
    if size == Some(at) && at > 0 {
        return Ok(None);
    }
    let shown: Uri = http::parse(url)?;
    let mut response = source.fetcher.get(url, at).await?;
    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        // What is there is no beginning of what the server has: from the start, next time.
        std::fs::remove_file(&part).map_err(|error| disk("remove", &part, error))?;
        return Err(HubError::broken(&shown, "has less than was fetched before"));
    }
    http::refuse(&response, &shown)?;
    let mut file = File::options().write(true).create(true).truncate(false).open(&part);
    let file =
        file.as_mut().map_err(|error| disk("write", &part, std::io::Error::from(error.kind())))?;
    let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .is_some_and(|range| range.starts_with(&format!("bytes {at}-")));
    if !goes_on {
        at = 0;
    }
    let begun = file.set_len(at).and_then(|()| file.seek(SeekFrom::Start(at)));
    begun.map_err(|error| disk("write", &part, error))?;
    let linked = ["x-linked-etag", ETAG.as_str()].iter().find_map(|name| {
        let value = response.headers().get(*name)?.to_str().ok()?;
        let value = value.trim_start_matches("W/").trim_matches('"');
        (value.len() == 64 && value.chars().all(|c| c.is_ascii_hexdigit()))
            .then(|| value.to_owned())
    });
    while let Some(piece) = http::piece(&mut response, &shown).await? {
        let bytes = piece.len() as u64;
        if size.is_some_and(|size| at.saturating_add(bytes) > size) {
            std::fs::remove_file(&part).map_err(|error| disk("remove", &part, error))?;
            let what = format!("is longer than the {} bytes that the hub says", size.unwrap_or(0));
            return Err(HubError::Wrong { file: wanted.name.clone(), what });
        }
        file.write_all(&piece).map_err(|error| disk("write", &part, error))?;
        at += bytes;
        tell(at);
        pace.take(bytes).await;
    }
    if size.is_some_and(|size| at < size) {
        return Err(HubError::broken(
            &shown,
            format!("ended after {at} of {} bytes", size.unwrap_or(0)),
        ));
    }
    Ok(linked)
}

/// Holds a file against what the hub says of it. `linked`: the checksum that came with it.
fn check(path: &Path, wanted: &Wanted, linked: Option<&str>) -> Result<(), HubError> {
    let wrong = |what: String| HubError::Wrong { file: wanted.name.clone(), what };
    let size = wanted.file.lfs.as_ref().map(|lfs| lfs.size).or(wanted.file.size);
    let bytes = length(path);
    if let Some(size) = size.filter(|size| *size != bytes) {
        return Err(wrong(format!("has {bytes} bytes, the hub says {size}")));
    }
    let sha256 = wanted.file.lfs.as_ref().map(|lfs| lfs.sha256.as_str()).or(linked);
    let blob = wanted.file.blob.as_deref().filter(|_| sha256.is_none());
    let (mut large, mut git) = (Sha256::new(), Sha1::new());
    git.update(format!("blob {bytes}\0"));
    let mut file = File::open(path).map_err(|error| disk("read", path, error))?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).map_err(|error| disk("read", path, error))?;
        let Some(read) = piece.get(..read).filter(|read| !read.is_empty()) else { break };
        if sha256.is_some() {
            large.update(read);
        }
        if blob.is_some() {
            git.update(read);
        }
    }
    let (kind, is, should) = match (sha256, blob) {
        (Some(sha256), _) => ("sha256", hex(&large.finalize()), sha256),
        (None, Some(blob)) => ("git object id", hex(&git.finalize()), blob),
        (None, None) => return Ok(()),
    };
    if is.eq_ignore_ascii_case(should) {
        return Ok(());
    }
    Err(wrong(format!("has the {kind} {is}, the hub says {should}")))
}

/// Tries something small until it works or has failed often enough.
pub(super) async fn attempts<T>(
    pause: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, HubError>,
) -> Result<T, HubError> {
    let mut failures = 0;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => {
                failures += 1;
                wait(error, failures, pause).await?;
            }
        }
    }
}

/// Waits before another attempt where one makes sense; else gives the error back.
async fn wait(error: HubError, failures: u32, pause: Duration) -> Result<(), HubError> {
    let asked = match &error {
        HubError::Busy { wait, .. } => *wait,
        HubError::Broken { .. } => None,
        _ => return Err(error),
    };
    if failures >= ATTEMPTS {
        return Err(error);
    }
    let growing = pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
    tokio::time::sleep(asked.unwrap_or(growing).min(LONGEST)).await;
    Ok(())
}

/// Keeps to a number of bytes a second.
#[derive(Debug)]
struct Pace {
    bytes_per_second: Option<u64>,
    /// When the next bytes may come.
    due: Instant,
}

impl Pace {
    async fn take(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second.filter(|rate| *rate > 0) else { return };
        let took = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        // What was not used while nothing came is not made up for.
        self.due = self.due.max(Instant::now()) + took;
        tokio::time::sleep_until(self.due).await;
    }
}

fn part_of(place: &Path) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(PART);
    place.with_file_name(name)
}

/// Bytes of a file; 0 where there is none.
fn length(path: &Path) -> u64 {
    path.symlink_metadata().ok().filter(std::fs::Metadata::is_file).map_or(0, |data| data.len())
}

fn disk(doing: &'static str, path: &Path, source: std::io::Error) -> HubError {
    HubError::Store(StoreError::Io { doing, path: path.to_owned(), source })
}

/// A name as it stands in an address; folders stay folders.
pub(super) fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            text.push_str(&hex(&[byte]).to_ascii_uppercase());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_addresses() {
        assert_eq!(escaped("onnx/model q4+é.onnx"), "onnx/model%20q4%2B%C3%A9.onnx");
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded_and_grow_apart() {
        let begun = Instant::now();
        let mut tries = 0;
        let failed = attempts(Duration::from_secs(1), async || {
            tries += 1;
            Err::<(), _>(HubError::Broken { url: String::new(), what: String::new() })
        });
        assert!(failed.await.is_err());
        assert_eq!(tries, ATTEMPTS);
        assert_eq!(begun.elapsed().as_secs(), 1 + 2 + 4 + 8 + 16);
        let mut tries = 0;
        let refused = attempts(Duration::from_secs(1), async || {
            tries += 1;
            Err::<(), _>(HubError::Usage(String::new()))
        });
        assert!(refused.await.is_err());
        assert_eq!(tries, 1, "what is refused stays refused");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_no_quicker_than_they_may() {
        let begun = Instant::now();
        let mut pace = Pace { bytes_per_second: Some(1000), due: begun };
        for _ in 0..10 {
            pace.take(500).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 5);
    }
}
