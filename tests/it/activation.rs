//! Sockets that a service manager opened: found by name, and open while the service starts again.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{PATIENCE, demo_model, library, wait_for};

/// A service manager with both listeners, and the service that it started last; that ends with it.
struct Manager {
    folder: tempfile::TempDir,
    http: UnixListener,
    lines: UnixListener,
    service: Option<Child>,
}

impl Manager {
    fn new() -> Manager {
        // /tmp, because the path of a socket may have no more than 107 bytes.
        let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
        let bind = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let (http, lines) = (bind("http"), bind("lines"));
        Manager { folder, http, lines, service: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts promptd with the listeners as its first descriptors. The shell gives it the process id that it will have, as
    /// systemd does.
    fn start(&mut self) -> u32 {
        let config = self.path("promptd.toml");
        let (model, library) = (demo_model(), library());
        let (state, unused) = (self.path("state"), self.path("unused.sock"));
        std::fs::write(
            &config,
            format!("[model]\npath = {model:?}\n[runtime]\nlibrary = {library:?}\n[socket]\npath = {unused:?}\n[state]\ndir = {state:?}\n"),
        )
        .unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        let script = "exec 3<&0 4<&1 <&- >&-; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=lines:http exec \"$@\"";
        let owned = |listener: &UnixListener| {
            Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()))
        };
        let service = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_promptd"), "serve", "--config"])
            .arg(&config)
            .env_remove("NOTIFY_SOCKET")
            .stdin(owned(&self.lines))
            .stdout(owned(&self.http))
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        self.service.insert(service).id()
    }

    fn wait(&mut self) {
        let service = self.service.as_mut().unwrap();
        wait_for("promptd to end", || service.try_wait().unwrap());
        self.service = None;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(service) = &mut self.service {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

fn get(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn no_request_is_refused_while_the_service_starts_again() {
    let mut manager = Manager::new();
    let service = manager.start();
    let (http_path, lines_path) = (manager.path("http"), manager.path("lines"));
    assert!(get(&http_path).contains("200 OK"));
    assert!(!manager.path("unused.sock").exists());
    let mut line = UnixStream::connect(&lines_path).unwrap();
    line.write_all(b"{\"prompt\":1}\n").unwrap();
    line.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    line.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"param\":\"prompt\"") || answer.contains("bad_request"), "{answer}");

    crate::support::service::signal(service, "TERM");
    manager.wait();
    // Nobody is there; who comes now waits and is answered by the next one.
    let waiting = std::thread::Builder::new().spawn({
        let path = http_path.clone();
        move || get(&path)
    });
    manager.start();
    assert!(waiting.unwrap().join().unwrap().contains("200 OK"));
    assert!(http_path.exists() && lines_path.exists(), "they are the manager's");
}

/// Without descriptors promptd waits for some, without spinning, and goes on when it has them.
#[test]
fn no_descriptors_left() {
    let mut manager = Manager::new();
    let service = manager.start();
    let http_path = manager.path("http");
    assert!(get(&http_path).contains("200 OK"));
    let limit = format!(
        "--nofile={}",
        std::fs::read_dir(format!("/proc/{service}/fd")).unwrap().count() + 8
    );
    let limited = Command::new("prlimit").arg(format!("--pid={service}")).arg(limit).status();
    if !limited.is_ok_and(|status| status.success()) {
        return println!("skipped: there is no prlimit");
    }
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{service}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    let half: Vec<UnixStream> = (0..60)
        .map(|_| {
            let mut stream = UnixStream::connect(&http_path).unwrap();
            stream.write_all(b"GET /hea").unwrap();
            stream
        })
        .collect();
    // The oldest give way to who comes, one after the other.
    assert!(get(&http_path).contains("200 OK"));
    let spent = ticks() - before;
    assert!(spent < 200, "{spent} hundredths of a second of processor time");
    drop(half);
    assert!(get(&http_path).contains("200 OK"));
}
