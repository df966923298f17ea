//! Sockets that a service manager opened: found by name, and open while the service starts again.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use crate::support::{PATIENCE, demo_model, library, wait_for};

/// promptd with these listeners as its first descriptors. The shell gives it the process id that it will have, as systemd
/// does.
fn start(folder: &std::path::Path, http: &UnixListener, lines: &UnixListener) -> Child {
    let config = folder.join("promptd.toml");
    let (model, library) = (demo_model(), library());
    let state = folder.join("state");
    let unused = folder.join("unused.sock");
    std::fs::write(
        &config,
        format!("[model]\npath = {model:?}\n[runtime]\nlibrary = {library:?}\n[socket]\npath = {unused:?}\n[state]\ndir = {state:?}\n"),
    )
    .unwrap();
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let script =
        "exec 3<&0 4<&1 <&- >&-; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=lines:http exec \"$@\"";
    let owned = |listener: &UnixListener| {
        Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()))
    };
    Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_promptd"), "serve", "--config"])
        .arg(&config)
        .env_remove("NOTIFY_SOCKET")
        .stdin(owned(lines))
        .stdout(owned(http))
        .stderr(log)
        .spawn()
        .unwrap()
}

fn get(path: &std::path::Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn no_request_is_refused_while_the_service_starts_again() {
    let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
    let (http_path, lines_path) = (folder.path().join("http"), folder.path().join("lines"));
    let (http, lines) =
        (UnixListener::bind(&http_path).unwrap(), UnixListener::bind(&lines_path).unwrap());
    let mut service = start(folder.path(), &http, &lines);
    assert!(get(&http_path).contains("200 OK"));
    assert!(!folder.path().join("unused.sock").exists());
    let mut line = UnixStream::connect(&lines_path).unwrap();
    line.write_all(b"{\"prompt\":1}\n").unwrap();
    line.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    line.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"param\":\"prompt\"") || answer.contains("bad_request"), "{answer}");

    crate::support::service::signal(service.id(), "TERM");
    wait_for("promptd to end", || service.try_wait().unwrap());
    // Nobody is there; who comes now waits and is answered by the next one.
    let waiting = std::thread::Builder::new().spawn({
        let path = http_path.clone();
        move || get(&path)
    });
    let mut service = start(folder.path(), &http, &lines);
    assert!(waiting.unwrap().join().unwrap().contains("200 OK"));
    assert!(http_path.exists() && lines_path.exists(), "they are the manager's");
    service.kill().unwrap();
    service.wait().unwrap();
}

/// Without descriptors promptd waits for some, without spinning, and goes on when it has them.
#[test]
fn no_descriptors_left() {
    let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
    let (http_path, lines_path) = (folder.path().join("http"), folder.path().join("lines"));
    let (http, lines) =
        (UnixListener::bind(&http_path).unwrap(), UnixListener::bind(&lines_path).unwrap());
    let mut service = start(folder.path(), &http, &lines);
    assert!(get(&http_path).contains("200 OK"));
    let limit = format!(
        "--nofile={}",
        std::fs::read_dir(format!("/proc/{}/fd", service.id())).unwrap().count() + 8
    );
    let limited =
        Command::new("prlimit").arg(format!("--pid={}", service.id())).arg(limit).status();
    if !limited.is_ok_and(|status| status.success()) {
        println!("skipped: there is no prlimit");
        service.kill().unwrap();
        service.wait().unwrap();
        return;
    }
    let ticks = |pid: u32| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks(service.id());
    let half: Vec<UnixStream> = (0..60)
        .map(|_| {
            let mut stream = UnixStream::connect(&http_path).unwrap();
            stream.write_all(b"GET /hea").unwrap();
            stream
        })
        .collect();
    // The oldest give way to who comes, one after the other.
    assert!(get(&http_path).contains("200 OK"));
    let spent = ticks(service.id()) - before;
    assert!(spent < 200, "{spent} hundredths of a second of processor time");
    drop(half);
    assert!(get(&http_path).contains("200 OK"));
    service.kill().unwrap();
    service.wait().unwrap();
}
