//! `promptd serve` as a child process on paths of its own, ended with the test.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, http, wait_for};

/// A running promptd and its folder.
pub(crate) struct Service {
    child: Child,
    folder: tempfile::TempDir,
}

/// What to start it with.
pub(crate) struct Plan {
    /// The model folder.
    pub(crate) model: PathBuf,
    /// `model.slots`, where it is set.
    pub(crate) slots: Option<u16>,
    /// libonnxruntime.
    pub(crate) library: PathBuf,
    /// `state.durability`, where it is set.
    pub(crate) durability: Option<&'static str>,
    /// Lines of TOML behind the usual ones (`[mqtt]` …).
    pub(crate) more: String,
    /// Lines of `[socket]` behind the paths.
    pub(crate) socket: String,
    /// The most files it may have open, where that is not the usual.
    pub(crate) open_files: Option<u32>,
    /// Where standard output and error lead.
    pub(crate) outputs: Outputs,
}

/// Where a program's standard output and error lead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outputs {
    /// Errors to the file that [`Service::log`] reads.
    Log,
    /// A pipe whose reader has gone.
    Unread,
    /// A device that is full.
    Full,
    /// Nowhere: the descriptors are closed, standard input too.
    Closed,
}

impl Outputs {
    /// Has the program write there.
    pub(crate) fn of(self, start: Command, log: &Path) -> Command {
        let mut start = match self {
            Outputs::Closed => in_shell("exec \"$@\" <&- >&- 2>&-", &start),
            _ => start,
        };
        start.stdin(Stdio::null()).stdout(Stdio::null());
        match self {
            Outputs::Log => start.stderr(File::create(log).unwrap()),
            Outputs::Full => {
                let full = || File::options().write(true).open("/dev/full").unwrap();
                start.stdout(full()).stderr(full())
            }
            Outputs::Unread => {
                let (_, out) = std::io::pipe().unwrap();
                start.stdout(out.try_clone().unwrap()).stderr(out)
            }
            Outputs::Closed => &mut start,
        };
        start
    }
}

impl Plan {
    /// The demo model and the fetched library.
    pub(crate) fn demo() -> Self {
        Plan {
            model: super::demo_model(),
            slots: None,
            library: super::library(),
            durability: None,
            more: String::new(),
            socket: String::new(),
            open_files: None,
            outputs: Outputs::Log,
        }
    }

    /// Another model folder.
    pub(crate) fn of_model(model: &Path) -> Self {
        Plan { model: model.to_owned(), ..Plan::demo() }
    }

    /// As the node `n` of this broker.
    pub(crate) fn at_broker(self, port: u16) -> Self {
        self.with(&format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nnode = \"n\"\n"))
    }

    /// More of `[socket]`.
    pub(crate) fn with_socket(mut self, toml: &str) -> Self {
        self.socket.push_str(toml);
        self
    }

    /// More configuration.
    pub(crate) fn with(mut self, toml: &str) -> Self {
        self.more.push_str(toml);
        self
    }
}

impl Service {
    /// Starts promptd; its doors may not be open yet.
    pub(crate) fn start(plan: &Plan) -> Self {
        // /tmp, because the path of a socket may have no more than 107 bytes.
        let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
        Self::start_in(folder, plan)
    }

    /// The same in a folder that is already there.
    pub(crate) fn start_in(folder: tempfile::TempDir, plan: &Plan) -> Self {
        let place = folder.path();
        let config = format!(
            "[model]\npath = {:?}\n{}[runtime]\nlibrary = {:?}\n[socket]\npath = {:?}\nlines_path = {:?}\n{}[state]\ndir = {:?}\n{}{}",
            plan.model,
            plan.slots.map(|slots| format!("slots = {slots}\n")).unwrap_or_default(),
            plan.library,
            place.join("http.sock"),
            place.join("lines.sock"),
            plan.socket,
            place.join("state"),
            plan.durability.map(|word| format!("durability = {word:?}\n")).unwrap_or_default(),
            plan.more,
        );
        std::fs::write(place.join("promptd.toml"), config).unwrap();
        let mut start = command(&["serve", "--config"]);
        start.arg(place.join("promptd.toml"));
        if let Some(most) = plan.open_files {
            start = in_shell(&format!("ulimit -n {most}; exec \"$@\""), &start);
        }
        let child = plan.outputs.of(start, &place.join("log")).spawn().unwrap();
        Service { child, folder }
    }

    /// Waits until the model answers.
    pub(crate) fn ready(self) -> Self {
        wait_for("promptd to be ready", || {
            let answer = http::try_get(&self.socket(), "/health/ready")?;
            assert_ne!(answer.json()["state"], "model_failed", "{}\n{}", answer.body, self.log());
            (answer.status == 200).then_some(())
        });
        self
    }

    /// The HTTP socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("http.sock")
    }

    /// The line socket.
    pub(crate) fn lines(&self) -> PathBuf {
        self.folder.path().join("lines.sock")
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its engine's process id: its only child, as soon as that is an engine. Before its `exec` the child is still a copy
    /// of the service, which waits for it.
    pub(crate) fn engine_pid(&self) -> Option<u32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let child = children.split_whitespace().next()?;
        let command_line = std::fs::read(format!("/proc/{child}/cmdline")).ok()?;
        let is_engine = command_line.split(|byte| *byte == 0).nth(1) == Some(b"engine");
        child.parse().ok().filter(|_| is_engine)
    }

    /// `/health/ready` as JSON, whatever its status.
    pub(crate) fn health(&self) -> Option<Value> {
        http::try_get(&self.socket(), "/health/ready").map(|answer| answer.json())
    }

    /// Waits until `/health/ready` is like this, while the clients of this thread go on.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let health = self.health();
            if let Some(health) = health.as_ref().filter(|health| is_so(health)) {
                return health.clone();
            }
            assert!(Instant::now() < deadline, "{what}: {health:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the record has nothing more to write.
    pub(crate) async fn until_written(&self) -> Value {
        self.until("all on the disk", |health| health["record"]["waiting"] == 0).await
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        signal(self.pid(), "TERM");
        let status = self.wait();
        (status, self.log())
    }

    /// `kill -9`, as the OOM killer and a power switch do. Its folder is left for the next.
    pub(crate) fn kill(mut self) -> tempfile::TempDir {
        let engine = self.engine_pid();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // One that a test stopped would never see that it is alone. It may have ended already.
        if let Some(engine) = engine {
            let _ = Command::new("kill").args(["-CONT", &engine.to_string()]).output();
        }
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// Waits for an end that it comes to by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "promptd did not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- promptd's log\n{}", self.log());
        }
        // The engine ends by itself when its socket closes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same by a shell that does this first; `"$@"` is the command.
fn in_shell(script: &str, inner: &Command) -> Command {
    let mut start = Command::new("sh");
    start.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => start.env(name, value),
            None => start.env_remove(name),
        };
    }
    start
}

/// `promptd ARGS` without variables of the surroundings that would reach into the test.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptd"));
    command.args(args).env_remove("NOTIFY_SOCKET").env_remove("ORT_DYLIB_PATH");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PROMPTD__")) {
        command.env_remove(name);
    }
    command
}

/// Sends a signal by name to a process that the test started.
pub(crate) fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(done.success(), "kill -{name} {pid}");
}

/// Runs a command to its end: status, standard output, standard error. One that does not end is killed, and the test fails.
pub(crate) fn output(mut command: Command) -> (i32, String, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let read = |mut pipe: Box<dyn Read + Send>| {
        std::thread::Builder::new()
            .spawn(move || {
                let mut text = String::new();
                let _ = pipe.read_to_string(&mut text);
                text
            })
            .unwrap()
    };
    let text = read(Box::new(child.stdout.take().unwrap()));
    let errors = read(Box::new(child.stderr.take().unwrap()));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                panic!(
                    "{command:?} did not end\n{}{}",
                    text.join().unwrap(),
                    errors.join().unwrap()
                );
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    (status.code().unwrap_or(-1), text.join().unwrap(), errors.join().unwrap())
}
