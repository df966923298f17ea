//! What a break-in into the engine would try first, tried by this process on itself. It shows on the very board, inside the
//! very unit, what the sandbox is worth there. Nothing it tries has a lasting effect where it succeeds.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use serde::Serialize;

/// One attempt.
#[derive(Debug, Serialize)]
pub struct Attempt {
    /// What was tried.
    pub what: String,
    /// How it went.
    pub outcome: Outcome,
    /// The system's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How an attempt went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The system refused it.
    Refused,
    /// There was nothing to try it on.
    Absent,
    /// It worked.
    Possible,
}

/// Tries everything. `model` is the folder that may be read, `secrets` are files of others. The caller is confined already.
pub fn attempts(model: &Path, secrets: &[PathBuf]) -> Vec<Attempt> {
    let mut tried = vec![
        attempt("a TCP socket", TcpListener::bind("127.0.0.1:0").map(drop)),
        attempt("a UDP socket", UdpSocket::bind("127.0.0.1:0").map(drop)),
        attempt("a Unix socket", UnixDatagram::unbound().map(drop)),
        attempt("running /bin/true", run("/bin/true")),
        attempt("running /bin/sh", run("/bin/sh")),
        attempt(
            "changing the root directory",
            rustix::process::chroot("/").map_err(io::Error::from),
        ),
        attempt("setting the host name", same_host_name()),
        attempt("reading the memory of the process that started it", memory_of_parent()),
        attempt("taking a file of the process that started it", file_of_parent()),
        attempt("signalling the process that started it", signal_parent()),
    ];
    for folder in [
        model,
        Path::new("/tmp"),
        Path::new("/var/tmp"),
        Path::new("/dev/shm"),
        Path::new("/run/promptd"),
    ] {
        tried.push(attempt(&format!("a new file in {}", folder.display()), new_file(folder)));
    }
    for file in model
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
    {
        let opened = OpenOptions::new().append(true).open(&file).map(drop);
        tried.push(attempt(&format!("writing to {}", file.display()), opened));
    }
    let others = ["/etc/passwd", "/etc/shadow", "/etc/promptd/promptd.toml"].map(PathBuf::from);
    for secret in others.iter().chain(secrets) {
        tried.push(attempt(&format!("reading {}", secret.display()), File::open(secret).map(drop)));
    }
    for folder in ["/", "/etc", "/home", "/var/lib/promptd"] {
        tried.push(attempt(&format!("listing {folder}"), fs::read_dir(folder).map(drop)));
    }
    tried
}

fn attempt(what: &str, tried: io::Result<()>) -> Attempt {
    let outcome = match &tried {
        Ok(()) => Outcome::Possible,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Absent,
        Err(_) => Outcome::Refused,
    };
    Attempt { what: what.to_owned(), outcome, error: tried.err().map(|error| error.to_string()) }
}

fn run(program: &str) -> io::Result<()> {
    let null = Stdio::null;
    Command::new(program).stdin(null()).stdout(null()).stderr(null()).status().map(drop)
}

fn new_file(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".promptd-sandbox-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&path).map(drop);
    if made.is_ok() {
        fs::remove_file(path)?;
    }
    made
}

fn same_host_name() -> io::Result<()> {
    let name = rustix::system::uname();
    Ok(rustix::system::sethostname(name.nodename().to_bytes())?)
}

fn memory_of_parent() -> io::Result<()> {
    let Some(parent) = rustix::process::getppid() else {
        return Err(io::ErrorKind::NotFound.into());
    };
    File::open(format!("/proc/{}/mem", parent.as_raw_nonzero())).map(drop)
}

fn file_of_parent() -> io::Result<()> {
    let Some(parent) = rustix::process::getppid() else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let process = rustix::process::pidfd_open(parent, PidfdFlags::empty())?;
    // Standard error, which this process has as well.
    rustix::process::pidfd_getfd(process, 2, PidfdGetfdFlags::empty())?;
    Ok(())
}

/// Signal 0 says only whether one might.
fn signal_parent() -> io::Result<()> {
    let parent: Option<Pid> = rustix::process::getppid();
    parent.map_or(Err(io::ErrorKind::NotFound.into()), |parent| {
        Ok(rustix::process::test_kill_process(parent)?)
    })
}
