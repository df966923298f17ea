//! `promptd serve` with the engine of these tests, in a folder of its own, that can be killed and started again.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine::{DEEDS, MANNER};

/// The variable that names the defect of a build with the feature `defects`.
pub(crate) const DEFECT: &str = "PROMPTD_DEFECT";

/// A service and what it stands on; ended with it.
pub(crate) struct Service {
    folder: tempfile::TempDir,
    state: PathBuf,
    child: Option<Child>,
}

/// How to start it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Prompts at a time.
    pub(crate) slots: u16,
    /// The broker's port and the board's name in topics.
    pub(crate) mqtt: Option<(u16, String)>,
    /// Seconds that accepted prompts get at the end.
    pub(crate) grace: u32,
    /// How the engine loads ([`MANNER`]).
    pub(crate) manner: String,
    /// Further lines of the configuration.
    pub(crate) more: String,
    /// Where the state is kept, if not in the service's own folder.
    pub(crate) state: Option<PathBuf>,
}

impl Service {
    /// A folder with a configuration; nothing runs yet.
    pub(crate) fn prepare(plan: &Plan) -> Service {
        // /tmp, because the path of a socket may have no more than 107 bytes.
        let folder = tempfile::Builder::new().prefix("promptd-f-").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        let state = plan.state.clone().unwrap_or_else(|| folder.path().join("state"));
        let service = Service { folder, state, child: None };
        service.manner(&plan.manner);
        service.configure(plan);
        service
    }

    /// Writes the configuration.
    pub(crate) fn configure(&self, plan: &Plan) {
        let mqtt = plan.mqtt.as_ref().map_or(String::new(), |(port, node)| {
            format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nnode = \"{node}\"\nadmin = true\n")
        });
        let (place, state) = (self.folder.path(), &self.state);
        let config = format!(
            "[model]\npath = {:?}\nslots = {}\n[runtime]\nlibrary = {:?}\n[socket]\npath = {:?}\nlines_path = {:?}\n\
             [state]\ndir = {state:?}\n[shutdown]\ngrace_seconds = {}\n{mqtt}{}",
            place.join("model"),
            plan.slots,
            place.join("none.so"),
            self.http(),
            self.lines(),
            plan.grace,
            plan.more,
        );
        std::fs::write(place.join("promptd.toml"), config).unwrap();
    }

    /// How the next engine loads.
    pub(crate) fn manner(&self, manner: &str) {
        std::fs::write(self.folder.path().join("model").join(MANNER), manner).unwrap();
    }

    /// Starts it.
    pub(crate) fn start(&mut self) {
        self.child = Some(self.command().spawn().unwrap());
    }

    /// Starts it in the group whose processes this file takes, with everything that it starts in turn.
    pub(crate) fn start_in(&mut self, procs: &Path) {
        let mut shell = Command::new("sh");
        let inner = self.command();
        shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs);
        shell.arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.log_file());
        self.child = Some(shell.spawn().unwrap());
    }

    fn log_file(&self) -> std::fs::File {
        let mut log = std::fs::OpenOptions::new();
        log.append(true).create(true).open(self.folder.path().join("log")).unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("serve").arg("--config").arg(self.folder.path().join("promptd.toml"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PROMPTD__")) {
            command.env_remove(name);
        }
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(self.log_file());
        command
    }

    pub(crate) fn http(&self) -> PathBuf {
        self.folder.path().join("http.sock")
    }

    pub(crate) fn lines(&self) -> PathBuf {
        self.folder.path().join("lines.sock")
    }

    /// The process id of the service.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The process id of the engine, if one runs.
    pub(crate) fn engine(&self) -> Option<u32> {
        let pid = self.pid()?;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let engine = children.split_whitespace().next()?;
        let line = std::fs::read(format!("/proc/{engine}/cmdline")).ok()?;
        let is_engine = line.split(|byte| *byte == 0).nth(1) == Some(b"engine");
        engine.parse().ok().filter(|_| is_engine)
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end; `None` if it did not come in time.
    pub(crate) async fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        signal(child.id(), "TERM");
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// `/health/ready` as JSON, whatever its status.
    pub(crate) fn health(&self) -> Option<Value> {
        self.get("/health/ready")
    }

    /// An answer of the HTTP socket as JSON.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let text = self.send("GET", path)?;
        serde_json::from_str(text.get(text.find('{')?..=text.rfind('}')?)?).ok()
    }

    /// A whole answer of the HTTP socket, head included.
    pub(crate) fn send(&self, method: &str, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.http()).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// What the engines did.
    pub(crate) fn deeds(&self) -> Vec<String> {
        let file = self.folder.path().join("model").join(DEEDS);
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How often the engines did this with this prompt.
    pub(crate) fn did(&self, what: &str, id: &str) -> usize {
        let is = |line: &&String| {
            let mut words = line.split(' ');
            words.next() == Some(what) && words.next() == Some(id)
        };
        self.deeds().iter().filter(is).count()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal by name to a process that the test started; one that has just ended does not mind.
pub(crate) fn signal(pid: u32, name: &str) {
    use rustix::process::{Pid, Signal, kill_process};
    let signal = match name {
        "TERM" => Signal::TERM,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "SEGV" => Signal::SEGV,
        "BUS" => Signal::BUS,
        "ABRT" => Signal::ABORT,
        _ => Signal::KILL,
    };
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
