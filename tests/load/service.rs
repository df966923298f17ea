//! `promptd serve` with the engine of these tests, in a folder of its own.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine;

/// A service; ended with it.
pub(crate) struct Service {
    folder: tempfile::TempDir,
    child: Child,
}

/// What to start it with.
pub(crate) struct Plan {
    /// The service's program, which is also its engine's.
    pub(crate) program: PathBuf,
    /// The model folder; for this program's own engine an empty one ([`engine::folder`]).
    pub(crate) model: PathBuf,
    pub(crate) library: PathBuf,
    pub(crate) slots: u32,
    /// More configuration.
    pub(crate) more: String,
    /// Where its engine is.
    pub(crate) engine: Where,
}

/// Where a service has its engine.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Where {
    /// In a process of its own, as it is shipped.
    Outside,
    /// In its own process, scripted ([`crate::inside`]).
    Inside,
}

impl Plan {
    /// This program's own engine, with a token every so often.
    pub(crate) fn paced(step: Duration) -> Plan {
        Plan {
            program: std::env::current_exe().unwrap(),
            model: engine::folder(step).into(),
            library: "none.so".into(),
            slots: 2,
            more: String::new(),
            engine: Where::Outside,
        }
    }
}

impl Service {
    /// Starts it and waits until it is ready. Paths that are not absolute lie in its folder.
    pub(crate) fn start(plan: &Plan) -> Service {
        // /tmp, because the path of a socket may have no more than 107 bytes.
        let folder = tempfile::Builder::new().prefix("promptd-l-").tempdir_in("/tmp").unwrap();
        let place = folder.path();
        std::fs::create_dir_all(place.join(&plan.model)).unwrap();
        let config = format!(
            "[model]\npath = {:?}\nslots = {}\n[runtime]\nlibrary = {:?}\nthreads = 1\n[socket]\npath = {:?}\n[state]\ndir = {:?}\n{}",
            place.join(&plan.model),
            plan.slots,
            place.join(&plan.library),
            place.join("http.sock"),
            place.join("state"),
            plan.more,
        );
        std::fs::write(place.join("promptd.toml"), config).unwrap();
        let log = std::fs::File::create(place.join("log")).unwrap();
        let mut command = Command::new(&plan.program);
        let serve = if plan.engine == Where::Inside { "serve-inside" } else { "serve" };
        command.arg(serve).arg("--config").arg(place.join("promptd.toml"));
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let service = Service { child: command.spawn().unwrap(), folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while service.health().is_none_or(|health| health["state"] != "ready") {
            assert!(Instant::now() < deadline, "promptd is not ready:\n{}", service.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        service
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The HTTP socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("http.sock")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Bytes that it has logged.
    pub(crate) fn logged(&self) -> u64 {
        std::fs::metadata(self.folder.path().join("log")).map_or(0, |about| about.len())
    }

    /// `/health/ready`.
    pub(crate) fn health(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        let request = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// Resident memory of the service, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }

    /// Bytes that the service has handed to the file systems.
    pub(crate) fn written(&self) -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()));
        let io = io.unwrap_or_default();
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process's time on the processor so far, in hundredths of a second (`proc_pid_stat(5)`; `USER_HZ` is 100 on Linux).
pub(crate) fn ticks(pid: u32) -> u32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap()
}
