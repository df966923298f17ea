//! What the service manager is told, by the real program to a manager's socket that the test holds: readiness, reloads, the end, and signs
//! of life with a proof only.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::service::{command, signal};
use crate::support::{PATIENCE, demo_model, library, wait_for};

/// promptd under a manager that wants a sign of life every 400 ms at the latest.
struct Managed {
    child: Child,
    manager: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Managed {
    fn start() -> Managed {
        let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
        let place = folder.path();
        let manager = UnixDatagram::bind(place.join("notify")).unwrap();
        let config = place.join("promptd.toml");
        std::fs::write(
            &config,
            format!(
                "[model]\npath = {:?}\n[runtime]\nlibrary = {:?}\n[socket]\npath = {:?}\n[state]\ndir = {:?}\n",
                demo_model(),
                library(),
                place.join("http.sock"),
                place.join("state"),
            ),
        )
        .unwrap();
        let log = std::fs::File::create(place.join("log")).unwrap();
        let child = command(&["serve", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", place.join("notify"))
            .env("WATCHDOG_USEC", "400000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Managed { child, manager, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("http.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The next thing that is said.
    fn hear(&self) -> String {
        let heard = self.hear_for(PATIENCE);
        heard.unwrap_or_else(|| panic!("nothing is said\n{}", self.log()))
    }

    /// The next thing that is said within this time.
    fn hear_for(&self, wait: Duration) -> Option<String> {
        let deadline = Instant::now() + wait;
        let mut bytes = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.manager.set_read_timeout(Some(left)).unwrap();
            match self.manager.recv(&mut bytes) {
                Ok(read) => return Some(String::from_utf8_lossy(&bytes[..read]).into_owned()),
                // A signal ends a wait that has a limit, whatever its handler wants (signal(7)). There is one for SIGCHLD as soon as a
                // test of this program has used tokio's processes, and it comes when the last thread of a stopped child has stopped,
                // and when the child goes on.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Listens until somebody says this, and returns what was said before.
    fn until(&self, words: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let said = self.hear();
            if said.lines().any(|line| line.starts_with(words)) {
                return before;
            }
            before.push(said);
            assert!(before.len() < 2000, "{words} never comes: {before:?}");
        }
    }

    /// What has been said and not heard yet.
    fn said(&self) -> Vec<String> {
        self.manager.set_nonblocking(true).unwrap();
        let mut all = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            match self.manager.recv(&mut bytes) {
                Ok(read) => all.push(String::from_utf8_lossy(&bytes[..read]).into_owned()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.manager.set_nonblocking(false).unwrap();
        all
    }

    /// Listens, so that nobody who speaks has to wait, until the log has these words so often. What was said.
    fn until_logged(&self, words: &str, times: usize) -> Vec<String> {
        let mut all = Vec::new();
        wait_for(words, || {
            let is_there = self.log().matches(words).count() >= times;
            all.extend(self.said());
            is_there.then_some(())
        });
        all
    }

    fn engine(&self) -> u32 {
        wait_for("the engine", || {
            let pid = self.child.id();
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            children.ok()?.split_whitespace().next()?.parse().ok()
        })
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- promptd's log\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_manager_is_told_of_a_whole_life() {
    let mut service = Managed::start();
    // The record is opened before the doors, and may take its time.
    let opening = service.hear();
    assert!(opening.contains("EXTEND_TIMEOUT_USEC=300000000"), "{opening}");
    service.until("READY=1");
    let loading = service.until("STATUS=answering with demo");
    let patience = |said: &String| {
        said.starts_with("STATUS=loading") && said.contains("EXTEND_TIMEOUT_USEC=30000000")
    };
    assert!(loading.iter().any(patience), "{loading:?}");
    service.until("WATCHDOG=1");
    service.until("WATCHDOG=1");

    signal(service.child.id(), "HUP");
    service.until("RELOADING=1");
    service.until("READY=1");

    signal(service.child.id(), "TERM");
    let mut last = service.hear();
    while !last.contains("STOPPING=1") {
        last = service.hear();
    }
    // The grace of accepted prompts, and what the goodbye may take.
    assert!(last.contains("EXTEND_TIMEOUT_USEC=40000000"), "{last}");
    assert!(service.child.wait().unwrap().success(), "{}", service.log());
}

/// A service that does not turn says nothing: there is no thread that feeds beside the one that works.
#[test]
fn a_service_that_stands_still_feeds_nobody() {
    let service = Managed::start();
    service.until("READY=1");
    service.until("WATCHDOG=1");
    signal(service.child.id(), "STOP");
    wait_for("the stop", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.child.id())).ok()?;
        stat.rsplit(')').next()?.trim_start().starts_with('T').then_some(())
    });
    service.said();
    // Three times as long as one may be late.
    let said = service.hear_for(Duration::from_millis(1200));
    assert_eq!(said, None, "it stands still");
    signal(service.child.id(), "CONT");
    service.until("WATCHDOG=1");
}

/// The first cgroup tree's freezer, which holds processes so fast that not even SIGKILL ends them, as a driver or a disk that does
/// not answer does. `None` where there is none, or where it takes root.
struct Frozen(PathBuf);

impl Frozen {
    fn new(pid: u32) -> Option<Frozen> {
        let root = Path::new("/sys/fs/cgroup/freezer");
        let group = root.join(format!("promptd-it-{}", std::process::id()));
        if !root.join("tasks").exists() || std::fs::create_dir(&group).is_err() {
            println!("skipped: there is no freezer that holds processes against SIGKILL");
            return None;
        }
        let frozen = Frozen(group);
        std::fs::write(frozen.0.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(frozen.0.join("freezer.state"), "FROZEN").unwrap();
        wait_for("the frost", || {
            let state = std::fs::read_to_string(frozen.0.join("freezer.state")).ok()?;
            (state.trim() == "FROZEN").then_some(())
        });
        Some(frozen)
    }

    fn thaw(&self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        // Empty as soon as the engine is dead.
        for _ in 0..2000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The engine cannot be ended by anybody: its memory is not to be had back, and no other can be started. Only the manager can help,
/// and it does so when nothing feeds it any more.
#[test]
fn an_engine_that_nobody_can_end_starves_the_watchdog() {
    let service = Managed::start();
    service.until("STATUS=answering with demo");
    let Some(frozen) = Frozen::new(service.engine()) else { return };
    service.until("WATCHDOG=1");
    // It has nothing to do, so that its silence is no fault; until somebody wants it gone.
    let unload = std::thread::Builder::new().spawn({
        let socket = service.socket();
        move || unload(&socket)
    });
    service.until_logged("is killed", 1);
    service.until("WATCHDOG=1");
    // Half a minute for a process to die, five seconds for whoever waits for it.
    let before = service.until_logged("cannot be ended", 1);
    let said = service.until_logged("cannot be ended", 4);
    assert!(before.iter().any(|said| said.contains("WATCHDOG=1")), "{before:?}");
    assert!(!said.iter().any(|said| said.contains("WATCHDOG=1")), "{said:?}");
    // And where it dies after all, all is well again.
    frozen.thaw();
    service.until("WATCHDOG=1");
    unload.unwrap().join().unwrap();
}

/// Takes the model out of memory; the answer comes when it is out.
fn unload(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
    stream
        .write_all(b"POST /admin/unload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 2"), "{text}");
}
