//! What the board says of itself: temperature, clocks and what holds them back, memory and its pressure. Reads the kernel's
//! files below a root that is passed in. What a board does not tell is not known; nothing here fails.

mod memory;
mod thermal;

use std::path::{Path, PathBuf};

/// Where the kernel's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    root: PathBuf,
}

impl Default for Board {
    /// The board this process runs on.
    fn default() -> Self {
        Board { root: PathBuf::from("/") }
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The hottest zone in degrees Celsius.
    pub temperature: Option<f64>,
    /// What holds the board back at present, a sentence each; empty where nothing does.
    pub throttled: Vec<String>,
    /// The clock of the slowest group of processors at present, and the fastest it can have, in MHz.
    pub clock: Option<Clock>,
    /// Bytes that programs can still have.
    pub available: Option<u64>,
    /// The share of the last ten seconds in which every program that wanted to run waited for memory, in percent.
    pub pressure: Option<f64>,
}

/// The system that a board runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct System {
    /// What it calls itself.
    pub name: Option<String>,
    /// The release of its kernel.
    pub kernel: Option<String>,
    /// How many programs wanted to run, on the average of the last minute.
    pub load: Option<f64>,
}

/// A clock in MHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// At present.
    pub now: u64,
    /// The fastest.
    pub most: u64,
}

impl Board {
    /// A board whose `/sys` and `/proc` are below this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Board { root: root.into() }
    }

    /// Reads everything. Takes well below a millisecond where the sensors are in the chip.
    pub fn read(&self) -> Reading {
        Reading {
            temperature: thermal::temperature(&self.root),
            throttled: thermal::throttled(&self.root),
            clock: thermal::clock(&self.root),
            available: memory::available(&self.root),
            pressure: memory::pressure(&self.root),
        }
    }

    /// The system it runs. It is read each time: an upgrade changes it under a service that goes on.
    pub fn system(&self) -> System {
        let release = ["etc/os-release", "usr/lib/os-release"];
        let release = release.iter().find_map(|file| text(&self.root.join(file)));
        let loads = text(&self.root.join("proc/loadavg"));
        System {
            name: release.and_then(|text| value(&text, "PRETTY_NAME")),
            kernel: text(&self.root.join("proc/sys/kernel/osrelease")),
            load: loads
                .and_then(|loads| loads.split(' ').next()?.parse().ok())
                .filter(|load: &f64| load.is_finite()),
        }
    }

    /// Bytes of memory that a process has, file pages included; its own for `None`.
    pub fn resident(&self, pid: Option<u32>) -> Option<u64> {
        memory::resident(&self.root, pid)
    }
}

/// A file's text without the line end.
fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// What stands behind a name in a file of names and values for shells (os-release(5)), cut where it is no name any more.
fn value(text: &str, name: &str) -> Option<String> {
    /// Names of systems have some dozens.
    const MOST: usize = 128;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(line.trim().trim_matches(['"', '\'']).chars().take(MOST).collect())
}

/// A file's number.
fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// The folders in a folder whose names begin so, in the order of their names.
fn folders(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok);
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests;
